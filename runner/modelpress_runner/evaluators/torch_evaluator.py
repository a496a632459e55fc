"""The evaluator for plain PyTorch: the user's own training loop, training step and evaluation as functions."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from modelpress_runner.edits.wrappers import inner
from modelpress_runner.errors import InvalidModelError
from modelpress_runner.evaluators.base import Evaluator, Score
from modelpress_runner.evaluators.ddp import place, wrapped
from modelpress_runner.evaluators.limits import Limits
from modelpress_runner.evaluators.optimizer_hooks import after_step, before_step, stepped_within, unscaled
from modelpress_runner.evaluators.optimizer_state import load_optimizer, plain
from modelpress_runner.evaluators.parameter_groups import join
from modelpress_runner.evaluators.replay.tape import Tape
from modelpress_runner.evaluators.score import score_of
from modelpress_runner.evaluators.trace import Plan, call_of
from modelpress_runner.runtime import rng as seeding
from modelpress_runner.runtime import user_rng as generators
from modelpress_runner.runtime.preserve import devices_restored, flags_restored
from modelpress_runner.usercode.calling import user_code

LossPatch = Callable[[torch.Tensor, Any], torch.Tensor]


class TorchEvaluator(Evaluator):
    """Training and evaluation as plain functions. Whatever a recipe does not need may be left out.

    In a process group the model is wrapped in DistributedDataParallel for training, so training_func and training_step
    get the wrapped model, which must see this rank's share of the data; evaluating_func gets the model itself, on every
    rank, and rank 0's score counts. A model that comes wrapped is taken out first.

    A GradScaler may be used as ever. If it is made outside training_func its scale goes on from call to call. A step
    that it skips counts for the length of a training and else for nobody: no hook, no mask, no score.

    A run that was interrupted calls training_func again, from its begin: until the step at which the last checkpoint
    was taken the training step gives back the loss that it gave then, without a forward pass, and optimizers move
    nothing; then training goes on, bit for bit.

    Args:
        training_func: called as training_func(model, optimizers, training_step, lr_schedulers, max_steps, max_epochs),
            all positional, once for each training of a recipe; of the last two one is a number and the other None. It
            must honour both.
        optimizers: one or a list of: an optimizer made by mp.trace(Class)(...), or a function (params) -> Optimizer.
            training_func gets one or a list, as given here.
        training_step: training_step(batch, model, *args, **kwargs) -> loss, a tuple with the loss first, or a dict
            with the key 'loss'. training_func must call the one that it is given.
        lr_schedulers: none, one or a list of: a scheduler made by mp.trace, or a function (optimizer) -> scheduler or
            (params, optimizer) -> scheduler. The nth function gets the nth optimizer, or the only one.
        dummy_input: an example input: a tensor, or a tuple, list or dict of what the model takes.
        evaluating_func: evaluating_func(model) -> a number, higher is better unless the recipe says otherwise, or a
            dict of numbers with the key 'default'. Called in eval mode without gradients.
        resumable: False: training_func cannot be called again to go on; no checkpoints are taken while it trains.
        parallel: keyword arguments for DistributedDataParallel, as in {"find_unused_parameters": True}; False: the
            model is not wrapped, and training_func itself makes the processes train together.

    Raises:
        InvalidModelError: something is of the wrong kind, or training_func stands without optimizers or training_step.
    """

    train_needs = "training_func, optimizers and training_step"
    evaluate_needs = "evaluating_func"
    calls_function = True
    replays = True

    def __init__(
        self,
        training_func: Callable[..., Any] | None = None,
        optimizers: Any = None,
        training_step: Callable[..., Any] | None = None,
        lr_schedulers: Any = None,
        dummy_input: Any = None,
        evaluating_func: Callable[[nn.Module], Any] | None = None,
        *,
        resumable: bool = True,
        parallel: Mapping[str, Any] | bool = True,
    ) -> None:
        self._training_func = _callable(training_func, "training_func")
        self._training_step = _callable(training_step, "training_step")
        self._evaluating_func = _callable(evaluating_func, "evaluating_func")
        self._optimizer_sources, self._one_optimizer = _sources(optimizers, "optimizers")
        self._scheduler_sources, self._one_scheduler = _sources(lr_schedulers, "lr_schedulers")
        if training_func is not None and (training_step is None or not self._optimizer_sources):
            raise InvalidModelError(
                "TorchEvaluator has a training_func but no "
                + ("training_step" if training_step is None else "optimizers")
                + "; training needs both"
            )
        if self._scheduler_sources and not self._optimizer_sources:
            raise InvalidModelError("TorchEvaluator has lr_schedulers but no optimizers; give them too")
        self._check_scheduler_functions()
        self.dummy_input = dummy_input
        self.resumable = resumable
        if not isinstance(parallel, bool | Mapping):
            raise InvalidModelError(
                f"parallel must be True, False or a dict for DistributedDataParallel, not a {type(parallel).__name__}"
            )
        self._parallel = parallel
        self._plan: Plan | None = None
        self._model: nn.Module | None = None
        self._trained: nn.Module | None = None  # the bound model, or what it is wrapped in
        self._optimizers: list[torch.optim.Optimizer] = []
        self._schedulers: list[Any] = []
        self._patches: list[LossPatch] = []
        self._handles: list[Any] = []
        self._playing: Tape | None = None
        self._remarks: list[str] = []

    def _check_scheduler_functions(self) -> None:
        functions = [source for source in self._scheduler_sources if call_of(source) is None]
        for function in functions:
            if not isinstance(function, type) and _positional(function) not in (1, 2):
                raise InvalidModelError(
                    f"a scheduler function must take (optimizer) or (params, optimizer); {_name(function)} takes "
                    f"{_positional(function)} arguments"
                )
        most = len(self._optimizer_sources)
        if functions and most > 1 and len(self._scheduler_sources) != most:
            raise InvalidModelError(
                f"TorchEvaluator has {most} optimizers and {len(self._scheduler_sources)} lr_schedulers, so it is open "
                "which belongs to which; give as many functions as optimizers, or traced schedulers"
            )

    @property
    def can_train(self) -> bool:
        return self._training_func is not None

    @property
    def can_evaluate(self) -> bool:
        return self._evaluating_func is not None

    @property
    def model(self) -> nn.Module:
        if self._model is None:
            raise RuntimeError("the evaluator is not bound to a model")
        return self._model

    def user_objects(self) -> dict[str, Any]:
        return {
            "training_func": self._training_func,
            "training_step": self._training_step,
            "evaluating_func": self._evaluating_func,
        }

    def resolve(self, model: nn.Module) -> None:
        model = inner(model)
        traced = [s for s in (*self._optimizer_sources, *self._scheduler_sources) if call_of(s) is not None]
        try:
            self._plan = Plan.of(traced, model)
        except InvalidModelError:
            # A model that came out of an earlier compression has new parameters under the names known from before.
            if self._plan is None or not self._plan.fits(model):
                raise

    def bind(self, model: nn.Module) -> None:
        if self._model is not None:
            raise RuntimeError("the evaluator is already bound; unbind it first")
        model = inner(model)
        if self._plan is None:
            self.resolve(model)
        place(model)
        assert self._plan is not None
        with user_code("making the optimizers again"):
            built = iter(self._plan.build(model))
            self._optimizers = [
                checked_optimizer(next(built), "mp.trace made") if call_of(source) is not None else _made(source, model)
                for source in self._optimizer_sources
            ]
            self._schedulers = [
                next(built) if call_of(source) is not None else self._scheduler(source, index, model)
                for index, source in enumerate(self._scheduler_sources)
            ]
        for scheduler in self._schedulers:
            optimizer = getattr(scheduler, "optimizer", None)
            if optimizer is not None and not any(optimizer is own for own in self._optimizers):
                self._optimizers, self._schedulers = [], []
                raise InvalidModelError(
                    f"the scheduler {type(scheduler).__name__} belongs to an optimizer that is not among the "
                    "evaluator's optimizers; make it from one of them"
                )
        try:
            if self.extra_groups:
                join(self.extra_groups, self._optimizers[0], self._schedulers)
        except InvalidModelError:
            self._optimizers, self._schedulers = [], []
            raise
        self._model = model

    def _scheduler(self, source: Callable[..., Any], index: int, model: nn.Module) -> Any:
        optimizer = self._optimizers[index if len(self._optimizers) > 1 else 0]
        two = not isinstance(source, type) and _positional(source) == 2
        scheduler = source(list(model.parameters()), optimizer) if two else source(optimizer)
        if not callable(getattr(scheduler, "step", None)) or not callable(getattr(scheduler, "state_dict", None)):
            raise InvalidModelError(
                f"the scheduler function returned a {type(scheduler).__name__}; return a scheduler from "
                "torch.optim.lr_scheduler"
            )
        return scheduler

    def unbind(self) -> None:
        super().unbind()
        for handle in self._handles:
            handle.remove()
        self._handles, self._patches = [], []
        self._optimizers, self._schedulers = [], []
        self._model = self._trained = None

    def train(self, max_steps: int | None = None, max_epochs: int | None = None) -> None:
        model = self.model
        if self._training_func is None:
            raise InvalidModelError(f"the evaluator cannot train; give it {self.train_needs}")
        optimizers = self._optimizers[0] if self._one_optimizer else list(self._optimizers)
        schedulers: Any = None
        if self._schedulers:
            schedulers = self._schedulers[0] if self._one_scheduler else list(self._schedulers)
        limits = Limits(self._training_func, max_steps, max_epochs, self._schedulers)
        tape, self.tape = self.tape or Tape(model), None
        with flags_restored(model), torch.enable_grad(), user_code("training_func"):
            if self._trained is None:
                self._trained = model if self._parallel is False else wrapped(model, _options(self._parallel))
            if not self._trained.training:
                self._trained.train()
            self._playing = tape
            try:
                with tape.running(list({id(each): each for each in (self._trained, model)}.values()), self._optimizers):
                    self._training_func(self._trained, optimizers, self._step, schedulers, max_steps, max_epochs)
            finally:
                self._playing = None
        self._remarks = limits.remarks()

    def remarks(self) -> list[str]:
        return list(self._remarks)

    def _step(self, batch: Any, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self._playing is None:  # somebody has kept it for later
            return self._patched(batch, model, *args, **kwargs)
        return self._playing.loss(batch, lambda: self._patched(batch, model, *args, **kwargs))

    def _patched(self, batch: Any, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        assert self._training_step is not None
        output = self._training_step(batch, model, *args, **kwargs)
        loss = loss_in(output)
        for patch in self._patches:
            loss = patch(loss, batch)
        return with_loss(output, loss)

    def evaluate(self, model: nn.Module | None = None) -> Score:
        model = self.model if model is None else inner(model)
        if self._evaluating_func is None:
            raise InvalidModelError(f"the evaluator cannot evaluate; give it {self.evaluate_needs}")
        with contextlib.ExitStack() as undone:
            undone.enter_context(seeding.aside())
            undone.enter_context(generators.aside(self.user_objects()))
            undone.enter_context(devices_restored(model))
            undone.enter_context(flags_restored(model))
            undone.enter_context(torch.no_grad())
            model.eval()
            with user_code("evaluating_func"):
                value = self._evaluating_func(model)
        return score_of(value)

    def optimizers(self) -> Iterator[torch.optim.Optimizer]:
        return iter(self._optimizers)

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimizers": [plain(optimizer.state_dict()) for optimizer in self._optimizers],
            "schedulers": [plain(scheduler.state_dict()) for scheduler in self._schedulers],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            load_optimizer(optimizer, saved)
        for scheduler, saved in zip(self._schedulers, state["schedulers"], strict=True):
            scheduler.load_state_dict(copy.copy(saved))

    def patch_loss(self, patch: LossPatch) -> None:
        self._patches.append(patch)

    def before_optimizer_step(self, hook: Callable[[], None]) -> None:
        if self._optimizers:
            self._handles.append(before_step(self._optimizers[0], hook))

    def after_optimizer_step(self, hook: Callable[[], None]) -> None:
        for optimizer in self._optimizers:
            self._handles.append(after_step(optimizer, hook))

    def gradient(self, parameter: nn.Parameter) -> torch.Tensor | None:
        return unscaled(parameter, self._optimizers)


def loss_in(output: Any) -> torch.Tensor:
    """The loss in what a training step returned: itself, the first of a tuple or list, or the key 'loss'.

    Raises:
        InvalidModelError: there is no loss.
    """
    loss = output
    if isinstance(output, Mapping):
        if "loss" not in output:
            keys = ", ".join(map(repr, output)) or "no keys"
            raise InvalidModelError(f"training_step returned a dict with {keys}; it needs the key 'loss'")
        loss = output["loss"]
    elif isinstance(output, tuple | list) and output:
        loss = output[0]
    if not isinstance(loss, torch.Tensor):
        raise InvalidModelError(
            f"training_step returned {type(output).__name__} without a loss tensor; return the loss, a tuple with the "
            "loss first, or a dict with the key 'loss'"
        )
    return loss


def with_loss(output: Any, loss: torch.Tensor) -> Any:
    """`output` of a training step in its own form, with another loss in it; the given object is not changed."""
    if isinstance(output, Mapping):
        if output["loss"] is loss:
            return output
        changed = copy.copy(output)
        changed["loss"] = loss  # type: ignore[index]
        return changed
    if isinstance(output, tuple | list):
        if output[0] is loss:
            return output
        if hasattr(output, "_replace") and hasattr(output, "_fields"):
            return output._replace(**{output._fields[0]: loss})
        return type(output)([loss, *output[1:]])
    return loss


def _callable(value: Any, name: str) -> Any:
    if value is not None and not callable(value):
        raise InvalidModelError(f"{name} must be a function, not a {type(value).__name__}")
    return value


def _sources(value: Any, name: str) -> tuple[list[Any], bool]:
    """The traced objects and functions in an argument, and whether it was a single one."""
    if value is None:
        return [], False
    single = not isinstance(value, list | tuple)
    sources = [value] if single else list(value)
    for source in sources:
        check_place(source, name)
        if call_of(source) is None and (isinstance(source, torch.optim.Optimizer) or not callable(source)):
            kind = type(source).__name__
            raise InvalidModelError(
                f"{name} holds a {kind} that was not traced, so it cannot be built again for a smaller model; make it "
                f"with mp.trace({kind})(...) or give a function that makes it"
            )
    return sources, single


def check_place(source: Any, name: str) -> None:
    """Raises InvalidModelError for a scheduler among the optimizers, or the other way round."""
    kind = type(source).__name__
    if name.startswith("optimizer") and is_scheduler(source):
        place, holder = name.replace("optimizer", "lr_scheduler"), getattr(source, "optimizer", None)
        instead = "an optimizer" if holder is None else f"the {type(holder).__name__} that it was made from"
        raise InvalidModelError(
            f"{name} holds a {kind}, which is a scheduler; give it as {place}, and {instead} as {name}"
        )
    if name.startswith("lr_scheduler") and isinstance(source, torch.optim.Optimizer):
        raise InvalidModelError(
            f"{name} holds a {kind}, which is an optimizer; give it as {name.replace('lr_scheduler', 'optimizer')}"
        )


def is_scheduler(value: Any) -> bool:
    """Whether `value` is a scheduler of learning rates, or a class of one."""
    kind = value if isinstance(value, type) else type(value)
    return issubclass(kind, torch.optim.lr_scheduler.LRScheduler | torch.optim.lr_scheduler.ReduceLROnPlateau)


def _made(factory: Callable[..., Any], model: nn.Module) -> Any:
    return checked_optimizer(factory(list(model.parameters())), "the optimizer function returned")


def checked_optimizer(optimizer: Any, what: str) -> Any:
    """`optimizer`, if it is one, or wraps one and can be stepped and saved like one.

    Raises:
        InvalidModelError: it is neither.
    """
    parts = ("step", "zero_grad", "state_dict", "load_state_dict", "param_groups")
    if isinstance(optimizer, torch.optim.Optimizer):
        return optimizer
    missing = [part for part in parts if not hasattr(optimizer, part)]
    if missing or not stepped_within(optimizer):
        raise InvalidModelError(
            f"{what} a {type(optimizer).__name__}; return a torch.optim.Optimizer, or what wraps one and has "
            f"{', '.join(parts)}"
        )
    return optimizer


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _options(parallel: Mapping[str, Any] | bool) -> Mapping[str, Any] | None:
    return parallel if isinstance(parallel, Mapping) else None


def _positional(function: Callable[..., Any]) -> int:
    """How many positional arguments a function must be given; 1 if that cannot be said."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return 1
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = sum(1 for p in parameters if p.kind in kinds and p.default is inspect.Parameter.empty)
    takes_one = any(p.kind in (*kinds, inspect.Parameter.VAR_POSITIONAL) for p in parameters)
    return max(needed, 1) if takes_one else 0
