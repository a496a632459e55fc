"""mp.prepare_compression: the recipe of a CompressionJob inside a training loop of the user's own."""

from __future__ import annotations

import contextlib
import logging
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import nn

from modelpress.api.v1alpha1 import ApiModel, CompressionJobSpec, Model
from modelpress_runner.edits.copies import copied
from modelpress_runner.edits.masks import Masks
from modelpress_runner.edits.wrappers import wrapped_part
from modelpress_runner.engine.outcome import RecipeOutcome
from modelpress_runner.engine.plan import needs_dense
from modelpress_runner.engine.scoring import score_aside
from modelpress_runner.errors import InvalidModelError
from modelpress_runner.evaluators.base import Score
from modelpress_runner.in_process import current
from modelpress_runner.in_process.callbacks import Callbacks
from modelpress_runner.in_process.compress import CompressionResult, recipe, result_of
from modelpress_runner.in_process.loop import Loop
from modelpress_runner.in_process.loop_state import LoopState
from modelpress_runner.in_process.reporting import reporting
from modelpress_runner.measure.measuring import Measured, Measuring, Metrics, static_counts
from modelpress_runner.process.progress import EventCallback, silent
from modelpress_runner.runtime import rng
from modelpress_runner.subject.subject import Subject
from modelpress_runner.usercode.calling import user_code

log = logging.getLogger("modelpress")


def prepare_compression(
    model: nn.Module,
    stages: Sequence[Mapping[str, Any] | ApiModel] | None = None,
    *,
    evaluator: Any = None,
    dummy_input: Any = None,
    pretrain: Callable[[nn.Module], Any] | None = None,
    optimizers: Any = None,
    lr_schedulers: Any = None,
    seed: int | None = None,
    target: Mapping[str, Any] | ApiModel | None = None,
    benchmark: Mapping[str, Any] | ApiModel | None = None,
    teacher: nn.Module | None = None,
    report: EventCallback = silent,
) -> Compression:
    """Compresses `model` in the course of a training loop of the user's own, which calls the callbacks.

        compression = mp.prepare_compression(model, stages, evaluator=accuracy, dummy_input=x)
        callbacks = compression.callbacks
        callbacks.on_train_begin()
        for epoch in range(3):
            for batch, (x, y) in enumerate(loader):
                callbacks.on_step_begin(batch)
                ...
                loss.backward()
                callbacks.on_before_optimizer_step()
                optimizer.step()
                callbacks.on_after_optimizer_step()
        callbacks.on_train_end()
        compression.result.save("small")

    In a script that a job runs (`model.script`), the recipe, the seed and what is measured are the job's: there stages,
    seed, target, benchmark and report are left out, and the artifact is written when the script is over.

    Args:
        model: the dense model, before it is wrapped in DistributedDataParallel or the like. It is changed in place:
            masked while it trains, smaller from on_train_end on.
        stages: those that can go along with a training, as under `stages` of a CompressionJob; schedules count the
            optimizer's steps (startStep, endStep, frequency), and one_shot without startStep prunes before the first.
        evaluator: a function model -> number or dict with the key 'default', or an Evaluator; it scores the dense and
            the compressed model. None: nothing is scored.
        dummy_input: an example input, batch first; else the evaluator's.
        pretrain: trains the dense model in place. It is called here, but not in a job that has the weights already:
            from `model.weights`, or from an earlier trial or attempt.
        optimizers: one or a list. Given, their steps are watched (each must lie between on_before_optimizer_step and
            on_after_optimizer_step), and a script that goes through `compression.epochs(n)` can be resumed.
        lr_schedulers: one or a list, for checkpoints; they need optimizers.
        seed: of methods that draw lots, and of scoring; 0 if left out.
        target: {"format": "eager" | "pt2"}: the form that the score and the size are taken of.
        benchmark: {"warmup": ..., "iterations": ..., ...}: times dense and compressed model; None: nothing is timed.
        teacher: a model that distill stages learn from; none: the dense model, unless they name another. A loop may
            give a teacher's outputs to on_after_compute_loss in its place.
        report: gets progress events, and what the loop gives to mp.report.

    Raises:
        SpecError: the recipe is not valid, or gives what only the job may give.
        InvalidModelError: the model, the evaluator or an optimizer is not what it must be.
    """
    handed = LoopModel(_subject(model, evaluator, dummy_input, teacher), pretrain)
    state = LoopState.of(model, optimizers, lr_schedulers)
    given: dict[str, Any] = {"stages": stages, "seed": seed, "target": target, "benchmark": benchmark}
    given["report"] = None if report is silent else report
    run = current.current()
    if run is not None:
        return run.prepared(handed, [name for name, value in given.items() if value is not None], state)
    if stages is None:
        raise InvalidModelError("prepare_compression() was given no stages, and no job runs this script; give stages")
    seed = 0 if seed is None else seed
    spec = recipe({"script": _script()}, stages, seed, target, benchmark)
    subject = handed.subject(spec.model, seed=seed, train=True)
    timed = benchmark is not None
    subject.find_inputs()
    measuring = Measuring(spec, subject, timed, asked=timed)
    with rng.fork_rng():
        baseline = measuring.dense(model)
    return Compression(spec, subject, measuring, baseline, state, timed=timed, report=report)


@dataclass(frozen=True)
class LoopModel:
    """What a loop hands over: its model and what scores it, and how it is trained first (entrypoint.ModelSource)."""

    given: Subject
    pretrain: Callable[[nn.Module], Any] | None = None
    name: str = "the script"
    path: str = "spec.model.script"

    @property
    def knows_train(self) -> bool:
        """Whether the dense model is trained only where that is needed."""
        return self.pretrain is not None

    def subject(self, model: Model, *, seed: int, train: bool) -> Subject:
        """The subject; trained, if `train`. The seed is the caller's own affair."""
        if train and self.pretrain is not None:
            with user_code("pretrain"):
                made = self.pretrain(self.given.model)
            if isinstance(made, nn.Module) and made is not self.given.model:
                raise InvalidModelError("pretrain returned another model; it must train the one that it is given")
        return self.given


class Compression:
    """A model, the callbacks that its training calls, and in the end the result. Also a context manager.

    As a context it takes everything that it put on optimizers off again at its end, also after an exception, and an end
    without on_train_end is an error. Without one, on_train_end does so.

    Attributes:
        callbacks: what the loop calls; each of them is a method of this object, too.
        baseline: metrics of the dense model by name.
        spec: the recipe.
        subject: the model with its evaluator and example inputs.
        at_end_of_script: of a script that a job runs: called when it is over and on_train_end() was not.
    """

    at_end_of_script: Callable[[], None] | None = None

    def __init__(
        self,
        spec: CompressionJobSpec,
        subject: Subject,
        measuring: Measuring,
        baseline: Metrics,
        state: LoopState,
        *,
        timed: bool,
        folder: Path | None = None,
        report: EventCallback = silent,
        stop: Callable[[], None] = lambda: None,
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        self.spec, self.subject, self.baseline = spec, subject, baseline
        self._measuring, self._state, self._ended = measuring, state, ended
        self._outcome: RecipeOutcome | None = None
        self._measured: Measured | None = None
        # Only what is timed beside the compressed model has to be kept.
        looked_at = needs_dense(subject, spec.stages)
        self._dense = copied(subject.model) if timed or looked_at else subject.model
        self._folder = folder
        self._attached = contextlib.ExitStack()  # everything that others have of this object
        events = self._attached.enter_context(reporting(report))
        counts = static_counts(subject.dummy_input)
        given = state.optimizers, state.schedulers, self._dense if looked_at else None, spec.target.device
        self._loop = Loop(subject, spec.stages, spec.seed, events, stop, counts, *given)
        self._attached.callback(self._loop.close)
        self.callbacks = Callbacks(self._loop, self._end)
        # A hook must not keep alive what nobody else needs any more.
        before, collect = (
            weakref.WeakMethod(self.callbacks.optimizer_steps),
            weakref.WeakMethod(self._loop.collect_gradients),
        )
        for handle in state.watch(lambda: (before() or _nothing)(), lambda: (collect() or _nothing)()):
            self._attached.callback(handle.remove)
        # Not left to __del__: a handle that is garbage together with this object removes nothing any more.
        weakref.finalize(self, self._attached.close).atexit = False

    def __getattr__(self, name: str) -> Any:
        """A callback: compression.on_step_begin(batch) is compression.callbacks.on_step_begin(batch)."""
        if name.startswith("on_") and hasattr(Callbacks, name):
            return getattr(self.callbacks, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def model(self) -> nn.Module:
        """The model: the very object that was given."""
        return self._loop.model

    @property
    def masks(self) -> Masks:
        """What is masked now and not cut away; 1 = kept, shaped like the parameter."""
        return self._loop.context.masks

    @property
    def result(self) -> CompressionResult:
        """The result, as mp.compress gives it.

        Raises:
            InvalidModelError: on_train_end was not called yet, or failed.
        """
        outcome, measured = self.finished()
        return result_of(outcome, measured, self.spec, self.subject)

    def finished(self) -> tuple[RecipeOutcome, Measured]:
        """What came out, and its measures; InvalidModelError as for `result`."""
        if self._outcome is None or self._measured is None:
            raise InvalidModelError(self.callbacks.unfinished())
        return self._outcome, self._measured

    def score(self) -> Score:
        """The evaluator's score of the model as it is now, without effect on the training.

        Raises:
            InvalidModelError: there is no evaluator.
        """
        evaluator = self.subject.evaluator
        if evaluator is None or not evaluator.can_evaluate:
            raise InvalidModelError("there is nothing to score with; give prepare_compression() an evaluator")
        return score_aside(evaluator, self.model, self.spec.seed)

    def epochs(self, count: int) -> Iterator[int]:
        """The numbers of the epochs to train, for the loop's `for`: 0 to count - 1.

        Where a job's script was interrupted and gave its optimizers, the numbers go on behind the last finished epoch,
        and model, masks, optimizers, schedulers and random numbers are as they were then. Call on_train_begin() before.
        """
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise InvalidModelError(f"epochs() was given {count!r}; give the number of epochs, 1 or more")
        self.callbacks.between_epochs()
        self._loop.total = count
        first = self._state.resume(self._loop)
        self.callbacks.go_on_at(first)
        self._loop.emit(f"{count - first} epochs to train" + (f", from epoch {first + 1} on" if first else ""))
        for epoch in range(first, count):
            yield epoch
            self.callbacks.between_epochs()
            self._loop.epochs = epoch + 1
            self._state.save(self._loop)
            self._loop.emit(f"epoch {epoch + 1} of {count}, {self._loop.steps} steps")
            self._loop.stop()

    def __enter__(self) -> Compression:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        ended, why = self.callbacks.ended, self.callbacks.unfinished()
        self.close()
        if kind is None and not ended:
            raise InvalidModelError(why)

    def close(self) -> None:
        """Takes everything off again that was put on optimizers; nothing can be trained any more. Safe to repeat."""
        self.callbacks.close()
        self._attached.close()
        self._state.wait()

    def __del__(self) -> None:
        if not hasattr(self, "callbacks"):  # it was never complete
            return
        if self.callbacks.forgotten:
            log.error("a compression was thrown away without a result: %s", self.callbacks.unfinished())

    def _place(self) -> contextlib.AbstractContextManager[Any]:
        """Where the compressed model's program may be left: for as long as somebody needs it, or not at all."""
        if self._folder is not None:
            return contextlib.nullcontext(self._folder)
        return tempfile.TemporaryDirectory(prefix="modelpress-")

    def _end(self) -> None:
        try:
            with rng.fork_rng(), self._place() as folder:
                outcome = self._loop.end()
                self._state.finish(outcome)
                measured = self._measuring.compressed(outcome, self._dense, self.baseline, Path(folder))
        finally:
            self._attached.close()
        if outcome.stages and measured.score:
            outcome.stages[-1]["score"] = measured.score
        self._outcome, self._measured = outcome, measured
        self._ended()


def _nothing() -> None:
    """What is called in place of something that is gone."""


def _subject(model: Any, evaluator: Any, dummy_input: Any, teacher: nn.Module | None) -> Subject:
    subject = Subject(model, evaluator, dummy_input, teacher=teacher)
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        raise InvalidModelError(
            f"the model is wrapped in {type(model).__name__}; give prepare_compression() the model itself, and wrap it "
            "afterwards"
        )
    part = wrapped_part(model)
    if part is not None:
        what = "the model is" if not part else f"its part '{part}' is"
        raise InvalidModelError(
            f"{what} compiled or wrapped; give prepare_compression() the model itself, and compile it afterwards"
        )
    return subject


def _script() -> str:
    """The name of the script that runs, as a job could name it."""
    name = Path(getattr(sys.modules.get("__main__"), "__file__", None) or "loop.py").name
    return name if name.endswith(".py") and name.removesuffix(".py").isidentifier() else "loop.py"
