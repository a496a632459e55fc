"""Keeps checkpoints and scores of one training step of a recipe, and goes on from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from modelpress_runner.edits.masks import placed
from modelpress_runner.engine.checkpoint import Checkpoint, Checkpointer, GeneratorStates, Within, copies, other_buffers
from modelpress_runner.evaluators.base import Evaluator
from modelpress_runner.evaluators.replay.tape import Diverged, Past
from modelpress_runner.methods.context import StageContext
from modelpress_runner.runtime import distributed as ranks
from modelpress_runner.runtime import rng
from modelpress_runner.runtime import user_rng as generators
from modelpress_runner.training.session import Inside, Resumed


class StepKeeper:
    """What a session asks for checkpoints and scores of one training step.

    Args:
        context: the model with its masks and edits.
        evaluator: what trains.
        checkpointer: where checkpoints are kept; None: nowhere.
        step: index of the training step among all steps of the recipe.
        complete: fills in what a checkpoint says of the run besides, from the steps that the training has made.
        take_score: takes and reports a score, after so many steps of the training.
        tell: reports that the training has made so many steps.
        scores: whether scores are wanted.
        score_seconds: how long one takes, if that is known.

    Attributes:
        resumed_at: the optimizer step that the training goes on at.
        saved: checkpoints that were kept.
    """

    def __init__(
        self,
        context: StageContext,
        evaluator: Evaluator,
        checkpointer: Checkpointer | None,
        step: int,
        complete: Callable[[Checkpoint, int], None],
        take_score: Callable[[int], None],
        tell: Callable[[int], None],
        *,
        scores: bool,
        score_seconds: float | None,
    ) -> None:
        self._context, self._evaluator, self._checkpointer, self._step = context, evaluator, checkpointer, step
        self._complete, self._take_score, self._tell = complete, take_score, tell
        self.scores, self.score_seconds = scores, score_seconds
        self.resumed_at = self.saved = 0
        self._run, self._parts = 0, 0
        self._written_before = 0.0  # the checkpointer's seconds before the last checkpoint

    @property
    def every(self) -> int | None:
        """As Keeper.every."""
        return None if self._checkpointer is None else self._checkpointer.every

    @property
    def saves(self) -> bool:
        """As Keeper.saves."""
        return self._checkpointer is not None

    @property
    def beside_seconds(self) -> float:
        """As Keeper.beside_seconds."""
        return 0.0 if self._checkpointer is None else self._checkpointer.written_seconds - self._written_before

    def score(self, steps: int) -> None:
        """As Keeper.score."""
        self._take_score(steps)

    def tell(self, steps: int) -> None:
        """As Keeper.tell."""
        self._tell(steps)

    # Saving -----------------------------------------------------------------------------------------------------------

    def begin(self, run: int = 0) -> None:
        """The training step begins, for the `run`th time."""
        self._run, self._parts = run, 0
        if self._checkpointer is not None and self._evaluator.replays and self._evaluator.resumable:
            self._checkpointer.save_begin(self._checkpoint(None, {}, 0))

    def save(self, inside: Inside) -> None:
        """As Keeper.save."""
        assert self._checkpointer is not None
        self._written_before = self._checkpointer.written_seconds
        if inside.part is not None:
            content = {"events": inside.part.events, "weights": inside.part.weights}
            self._checkpointer.save_part(self._step, self._run, self._parts, content)
            self._parts += 1
        within = Within(inside.steps, inside.events, self._parts, self._run, inside.gradients, inside.participants)
        self._save(within, inside.trainer, inside.steps)

    def finish(self, steps: int) -> None:
        """The training step is over, after so many optimizer steps."""
        if self._checkpointer is not None:
            self._save(None, {}, steps)

    def behind(self, step: int) -> Checkpoint:
        """What a stage that is over hands on; the next one begins with this step."""
        checkpoint = self._checkpoint(None, {}, 0)
        return replace(checkpoint, step=step, asked=None, score=None, seconds=0.0, steps=(checkpoint.steps[0], 0))

    def mark(self) -> None:
        """A step is over that trains nothing, an evaluation say."""
        if self._checkpointer is not None:
            self._checkpointer.save(self._checkpoint(None, {}, 0))
            self.saved += 1

    def _save(self, within: Within | None, trainer: dict[str, Any], steps: int) -> None:
        assert self._checkpointer is not None
        if self._evaluator.sharded and within is not None:
            self._checkpointer.save_shard(self._step, within, trainer)
            trainer = {}
        self._checkpointer.save(self._checkpoint(within, trainer, steps))
        # Behind it: of what a killed attempt did behind its last checkpoint nothing is counted.
        self._checkpointer.made(self._step, steps - self.resumed_at)
        self.saved += 1

    def _checkpoint(self, within: Within | None, trainer: dict[str, Any], steps: int) -> Checkpoint:
        context, evaluator = self._context, self._evaluator
        states = ranks.all_gather_object(
            GeneratorStates(rng.capture(), generators.save(evaluator.rng_roots())).to_plain()
        )
        checkpoint = Checkpoint(
            step=self._step,
            within=within,
            model={},
            buffers={},
            masks=dict(context.masks),
            edits=list(context.edits),
            trainer=_on_host(trainer),
            generators=states,
            notes=list(context.notes),
        )
        if evaluator.sharded and within is not None:  # parameters are there as a whole in here only
            with evaluator.gathered_parameters():
                checkpoint.model = copies(dict(context.model.state_dict()))
        elif ranks.is_rank_zero():
            checkpoint.model = copies(dict(context.model.state_dict()))
        checkpoint.buffers = copies(other_buffers(context.model))
        self._complete(checkpoint, steps)
        return checkpoint

    # Going on ---------------------------------------------------------------------------------------------------------

    def resumed(self, checkpoint: Checkpoint) -> Resumed:
        """The training that was under way. Where its function is called again, the model is what it began with.

        Raises:
            Diverged: what that needs is not there.
        """
        assert self._checkpointer is not None
        within = checkpoint.within
        assert within is not None
        past = None
        if self._evaluator.replays:
            past = self._past(checkpoint, within)
            self._go_back()
        self._run, self._parts, self.resumed_at = within.run, within.parts, within.steps
        trainer = checkpoint.trainer
        if self._evaluator.sharded:
            trainer = self._checkpointer.shard(checkpoint)
        inside = Inside(within.steps, trainer, within.gradients, within.participants, within.events)
        return Resumed(inside, past, lambda: self._put_back(checkpoint))

    def start_over(self) -> None:
        """The model and the user's generators are what the training step began with; it begins for another time."""
        self._go_back()
        self.begin(self._run + 1)
        self.resumed_at = 0

    def _past(self, checkpoint: Checkpoint, within: Within) -> Past:
        assert self._checkpointer is not None
        if checkpoint.world != ranks.world_size():
            raise Diverged(f"{checkpoint.world} processes trained together before, and {ranks.world_size()} do now")
        events: list[dict[str, Any]] = []
        held: dict[int, int] = {}  # kept weights: the part that has them
        for number in range(within.parts):
            content = self._checkpointer.part(checkpoint, number)
            events += content["events"]
            held |= dict.fromkeys(content["weights"], number)
        if len(events) != within.events:
            raise Diverged("its notes are not complete")
        checkpointer = self._checkpointer
        return Past(events, lambda number: checkpointer.part(checkpoint, held[number])["weights"][number])

    def _go_back(self) -> None:
        assert self._checkpointer is not None
        began = self._checkpointer.begin(self._step)
        began.set_weights(self._context.model)
        self._context.masks = placed(began.masks, self._context.model)
        generators.restore(self._evaluator.rng_roots(), began.generators_of(ranks.rank()).own)

    def _put_back(self, checkpoint: Checkpoint) -> None:
        if self._evaluator.replays:
            if ranks.any_rank(False):
                raise Diverged("another process does not do what it did before", everywhere=True)
            with self._evaluator.gathered_parameters(modify=True):
                checkpoint.set_weights(self._context.model)
            self._context.masks = placed(checkpoint.masks, self._context.model)
            generators.restore(self._evaluator.rng_roots(), checkpoint.generators_of(ranks.rank()).own)
        rng.restore(checkpoint.generators_of(ranks.rank()).everywhere)


def _on_host(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.cpu()
    if isinstance(value, dict):
        return {key: _on_host(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_on_host, value))
    return value
