"""The stages of a recipe at work inside a training loop of the user's own, step by step.

The loop changes the weights; what goes along with it is what would go along with a training of an evaluator. The model
stays the same object throughout.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from modelpress.api.v1alpha1 import Stage
from modelpress_runner.edits.masks import Masks, placed
from modelpress_runner.engine.outcome import RecipeOutcome
from modelpress_runner.engine.records import counts, stage_record
from modelpress_runner.errors import CompressionError, InvalidModelError
from modelpress_runner.in_process.loop_evaluator import LoopEvaluator
from modelpress_runner.methods.context import StageContext, TrainingContext
from modelpress_runner.process.progress import Event, EventCallback, silent
from modelpress_runner.stages import kind
from modelpress_runner.subject.subject import Subject
from modelpress_runner.training.calls import Call
from modelpress_runner.training.participants import FiniteCheck, MaskKeeper, MovementCheck, Participant, check_masks
from modelpress_runner.training.participation import Participation

_NOTHING_MOVED = (
    "the loop made {steps} optimizer steps, and no weight of the model changed; train the model that was given to "
    "prepare_compression, with an optimizer that holds its parameters"
)


class Loop:
    """Runs a recipe inside a training loop of the user's own.

    Args:
        subject: the model and its example inputs; its evaluator trains nothing here.
        stages: the recipe: stages that can go along with a training, whose schedules count steps.
        seed: of methods that draw lots.
        report: gets an event for each stage that reaches its target, each epoch and the shrink.
        stop: raises Stopped if the run should end.
        static: counts of a model for the records (macs).
        optimizers: those of the loop, where they are known: then `collect_gradients` is called from their steps.
        schedulers: theirs.
        dense: a copy of the model as it is, where a stage looks at it.

    Attributes:
        total: epochs that there will be, as far as is known; 0: not.
        epochs: epochs done.

    Raises:
        InvalidSpecError: a stage has no place in a loop of the user's own.
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
        schedulers: Sequence[Any] = (),
        dense: nn.Module | None = None,
        target_device: str = "cpu",
    ) -> None:
        self.context = StageContext(
            subject.model,
            subject.evaluator,
            subject.dummy_input,
            seed,
            dense=dense,
            teacher=subject.teacher,
            target_device=target_device,
            in_loop=True,
        )
        self.epochs = self.total = 0
        self.stop = stop
        self._report, self._static, self._optimizers = report, static, optimizers
        self._parts = [_LoopStage(stage, number) for number, stage in enumerate(stages)]
        self._dense = sum(parameter.numel() for parameter in subject.model.parameters())
        self._evaluator = LoopEvaluator(optimizers, schedulers)
        self._seen = False  # the gradients of the present step
        self._began = time.perf_counter()
        self._open = contextlib.ExitStack()
        members: list[Participant] = []
        for part in self._parts:
            for step in part.along.before:
                step.apply(self.context)
        for part in self._parts:
            report_ = functools.partial(self.emit, stage=part.name)
            members += part.along.participants(TrainingContext(self.context, self._evaluator, report_, tuple(members)))
        moved = MovementCheck(
            lambda check: _NOTHING_MOVED.format(steps=self.steps), self._masks, must=False, masks_grow=True
        )
        members = [MaskKeeper(self.model, self._masks), moved, *members, FiniteCheck()]
        self._participation = Participation(self.model, self._evaluator, members)

    @property
    def model(self) -> nn.Module:
        """The model in the loop."""
        return self.context.model

    @property
    def steps(self) -> int:
        """Optimizer steps done."""
        return self._participation.steps

    def _masks(self) -> Masks:
        return self.context.masks

    def begin(self) -> None:
        """Checks every stage against the model, and prunes what is to be pruned before the first step.

        Raises:
            InvalidSpecError: a stage does not fit the model.
            CompressionError: a method failed on it.
        """
        self._began = time.perf_counter()
        self._open.enter_context(self._participation)
        self.emit("begins")
        self._participation.begin()

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
        """The loss that the loop goes on with.

        Raises:
            InvalidModelError: there is a teacher's output, which no stage uses.
        """
        if teacher_output is not None and not self._participation.takes_teacher_output:
            raise InvalidModelError("was given a teacher_output, and no stage of the recipe uses one; leave it out")
        call = _as_call(inputs)
        return self._participation.loss(
            student_loss, Call(*call, outputs=student_output, teacher_output=teacher_output)
        )

    def before_step(self) -> None:
        """The optimizer is about to step."""
        self._seen = False
        if not self._optimizers:
            self.collect_gradients()

    def collect_gradients(self) -> None:
        """Gradients are there as the optimizer will use them."""
        if not self._seen:
            self._seen = True
            self._evaluator.about_to_step()

    def stepped(self) -> None:
        """An optimizer step is over: pruned weights are set to zero again, and more are pruned if it is time."""
        if not self._seen:
            self._participation.skip()
        self._evaluator.stepped()

    def progress(self) -> dict[str, Any]:
        """Where the loop is, as plain data; its masks apart."""
        seconds = time.perf_counter() - self._began
        return {"epochs": self.epochs, "seconds": seconds, "participants": self._participation.state_dict()}

    def restore(self, progress: dict[str, Any]) -> None:
        """Goes on where `progress` was; model and masks are those of that moment already."""
        self.epochs, self._began = progress["epochs"], time.perf_counter() - progress["seconds"]
        self._participation.load_state_dict(progress["participants"])

    def emit(self, message: str, stage: str = "loop") -> None:
        """Reports how far the loop is."""
        self._report(Event(stage, self.epochs, self.total, message))

    def close(self) -> None:
        """Takes off the model again what was put on it."""
        self._open.close()

    def end(self) -> RecipeOutcome:
        """Checks that all stages did what they should, and shrinks the model if one wants that.

        Raises:
            CompressionError: the loop was too short for a schedule, trained nothing, or undid the pruning; the model
                has NaN or infinite weights; or the shrink failed.
        """
        self.check("the loop")
        self._participation.finish()
        self.context.masks = placed(self.context.masks, self.model)
        took = time.perf_counter() - self._began
        records = [self._record(part) | {"seconds": took, "steps": self.steps} for part in self._parts]
        for part, record in zip(self._parts, records, strict=True):
            before = time.perf_counter()
            for step in part.along.steps:
                self.context.report = functools.partial(self.emit, stage=part.name)
                step.apply(self.context)
                record |= self.context.record | counts(self.model, self._dense, self._static)
            self.context.record = {}
            record["seconds"] += time.perf_counter() - before
        return RecipeOutcome(
            model=self.model,
            masks=self.context.masks,
            edits=self.context.edits,
            stages=records,
            notes=self.context.notes,
            steps=self.steps,
            executed=self.steps,
        )

    def _record(self, part: _LoopStage) -> dict[str, Any]:
        own = kind(part.method).record(part.block)
        return stage_record(part.name, part.method, own, self.model, self._dense, self._static)


class _LoopStage:
    """One stage of the recipe."""

    def __init__(self, stage: Stage, number: int) -> None:
        self.method, self.block = stage.method, stage.block
        self.name = stage.name or f"{number}-{stage.method}"
        path = f"spec.stages[{number}].{stage.method}"
        self.along = kind(stage.method).participants(stage.block, path, number, self.name)


def _as_call(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a loop says that it called its model with: one argument, or several by position or by name."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,), {}
