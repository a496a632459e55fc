"""The stages of a recipe at work inside a training loop of the user's own, step by step.

The loop changes the weights; what is here keeps pruned ones at zero, prunes more of them when a stage's schedule says
so, and shrinks the model when the loop is over. The model stays the same object throughout.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from modelpress.api.v1alpha1 import Prune, Stage
from modelpress_runner.edits.masks import placed
from modelpress_runner.engine.run import RecipeOutcome
from modelpress_runner.errors import CompressionError, InvalidModelError, InvalidSpecError
from modelpress_runner.in_process.loop_scores import ScoreWindow
from modelpress_runner.methods.context import StageContext
from modelpress_runner.methods.prune.schedule import last_step, next_step, prunes_at, sparsity_at
from modelpress_runner.methods.prune.selection import Choice, Selection, select
from modelpress_runner.methods.prune.statistics import Scores
from modelpress_runner.process.progress import Event, EventCallback, silent
from modelpress_runner.stages import kind
from modelpress_runner.stages.prune import PruneStage
from modelpress_runner.subject.subject import Subject
from modelpress_runner.training.participants import MaskKeeper, MovementCheck, Participants, check_finite, check_masks

_NOTHING_MOVED = (
    "the loop made {steps} optimizer steps, and no weight of the model changed; train the model that was given to "
    "prepare_compression, with an optimizer that holds its parameters"
)


class Loop:
    """Runs a recipe inside a training loop of the user's own.

    Args:
        subject: the model and its example inputs; its evaluator trains nothing here.
        stages: the recipe: prune stages, with schedules by steps.
        seed: of methods that draw lots.
        report: gets an event for each stage that reaches its target, each epoch and the shrink.
        stop: raises Stopped if the run should end.
        static: counts of a model for the records (macs).
        optimizers: those of the loop, where they are known: then `collect_gradients` is called from their steps.

    Attributes:
        steps: optimizer steps done.
        total: epochs that there will be, as far as is known; 0: not.
        epochs: epochs done.
    """

    def __init__(
        self,
        subject: Subject,
        stages: Sequence[Stage],
        seed: int,
        report: EventCallback = silent,
        stop: Callable[[], None] = lambda: None,
        static: Callable[[nn.Module], dict[str, float]] | None = None,
        optimizers: Sequence[torch.optim.Optimizer] = (),
    ) -> None:
        self.context = StageContext(subject.model, subject.evaluator, subject.dummy_input, seed)
        self.steps = self.epochs = self.total = 0
        self.stop = stop
        self._report, self._static, self._optimizers = report, static, optimizers
        self._parts = [_LoopStage.of(stage, number) for number, stage in enumerate(stages)]
        self._dense = sum(parameter.numel() for parameter in subject.model.parameters())
        self._moved = MovementCheck(lambda check: _NOTHING_MOVED.format(steps=self.steps))
        self._participants = Participants([MaskKeeper(subject.model, {}), self._moved])
        self._began = time.perf_counter()

    @property
    def model(self) -> nn.Module:
        """The model in the loop."""
        return self.context.model

    @property
    def last_step(self) -> int:
        """Optimizer steps after which every stage has reached its target."""
        return max(part.last for part in self._parts)

    def begin(self) -> None:
        """Checks every stage against the model, and prunes what is to be pruned before the first step.

        Raises:
            InvalidSpecError: a stage does not fit the model.
            CompressionError: a method failed on it.
        """
        self._began = time.perf_counter()
        for part in self._parts:
            part.find(self.context, self._optimizers)
        self.emit("begins")
        self._prune()
        self._participants.attach(self.model)

    def check(self, where: str) -> None:
        """Raises CompressionError if a pruned weight is not zero any more, in words that name the likely cause."""
        try:
            check_masks(self.model, self.context.masks, where)
        except CompressionError as error:
            raise CompressionError(
                f"{error}; call on_after_optimizer_step() after every optimizer.step(), and load no other weights "
                "while the loop runs"
            ) from error

    def loss(self, inputs: Any, student_output: Any, student_loss: torch.Tensor, teacher_output: Any) -> torch.Tensor:
        """The loss that the loop goes on with: prune stages leave it as it is.

        Raises:
            InvalidModelError: there is a teacher's output, which no stage uses.
        """
        if teacher_output is not None:
            raise InvalidModelError("was given a teacher_output, and no stage of the recipe uses one; leave it out")
        return self._participants.loss(student_loss, inputs)

    def before_step(self) -> None:
        """The optimizer is about to step."""
        self._participants.before_step()
        if not self._optimizers:
            self.collect_gradients()

    def collect_gradients(self) -> None:
        """Gradients are there as the optimizer will use them."""
        for part in self._parts:
            part.collect_gradients(self.steps)

    def stepped(self) -> None:
        """An optimizer step is over: pruned weights are set to zero again, and more are pruned if it is time."""
        self.steps += 1
        self._participants.after_step()
        self._prune()

    def progress(self) -> dict[str, Any]:
        """Where the loop is, as plain data; its masks apart."""
        return {"steps": self.steps, "epochs": self.epochs, "seconds": [part.seconds for part in self._parts]} | {
            "participants": self._participants.state_dict()
        }

    def restore(self, progress: dict[str, Any]) -> None:
        """Goes on where `progress` was; model and masks are those of that moment already."""
        self.steps, self.epochs = progress["steps"], progress["epochs"]
        for part, seconds in zip(self._parts, progress["seconds"], strict=True):
            part.seconds = seconds
        self._keep_masks()
        self._participants.load_state_dict(progress["participants"])

    def emit(self, message: str, stage: str = "loop") -> None:
        """Reports how far the loop is."""
        self._report(Event(stage, self.epochs, self.total, message))

    def close(self) -> None:
        """Takes off the model again what collecting scores has put on it."""
        for part in self._parts:
            part.close()
        self._participants.detach()

    def end(self) -> RecipeOutcome:
        """Checks that all stages did what they should, and shrinks the model if one wants that.

        Raises:
            CompressionError: the loop was too short for a schedule, trained nothing, or undid the pruning; the model
                has NaN or infinite weights; or the shrink failed.
        """
        for part in self._parts:
            if self.steps < part.last:
                raise CompressionError(
                    f"the loop made {self.steps} optimizer steps, and {part.name} reaches its target after "
                    f"{part.last}; train longer, or lower endStep",
                    f"{part.stage.path}.schedule",
                )
        self.check("the loop")
        if self.steps:
            self._moved.finish()
        check_finite(self.model)
        self.context.masks = placed(self.context.masks, self.model)
        records = [self._record(part) for part in self._parts]
        for part, record in zip(self._parts, records, strict=True):
            if part.stage.shrinks:
                before = time.perf_counter()
                self.context.report = functools.partial(self.emit, stage=part.name)
                part.stage.shrink(self.context)
                record |= self._counted() | {"seconds": record["seconds"] + time.perf_counter() - before}
        return RecipeOutcome(
            model=self.model,
            masks=self.context.masks,
            cuts=self.context.cuts,
            stages=records,
            notes=self.context.notes,
            steps=self.steps,
            executed=self.steps,
        )

    def _prune(self) -> bool:
        """Prunes for every stage that is due; whether one was."""
        pruned = False
        for number, part in enumerate(self._parts):
            # Where an earlier stage has taken more, a later one's share is of less.
            if part.is_due(self.steps) or (pruned and part.has_begun(self.steps)):
                self.context.masks = placed(self.context.masks, self.model)  # somebody may have moved the model
                earlier = [other.stage for other in self._parts[:number] if other.stage.shrinks]
                part.stage.round(self.context, self.steps, part.scores(), earlier)
                pruned = True
                if self.steps == part.last:
                    part.seconds = time.perf_counter() - self._began
                    self.emit(f"target reached after {self.steps} steps", part.name)
        if pruned:
            self._keep_masks()
            if self.steps and not self._moved.moved:  # what pruning changed is no movement
                self._moved.attach(self.model)
        return pruned

    def _keep_masks(self) -> None:
        """Masks that are in force from now on."""
        self._participants.members = (MaskKeeper(self.model, self.context.masks), *self._participants.members[1:])

    def _record(self, part: _LoopStage) -> dict[str, Any]:
        record: dict[str, Any] = {"name": part.name, "method": part.kind.name, **part.kind.record(part.prune)}
        record |= self._counted()
        return record | {"seconds": part.seconds, "steps": self.steps}

    def _counted(self) -> dict[str, Any]:
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        with torch.no_grad():
            nonzero = sum(int(torch.count_nonzero(parameter)) for parameter in self.model.parameters())
        counted = {"sparsity": 1 - nonzero / self._dense if self._dense else 0.0, "parameters": parameters}
        return counted | ({} if self._static is None else self._static(self.model))


class _LoopStage:
    """One prune stage of the recipe."""

    kind = kind("prune")

    def __init__(self, prune: Prune, index: int, name: str) -> None:
        self.prune, self.name = prune, name
        self.stage = PruneStage(prune, index)
        self.seconds = 0.0
        self._selection: Selection | None = None
        self._window: ScoreWindow | None = None

    @classmethod
    def of(cls, stage: Stage, number: int) -> _LoopStage:
        block = stage.block
        if not isinstance(block, Prune):
            raise InvalidSpecError(
                "this stage has no place in a training loop of your own; remove it", f"spec.stages[{number}]"
            )
        return cls(block, number, stage.name or f"{number}-{stage.method}")

    def find(self, context: StageContext, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Finds the modules that it prunes, and goes once through everything that could be wrong with them."""
        self._selection = select(context.model, self.prune, self.stage.path)
        self.stage.check(context)
        self._window = ScoreWindow(context.model, self.selection.choices.values(), self.stage.path, optimizers)
        if self._window and self.is_due(0):
            raise InvalidSpecError(
                "nothing is known of any gradient before the first step, and a method here scores by gradients; prune "
                "after some steps, as with startStep: 10",
                f"{self.stage.path}.schedule.startStep",
            )

    @property
    def selection(self) -> Selection:
        assert self._selection is not None
        return self._selection

    @property
    def last(self) -> int:
        return max(last_step(choice.schedule) for choice in self.selection.choices.values())

    def is_due(self, step: int) -> bool:
        """Whether the sparsity of one of its modules grows now."""
        return any(
            prunes_at(choice.schedule, step) and sparsity_at(choice.schedule, choice.sparsity, step) > 0
            for choice in self.selection.choices.values()
        )

    def has_begun(self, step: int) -> bool:
        """Whether it has pruned before `step`, by weights alone, so that it can do so again at any time."""
        started = any(sparsity_at(c.schedule, c.sparsity, step - 1) > 0 for c in self.selection.choices.values())
        return step > 0 and started and not self._window

    def collect_gradients(self, step: int) -> None:
        """Gradients are there after `step` optimizer steps: they are scored by if it is soon time to prune."""
        if not self._window:
            return
        coming = (self._next(choice, step) for choice in self.selection.choices.values())
        if any(due is not None and due - step <= self.stage.scoring_steps for due in coming):
            self._window.step()

    def scores(self) -> Scores:
        """What was scored by gradients since it was last asked."""
        return self._window.scores() if self._window else {}

    def close(self) -> None:
        if self._window is not None:
            self._window.close()

    def _next(self, choice: Choice, step: int) -> int | None:
        """When the sparsity of a module grows next."""
        due = next_step(choice.schedule, step)
        if due is not None and sparsity_at(choice.schedule, choice.sparsity, due) == 0:
            due = next_step(choice.schedule, due)
        return due
