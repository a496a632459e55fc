"""One call of a training: bound, with what rides on it, counted, and with checkpoints and scores taken inside of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from modelpress_runner.errors import CompressionError, UserCodeError
from modelpress_runner.evaluators.base import Evaluator
from modelpress_runner.evaluators.replay.draws import Draws
from modelpress_runner.evaluators.replay.tape import Diverged, Part, Past, Tape
from modelpress_runner.process.stopping import Stopped
from modelpress_runner.runtime import distributed as ranks
from modelpress_runner.runtime.heap import give_back
from modelpress_runner.runtime.preserve import devices_restored
from modelpress_runner.training.pace import CHECKPOINT_SHARE, FIRST_SCORE, SCORE_SHARE, Pace
from modelpress_runner.training.participants import Participant
from modelpress_runner.training.participation import Participation

STOP_SECONDS = 5.0  # that a run which is to stop trains on, at most, to come to the end of a step
LOOK_SECONDS = 0.02  # between two looks at what is due, where none is due for the sake of a step
MEETING_SECONDS = 0.5  # between two moments at which the ranks agree on what to do next
MOST_STEPS_APART = 1000  # of two such moments
SAVING_SECONDS = 0.01  # of a first checkpoint, at least
BYTES_A_SECOND = 5e8  # of the model and twice as much of optimizers, before a checkpoint was timed


@dataclass
class Inside:
    """A place within a training that it can go on from.

    Attributes:
        steps: optimizer steps made.
        trainer: state of optimizers and schedulers.
        gradients: of the parameters by name, as they were.
        participants: their states.
        events: how many events the tape has, where the training function is called again to go on.
        part: what was noted since the last checkpoint of this training; None where nothing is noted.
    """

    steps: int
    trainer: dict[str, Any]
    gradients: dict[str, torch.Tensor]
    participants: list[dict[str, Any]]
    events: int = 0
    part: Part | None = None


class Keeper(Protocol):
    """Who keeps checkpoints and scores of a training."""

    @property
    def every(self) -> int | None:
        """Steps after which a checkpoint is due whatever it costs."""

    @property
    def saves(self) -> bool:
        """Whether checkpoints are kept at all."""

    @property
    def beside_seconds(self) -> float:
        """Processor time that keeping the last checkpoint has taken in a thread beside the training."""

    @property
    def scores(self) -> bool:
        """Whether scores are wanted."""

    @property
    def score_seconds(self) -> float | None:
        """How long one score takes, if that is known."""

    def save(self, inside: Inside) -> None:
        """Keeps a checkpoint; the training may go on as soon as it returns."""

    def score(self, steps: int) -> None:
        """Takes a score."""

    def tell(self, steps: int) -> None:
        """Says how far the training is."""


@dataclass
class Resumed:
    """A training that goes on.

    Attributes:
        inside: where; its part is not looked at.
        past: what its function did until then, where it is called again.
        put_back: puts model and generators where they were.
    """

    inside: Inside
    past: Past | None
    put_back: Callable[[], None]


class Session(Participation):
    """A training step that is under way: the evaluator is bound while the context is open.

    Training may move the model to another device; at the end it is back where it was.

    Args:
        model: what trains.
        evaluator: how it trains.
        participants: what rides on it, in their order.
        stop: raises Stopped if the run should end; asked around every step.
        keeper: takes checkpoints and scores; None: there are none.

    Attributes:
        notes: what the user should be told of the training.
    """

    def __init__(
        self,
        model: nn.Module,
        evaluator: Evaluator,
        participants: Sequence[Participant] = (),
        stop: Callable[[], None] = lambda: None,
        keeper: Keeper | None = None,
    ) -> None:
        super().__init__(model, evaluator, participants)
        self._stop, self._keeper = stop, keeper
        self._tape: Tape | None = None
        self._limit: int | None = None
        self._meeting, self._met_at, self._met_after = 0, 0.0, 0
        self._all_save = True  # whether every rank can make a checkpoint, when they last met
        self._next_look = 0.0  # the clock's time from which on something may be due
        self._asked_at = 0.0  # the clock's time when the run was first seen to be asked to stop
        self._wanted = (False, False, False)  # a checkpoint, a score, the end
        self._saving: Pace | None = None
        self._scoring: Pace | None = None
        self._telling: Pace | None = None
        self.notes: list[str] = []

    # Binding ----------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Session:
        with contextlib.ExitStack() as undone:
            undone.enter_context(devices_restored(self._model))
            undone.callback(self._clear_gradients)
            self._open = undone.pop_all()
            try:
                super().__enter__()
            except BaseException:
                self._open.close()
                raise
        self._evaluator.at_safe_points(self._safe_point, self._wants_one)
        return self

    # The call ---------------------------------------------------------------------------------------------------------

    def train(self, max_steps: int | None = None, max_epochs: int | None = None, resumed: Resumed | None = None) -> int:
        """Trains, in one call of the user's training; how many optimizer steps the first optimizer made.

        Args:
            max_steps: optimizer steps, or
            max_epochs: epochs.
            resumed: where to go on; None: from the start.

        Raises:
            CompressionError: no weight has changed, a weight is NaN or infinite, or the steps are not those asked for.
            Diverged: the training did something else than before; the model and all else are no longer of use.
            UserCodeError: the user's training raised.
            Stopped: the run should end.
        """
        self._stop_together()
        evaluator, keeper = self._evaluator, self._keeper
        self._limit = max_steps if evaluator.supports_max_steps and evaluator.calls_function else None
        notes = keeper is not None and keeper.saves and evaluator.resumable
        if evaluator.replays:
            self._tape = evaluator.tape = Tape(
                self._model,
                Draws(evaluator.rng_roots()) if notes or resumed is not None else None,
                noting=notes,
                past=None if resumed is None else resumed.past,
                after_step=self._safe_point,
                before_loss=self._before_loss,
                put_back=lambda: self._put_back(resumed),
                parts=evaluator.parts,
            )
        replayed = resumed is not None and self._tape is not None and resumed.past is not None
        if resumed is None or replayed:
            self.begin()
        if resumed is not None and not replayed:
            self._put_back(resumed)
        self._pace(0 if resumed is None else resumed.inside.steps)
        try:
            evaluator.train(max_steps, max_epochs)
        except (UserCodeError, CompressionError) as error:
            if self._tape is not None and not self._tape.live:
                raise Diverged(f"it raised {error}") from error
            raise
        finally:
            evaluator.tape = None
        self.finish()
        self._check_length(max_steps, max_epochs)
        self.notes += evaluator.remarks()
        if self.steps == 0:
            self.notes.append(
                "no step of an optimizer was seen, though training changed weights, so that masks were put back behind "
                "it alone; call step() of the optimizer or the engine that training is given"
            )
        if self._tape is not None and self._tape.closed is not None:
            self.notes.append(f"an interrupted training would have begun anew from some step on: {self._tape.closed}")
        return self.steps

    @property
    def steps(self) -> int:
        """Steps of the first optimizer so far."""
        return self._counted if self._tape is None else self._tape.steps

    def _check_length(self, max_steps: int | None, max_epochs: int | None) -> None:
        if max_steps is None or self.steps == max_steps:
            return
        text = f"maxSteps asks for {max_steps} optimizer steps, and training made {self.steps}"
        if self._limit is None:
            self.notes.append(text)
        else:
            raise CompressionError(f"{text}; let training_func honour max_steps, and return after as many steps")

    def _put_back(self, resumed: Resumed | None) -> None:
        assert resumed is not None
        inside = resumed.inside
        named = dict(self._model.named_parameters())
        for parameter in named.values():
            parameter.grad = None
        resumed.put_back()
        for name, gradient in inside.gradients.items():
            named[name].grad = gradient.to(named[name].device, copy=True)
        self.load_state_dict(inside.participants)
        self._evaluator.load_state_dict(inside.trainer)

    def _clear_gradients(self) -> None:
        for parameter in self._model.parameters():
            parameter.grad = None
        give_back()

    # Steps ------------------------------------------------------------------------------------------------------------

    def _before_loss(self) -> None:
        """A run that is to stop comes to the end of its step, for a checkpoint; unless there is no end to come."""
        if not self._is_asked():
            return
        self._asked_at = self._asked_at or time.monotonic()
        alone = not ranks.is_distributed()
        if (alone and not self._saves_now()) or time.monotonic() - self._asked_at > STOP_SECONDS:
            raise Stopped

    def _before_step(self) -> None:
        if self._tape is None:  # which asks by itself, before each loss
            self._before_loss()
        if self._limit is not None and self.steps >= self._limit:
            raise CompressionError(
                f"maxSteps asks for {self._limit} optimizer steps, and training_func goes on to step "
                f"{self._limit + 1}; let it honour max_steps, and return after as many steps"
            )
        super()._before_step()

    def _saves_now(self) -> bool:
        """Whether a checkpoint can be made here and now."""
        if self._keeper is None or not self._keeper.saves or not self._evaluator.resumable:
            return False
        return not self._evaluator.calls_function if self._tape is None else self._tape.closed is None

    def _pace(self, step: int) -> None:
        if self._keeper is None:
            return
        size = sum(parameter.numel() * parameter.element_size() for parameter in self._model.parameters())
        self._saving = Pace(CHECKPOINT_SHARE, SAVING_SECONDS + 3 * size / BYTES_A_SECOND, self._keeper.every)
        seconds = self._keeper.score_seconds
        self._scoring = Pace(SCORE_SHARE, SCORE_SHARE * FIRST_SCORE if seconds is None else seconds)
        self._telling = Pace(1.0, 0.0)
        for pace in (self._saving, self._scoring, self._telling):
            pace.begins_at(step)
        self._meeting, self._met_at, self._met_after = 0, time.monotonic(), step

    def _wants_one(self) -> bool:
        """Whether it is time for a safe point, for those that have to make one; on all ranks alike."""
        steps, distributed = self.steps, ranks.is_distributed()
        if distributed and steps < self._meeting:
            return False
        asked, now = self._is_asked(), time.monotonic()
        if now < self._next_look and not asked and not distributed:
            return False
        self._next_look = 0.0 if self._keeper is None or self._keeper.every is not None else now + LOOK_SECONDS
        save, score = False, False
        if self._saving is not None and self._scoring is not None and self._keeper is not None:
            self._scoring.beside = self._evaluator.interruption
            self._saving.beside = self._scoring.beside + self._keeper.beside_seconds
            save = self._saves_now() and self._saving.is_due(steps)
            score = self._keeper.scores and self._evaluator.scores_inside and self._scoring.is_due(steps)
        if distributed:
            save, score, asked = self._agree(save, score, asked)
        if self._telling is not None and self._keeper is not None and not score and self._telling.is_due(steps):
            self._keeper.tell(steps)
            self._telling.done(steps, 0.0)
        self._wanted = (save, score, asked)
        return save or score or asked

    def _safe_point(self) -> None:
        """A place that the training could go on from: a checkpoint, a score or the end, if it is time for one."""
        if not any(self._wanted) and not self._wants_one():
            return
        save, score, asked = self._wanted
        if save and not asked and not self._evaluator.goes_on_here:
            return  # it will be asked for again
        self._wanted, steps = (False, False, False), self.steps
        if self._all_save and self._saves_now() and self._evaluator.goes_on_here and (save or asked):
            began = time.monotonic()
            assert self._keeper is not None
            assert self._saving is not None
            self._keeper.save(self._inside())
            self._saving.done(steps, time.monotonic() - began)
        if asked:
            raise Stopped
        if score:
            began = time.monotonic()
            assert self._keeper is not None
            assert self._scoring is not None
            with contextlib.nullcontext() if self._tape is None else self._tape.aside():
                self._keeper.score(steps)
            self._scoring.done(steps, time.monotonic() - began)
            if self._telling is not None:
                self._telling.done(steps, 0.0)

    def _agree(self, save: bool, score: bool, asked: bool) -> tuple[bool, bool, bool]:
        """What all ranks do: what rank 0's clock says; they end if one of them is asked to."""
        now, steps = time.monotonic(), self.steps
        each = (now - self._met_at) / max(1, steps - self._met_after)
        apart = max(1, min(MOST_STEPS_APART, int(MEETING_SECONDS / max(each, 1e-6))))
        said = ranks.all_gather_object((save, score, asked, apart, self._saves_now()))
        save, score, _, apart, _ = said[0]
        self._all_save = all(one[4] for one in said)
        self._met_at, self._met_after, self._meeting = now, steps, steps + apart
        return save, score, any(one[2] for one in said)

    def _inside(self) -> Inside:
        part = None if self._tape is None else self._tape.take()
        with self._evaluator.gathered_parameters():
            gradients = {
                name: parameter.grad.detach().to("cpu", copy=True)
                for name, parameter in self._model.named_parameters()
                if parameter.grad is not None and not self._evaluator.sharded
            }
        return Inside(
            steps=self.steps,
            trainer=self._evaluator.state_dict(),
            gradients=gradients,
            participants=self.state_dict(),
            events=0 if self._tape is None else self._tape.position,
            part=part,
        )

    def _is_asked(self) -> bool:
        try:
            self._stop()
        except Stopped:
            return True
        return False

    def _stop_together(self) -> None:
        if ranks.any_rank(self._is_asked()):
            raise Stopped
