"""Training a bound LightningModule: one fit, or several with the same optimizers, schedulers and counters."""

from __future__ import annotations

import contextlib
import copy
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from modelpress_runner.errors import InvalidModelError
from modelpress_runner.evaluators import optimizer_hooks as steps
from modelpress_runner.evaluators.framework_residue import FrameworkResidue
from modelpress_runner.evaluators.lightning.data import Data
from modelpress_runner.evaluators.lightning.package import Package, is_a, lightning_code, quiet
from modelpress_runner.evaluators.lightning.trainer import LightningTrainerSource, states_of
from modelpress_runner.evaluators.optimizer_state import load_optimizer, plain
from modelpress_runner.runtime import distributed as ranks
from modelpress_runner.runtime import rng
from modelpress_runner.runtime.preserve import flags_restored

LossPatch = Callable[[torch.Tensor, Any], torch.Tensor]


class _Configured(BaseException):
    """Leaves a fit that was begun for its optimizers only."""


class Fit:
    """What belongs to one binding.

    Args:
        model: a LightningModule of `package`.
        package: Lightning as the user has imported it.
        source: makes Trainers.
        data: the data module.
        length: optimizer steps or epochs of the whole training, as the user's schedules shall see it; None and None:
            what the Trainer's own arguments say.

    Raises:
        InvalidModelError: the model cannot be trained like this.
        UserCodeError: the user's code raised.
    """

    def __init__(
        self,
        model: Any,
        package: Package,
        source: LightningTrainerSource,
        data: Data,
        length: tuple[int | None, int | None],
    ) -> None:
        self.model, self._package, self._source, self._data = model, package, source, data
        self._length = length
        self.patches: list[LossPatch] = []
        self.before_step: list[Callable[[], None]] = []
        self._handles: list[Any] = []
        self._loops: dict[str, Any] | None = None  # progress so far
        self._within = 0  # batches of the present epoch that were trained before its rest was left to the next fit
        self._ended = False  # the user's code has asked to stop
        self._until: tuple[int | None, int | None] | None = None  # the steps and epochs that the present call ends with
        self._cut = False  # the present fit is to be ended for a safe point
        self._stands_since: float | None = None  # the clock when it was, without what the safe point itself takes
        self.interruption = 0.0  # seconds between the last batch of a fit that was ended and the first of the next
        self._safe: Callable[[], None] | None = None
        self._wanted: Callable[[], bool] | None = None
        self._callbacks: dict[str, Any] = copy.deepcopy(source.callback_states)
        self._metrics: dict[str, Any] = {}
        self._precision: dict[str, Any] = {}
        self._batch: Any = None
        self._backwards = 0
        self._configuration: Any = None
        self.optimizers: list[torch.optim.Optimizer] = []
        self.schedulers: list[Any] = []
        self._configure()
        self._steps = 0  # of the first optimizer
        # Lightning works out the gradients in a closure that the step calls.
        self._handles.append(steps.before_step(self.optimizers[0], self._call_before))
        self._handles.append(steps.after_step(self.optimizers[0], self._count))

    def close(self) -> None:
        """Takes all hooks off the optimizers."""
        while self._handles:
            self._handles.pop().remove()
        self.before_step, self.patches, self._safe, self._wanted = [], [], None, None

    def after_step(self, hook: Callable[[], None]) -> None:
        """Calls `hook` after each step of any optimizer."""
        for optimizer in self.optimizers:
            self._handles.append(steps.after_step(optimizer, hook))

    # Optimizers -------------------------------------------------------------------------------------------------------

    def _configure(self) -> None:
        """Begins a fit and leaves it when Lightning has the optimizers: configure_optimizers() sees a Trainer."""
        model, original = self.model, self.model.configure_optimizers
        parameters = dict(model.named_parameters())
        types = {name: parameter.dtype for name, parameter in parameters.items()}

        @functools.wraps(original)
        def configure_optimizers() -> Any:
            self._configuration = original()
            if self._configuration is None:
                raise InvalidModelError(
                    f"{type(model).__name__}.configure_optimizers() returned None, so nothing can train; return an "
                    "optimizer"
                )
            return self._configuration

        def on_fit_start(callback: Any, trainer: Any, module: Any) -> None:
            self.optimizers = list(trainer.strategy.optimizers)
            self.schedulers = [each.scheduler for each in trainer.strategy.lr_scheduler_configs]
            trainer.callbacks, trainer.loggers = [], []  # they need not hear of an exception
            raise _Configured

        stop = type("Stop", (self._package.part("callbacks.Callback"),), {"on_fit_start": on_fit_start})()
        with rng.fork_rng(), self._at_work("configure_optimizers", configure_optimizers=configure_optimizers):
            trainer = self._source.for_training(self._package, *self._length)
            trainer.callbacks.insert(0, stop)
            data = self._data.module(self._package)
            with contextlib.suppress(_Configured), replaced(data, on_exception=lambda error: None):
                trainer.fit(model, datamodule=data)
        now = dict(model.named_parameters())
        if now.keys() != parameters.keys() or any(now[name] is not each for name, each in parameters.items()):
            raise InvalidModelError(
                f"{type(model).__name__} makes its layers anew in setup() or configure_model(), which would undo the "
                "compression; make them in __init__, or only if they are not there yet"
            )
        changed = next((name for name, each in now.items() if each.dtype != types[name]), None)
        if changed is not None:
            now_type = now[changed].dtype
            for name, each in now.items():
                each.data = each.data.to(types[name])
            raise InvalidModelError(
                f"the Trainer's precision turns the model into {now_type}; use a mixed precision ('bf16-mixed'), or "
                "give the model in that type"
            )

    def _answer(self, trainer: Callable[[], Any], generators: dict[str, Any]) -> Callable[[], Any]:
        """configure_optimizers() of a fit: the objects that are there, and what else has to go on."""

        @functools.wraps(type(self.model).configure_optimizers)
        def configure_optimizers() -> Any:
            # Some strategies seed all generators when they are set up.
            rng.restore(generators)
            for callback in trainer().callbacks:
                if callback.state_key in self._callbacks:
                    callback.load_state_dict(copy.deepcopy(self._callbacks[callback.state_key]))
            trainer()._logger_connector._callback_metrics.update(copy.copy(self._metrics))
            return self._configuration

        return configure_optimizers

    # Fits -------------------------------------------------------------------------------------------------------------

    def at_safe_points(self, hook: Callable[[], None], wanted: Callable[[], bool]) -> None:
        """Calls `hook` between two fits; asked after each step, `wanted` says whether to end one for that."""
        self._safe, self._wanted = hook, wanted

    def run(self, max_steps: int | None, max_epochs: int | None) -> None:
        """Trains on; with neither limit as long as the user's Trainer says.

        One fit, unless it has to be ended for a checkpoint or a score: then another one goes on where it was. When a
        callback of the user has asked to stop, nothing more is trained.
        """
        if self._ended:
            return
        if self._until is None:  # else it goes on with a call that was broken off
            end = None if max_steps is None else self._steps + max_steps
            self._until = (end, None if max_epochs is None else self._epochs + max_epochs)
        end, epochs = self._until
        while True:
            self._cut = False
            self._run_fit(end, epochs)
            over = (end is not None and self._steps >= end) or (epochs is not None and self._epochs >= epochs)
            if over or self._ended or not self._cut:
                break
            if self._safe is not None:
                began = time.monotonic()
                self._safe()
                if self._stands_since is not None:
                    self._stands_since += time.monotonic() - began
        self._until = None

    def _enough(self, trainer: Any, end: int | None) -> bool:
        """Whether the present fit is to end here, within an epoch or at its end."""
        if end is not None and self._steps >= end:
            return True
        # What was fetched ahead, where the length is not known, would be lost: then an epoch is not cut.
        whole = self._data.loader is None or trainer.fit_loop._data_fetcher.length is None
        enough = self._cut and (not whole or bool(trainer.fit_loop.epoch_loop.batch_progress.is_last_batch))
        if enough and self._stands_since is None:
            self._stands_since = time.monotonic()
        return enough

    def _run_fit(self, end: int | None, epochs: int | None) -> None:
        whole = (
            # Lightning adds up the steps of all optimizers.
            None if end is None else max(end, self._length[0] or 0) if len(self.optimizers) == 1 else -1,
            None if epochs is None else max(epochs, self._length[1] or 0),
        )
        made: list[Any] = []
        self._backwards = 0
        answer = self._answer(lambda: made[0], rng.capture())
        patched = {"training_step": self._training_step(), "configure_optimizers": answer}
        if not self.model.automatic_optimization:
            patched["manual_backward"] = self._manual_backward()
        with self._at_work("training", **patched):
            trainer = self._source.for_training(self._package, *whole)
            made.append(trainer)
            loop = _limited(trainer, lambda: self._enough(trainer, end), epochs, self._data)
            self._go_on(trainer)
            if not self.model.training:
                self.model.train()
            with torch.enable_grad():
                trainer.fit(self.model, datamodule=self._data.module(self._package))
        self._remember(trainer, loop)

    @property
    def _epochs(self) -> int:
        return 0 if self._loops is None else int(self._loops["epoch_progress"]["current"]["processed"])

    def _count(self) -> None:
        self._steps += 1
        if self._wanted is not None and not self._cut:
            self._cut = self._wanted()

    def _go_on(self, trainer: Any) -> None:
        """Gives a Trainer the counters of the one before, as Lightning does when it resumes from a checkpoint."""
        if self._precision:
            trainer.precision_plugin.load_state_dict(copy.deepcopy(self._precision))
        if self._loops is None:
            return
        loop = trainer.fit_loop
        loop.load_state_dict(copy.deepcopy(self._loops))
        for each in _loops(loop):
            each._restarting = each._loaded_from_state_dict = each._resuming_from_checkpoint = False
        loop._resuming_from_checkpoint = True  # the data are iterated over once, not twice
        if self._within:
            loop._restarting = loop.epoch_loop._restarting = True
            self._data.go_on_behind(self._within)

    def _remember(self, trainer: Any, loop: Any) -> None:
        self._loops = plain(trainer.fit_loop.state_dict())
        self._within = loop.within
        if not self._within:  # what belongs to the end of an epoch came in between
            self._stands_since = None
        if self._within:
            # Lightning counts an epoch that was cut as over; its rest comes in the next fit.
            for counts in self._loops["epoch_progress"].values():
                counts["processed"] -= 1
                counts["completed"] -= 1
        self._callbacks = states_of(trainer.callbacks)
        self._metrics = plain(dict(trainer.callback_metrics))
        self._precision = copy.deepcopy(trainer.precision_plugin.state_dict())
        self._ended = ranks.any_rank(bool(trainer.should_stop))

    # Patches ----------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _at_work(self, what: str, **patched: Any) -> Iterator[None]:
        with contextlib.ExitStack() as reverted:
            reverted.enter_context(lightning_code(self._package, f"{what} of {type(self.model).__name__}"))
            reverted.enter_context(untouched(self.model))
            reverted.enter_context(quiet(self._package))
            reverted.enter_context(replaced(self.model, **patched))
            yield

    def _training_step(self) -> Callable[..., Any]:
        original = self.model.training_step

        @functools.wraps(original)
        def training_step(*args: Any, **kwargs: Any) -> Any:
            if self._stands_since is not None:
                self.interruption, self._stands_since = time.monotonic() - self._stands_since, None
            self._batch = args[0] if args else next(iter(kwargs.values()), None)
            output = original(*args, **kwargs)
            if not self.model.automatic_optimization:
                return output
            if isinstance(output, torch.Tensor):
                return self._patched(output)
            if isinstance(output, Mapping) and isinstance(output.get("loss"), torch.Tensor):
                changed = copy.copy(output)
                changed["loss"] = self._patched(output["loss"])  # type: ignore[index]
                return changed
            return output  # None skips the batch; of anything else Lightning says what it thinks

        return training_step

    def _manual_backward(self) -> Callable[..., None]:
        original = self.model.manual_backward

        @functools.wraps(original)
        def manual_backward(loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
            self._backwards += 1
            original(self._patched(loss), *args, **kwargs)

        return manual_backward

    def _patched(self, loss: torch.Tensor) -> torch.Tensor:
        for patch in self.patches:
            loss = patch(loss, self._batch)
        return loss

    def _call_before(self) -> None:
        if self.patches and not self.model.automatic_optimization and not self._backwards:
            raise InvalidModelError(
                f"{type(self.model).__name__}.training_step steps an optimizer without self.manual_backward(loss); "
                "call that in place of loss.backward(), for what a method adds to the loss is added there"
            )
        for hook in self.before_step:
            hook()

    # State ------------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain data."""
        return {
            "optimizers": [plain(optimizer.state_dict()) for optimizer in self.optimizers],
            "schedulers": [plain(scheduler.state_dict()) for scheduler in self.schedulers],
            "loops": copy.deepcopy(self._loops),
            "steps": self._steps,
            "within": self._within,
            "ended": self._ended,
            "until": None if self._until is None else list(self._until),
            "callbacks": plain(self._callbacks),
            "metrics": plain(self._metrics),
            "precision": plain(self._precision),
            "data": self._data.state_dict(within=self._within > 0),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            load_optimizer(optimizer, saved)
        for scheduler, saved in zip(self.schedulers, state["schedulers"], strict=True):
            scheduler.load_state_dict(copy.copy(saved))
        self._loops, self._steps = copy.deepcopy(state["loops"]), state["steps"]
        self._within, self._ended = state["within"], state["ended"]
        self._until = None if state["until"] is None else (state["until"][0], state["until"][1])
        self._callbacks, self._metrics = plain(state["callbacks"]), plain(state["metrics"])
        self._precision = plain(state["precision"])
        self._data.load_state_dict(state["data"])


@contextlib.contextmanager
def replaced(target: Any, **attributes: Any) -> Iterator[None]:
    """Inside, `target` has these instance attributes, which stand in front of its class's methods."""
    before = {name: vars(target)[name] for name in attributes if name in vars(target)}
    vars(target).update(attributes)
    try:
        yield
    finally:
        for name in attributes:
            vars(target).pop(name, None)
        vars(target).update(before)


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Whatever Lightning does inside, afterwards modes, devices, hooks and Trainers of `model` are as they were."""
    trainers = [(each, vars(each)["_trainer"]) for each in model.modules() if is_a(each, "LightningModule")]
    residue = FrameworkResidue(model)
    try:
        with flags_restored(model):
            yield
    finally:
        residue.remove()
        for module, trainer in trainers:
            vars(module)["_trainer"] = trainer


def _loops(loop: Any) -> Iterator[Any]:
    """A loop and those within it."""
    yield loop
    for each in vars(loop).values():
        if hasattr(each, "_restarting") and each is not loop:
            yield from _loops(each)


def _limited(trainer: Any, enough: Callable[[], bool], epochs: int | None, data: Data) -> Any:
    """Makes the Trainer's loop end where the fit shall, while max_steps and max_epochs show those of the whole.

    Args:
        trainer: a new Trainer.
        enough: whether the fit is to end behind the present batch.
        epochs: the count of epochs at which it ends; None: it has no limit of epochs.
        data: told where a pass over the data is to go on.
    """
    fit_loop, epoch_loop = trainer.fit_loop, trainer.fit_loop.epoch_loop

    class FitLoop(type(fit_loop)):  # type: ignore[misc]
        within = 0  # batches that are trained of an epoch which the fit's end has cut

        @property
        def done(self) -> bool:
            over = epochs is not None and self.epoch_progress.current.processed >= epochs
            return over or enough() or super().done

        def on_advance_end(self) -> None:
            loop = self.epoch_loop
            cut = enough() and not loop._num_ready_batches_reached()
            self.within = loop.batch_progress.current.ready if cut else 0
            # What was fetched ahead, where the length is not known, would be lost.
            data.loader.keep = cut and self._data_fetcher.length is not None
            super().on_advance_end()

    class EpochLoop(type(epoch_loop)):  # type: ignore[misc]
        @property
        def _is_training_done(self) -> bool:
            return super()._is_training_done or enough()

    fit_loop.__class__, epoch_loop.__class__ = FitLoop, EpochLoop
    return fit_loop
