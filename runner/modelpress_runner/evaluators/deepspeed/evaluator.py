"""The evaluator for training loops over a DeepSpeed engine."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from modelpress_runner.errors import InvalidModelError
from modelpress_runner.evaluators.base import Evaluator, Score
from modelpress_runner.evaluators.deepspeed import config as deepspeed_config
from modelpress_runner.evaluators.deepspeed import group
from modelpress_runner.evaluators.deepspeed.engine import FOREIGN, EngineHandle
from modelpress_runner.evaluators.footprint import Footprint
from modelpress_runner.evaluators.limits import Limits
from modelpress_runner.evaluators.optimizer_state import plain
from modelpress_runner.evaluators.replay.tape import Tape
from modelpress_runner.evaluators.score import score_of
from modelpress_runner.evaluators.torch_evaluator import LossPatch, _positional, check_place, loss_in, with_loss
from modelpress_runner.evaluators.trace import Plan, call_of
from modelpress_runner.runtime import distributed as ranks
from modelpress_runner.runtime import rng as seeding
from modelpress_runner.runtime import user_rng as generators
from modelpress_runner.runtime.preserve import flags_restored
from modelpress_runner.usercode.calling import user_code

log = logging.getLogger("modelpress")

_RESUME = {  # argument of load_checkpoint: type
    "load_dir": str,
    "tag": str,
    "load_module_strict": bool,
    "load_optimizer_states": bool,
    "load_lr_scheduler_states": bool,
    "load_module_only": bool,
    "custom_load_fn": object,
}


class DeepspeedTorchEvaluator(Evaluator):
    """Training with a DeepSpeed engine, evaluation as a plain function.

    A run that was interrupted calls training_func again, as a TorchEvaluator does: what engine.backward() and
    engine.step() do is left out until the step of the last checkpoint, then training goes on, bit for bit.

    The engine is made anew for every binding and ended afterwards, when the model is whole again: plain tensors in the
    precision that they had before. Without a process group one of this process alone is made for that time.

    Args:
        training_func: called as training_func(engine, optimizer, training_step, lr_scheduler, max_steps, max_epochs),
            all positional; of the last two one is a number and the other None. It calls engine.backward(loss) and
            engine.step(), and honours the limits: max_steps counts optimizer steps (engine.global_steps).
        training_step: training_step(batch, engine, *args, **kwargs) -> loss, a tuple with the loss first, or a dict
            with the key 'loss'. training_func must call the one that it is given.
        deepspeed: DeepSpeed's configuration, a dict or the path of a JSON file.
        optimizer: made by mp.trace(Class)(...), or a function (params) -> Optimizer; none: the configuration's.
        lr_scheduler: made by mp.trace from that optimizer, or a function (optimizer) -> scheduler or (params,
            optimizer) -> scheduler: stepped by training_func. None: the configuration's, if it has one, which DeepSpeed
            steps itself.
        resume_from_checkpoint_args: a checkpoint of DeepSpeed's that the model starts from: load_dir and, optional,
            tag, load_module_strict, load_optimizer_states, load_lr_scheduler_states, load_module_only, custom_load_fn.
            The weights are loaded once, before anything is compressed; optimizer and scheduler start each training
            from the checkpoint as long as the model has the shapes that are in it.
        dummy_input: an example input: a tensor, or a tuple, list or dict of what the model takes.
        evaluating_func: evaluating_func(model) -> a number, or a dict of numbers with the key 'default'. Called in eval
            mode without gradients, with a module that is called like the model, not with the engine.
        resumable: False: training_func cannot be called again to go on; no checkpoints are taken while it trains.

    Raises:
        InvalidModelError: something is of the wrong kind, missing, given twice, or cannot go together.
    """

    train_needs = "training_func and training_step"
    evaluate_needs = "evaluating_func"
    calls_function = True
    replays = True

    def __init__(
        self,
        training_func: Callable[..., Any] | None,
        training_step: Callable[..., Any] | None,
        deepspeed: Any,
        optimizer: Any = None,
        lr_scheduler: Any = None,
        resume_from_checkpoint_args: Mapping[str, Any] | None = None,
        dummy_input: Any = None,
        evaluating_func: Callable[[nn.Module], Any] | None = None,
        *,
        resumable: bool = True,
    ) -> None:
        functions = {"training_func": training_func, "training_step": training_step, "evaluating_func": evaluating_func}
        for name, function in functions.items():
            if function is not None and not callable(function):
                raise InvalidModelError(f"{name} must be a function, not a {type(function).__name__}")
        if training_func is not None and training_step is None:
            raise InvalidModelError("DeepspeedTorchEvaluator has a training_func but no training_step; give both")
        self._functions: dict[str, Any] = functions
        self._config = deepspeed_config.read(deepspeed)
        self._optimizer = _source(optimizer, "optimizer", torch.optim.Optimizer)
        self._scheduler = _source(lr_scheduler, "lr_scheduler", torch.optim.lr_scheduler.LRScheduler)
        self._check_combination()
        self._resume = _resume_arguments(resume_from_checkpoint_args)
        self.dummy_input = dummy_input
        self.resumable = resumable
        self._plan: Plan | None = None
        self._group: group.ProcessGroup | None = None
        self._model: nn.Module | None = None
        self._handle: EngineHandle | None = None
        self._dense_shapes: list[torch.Size] = []
        self._lr_scheduler: Any = None
        self._patches: list[LossPatch] = []
        self._playing: Tape | None = None
        self._remarks: list[str] = []

    def _check_combination(self) -> None:
        if self._optimizer is not None and "optimizer" in self._config:
            raise InvalidModelError(
                "an optimizer is given twice, as argument and as deepspeed.optimizer; leave out one of them"
            )
        if self._optimizer is None and "optimizer" not in self._config and self.can_train:
            raise InvalidModelError(
                "there is no optimizer to train with; give one made by mp.trace, a function (params) -> Optimizer, or "
                "deepspeed.optimizer"
            )
        if self._scheduler is None:
            return
        if "scheduler" in self._config:
            raise InvalidModelError(
                "a scheduler is given twice, as argument and as deepspeed.scheduler; leave out one of them"
            )
        if call_of(self._scheduler) is not None and call_of(self._optimizer) is None:
            raise InvalidModelError(
                "the lr_scheduler is an object, made from an optimizer that is not the one given; give a function "
                "(optimizer) -> scheduler, or the traced optimizer that it was made from"
            )

    @property
    def sharded(self) -> bool:  # type: ignore[override]
        """Whether each rank holds a part of the optimizer only."""
        low = any(self._config.get(part, {}).get("enabled", False) for part in ("bf16", "fp16"))
        return deepspeed_config.stage(self._config) >= 1 or low

    @property
    def parts(self) -> bool:  # type: ignore[override]
        """Whether each rank holds a part of each weight only."""
        return bool(deepspeed_config.stage(self._config) == 3)

    @property
    def can_train(self) -> bool:
        return self._functions["training_func"] is not None

    @property
    def can_evaluate(self) -> bool:
        return self._functions["evaluating_func"] is not None

    @property
    def model(self) -> nn.Module:
        if self._model is None:
            raise RuntimeError("the evaluator is not bound to a model")
        return self._model

    @property
    def engine(self) -> Any:
        """The DeepSpeedEngine around the bound model. RuntimeError if there is none."""
        return self._bound.engine

    @property
    def _bound(self) -> EngineHandle:
        if self._handle is None:
            raise RuntimeError("the evaluator is not bound to a model that it can train")
        return self._handle

    def user_objects(self) -> dict[str, Any]:
        return dict(self._functions)

    def resolve(self, model: nn.Module) -> None:
        traced = [source for source in (self._optimizer, self._scheduler) if call_of(source) is not None]
        try:
            self._plan = Plan.of(traced, model)
        except InvalidModelError:
            if self._plan is None or not self._plan.fits(model):
                raise
        if self._resume is not None:
            self._load_weights(model)

    def _load_weights(self, model: nn.Module) -> None:
        """The checkpoint's weights, into the model that a compression begins with."""
        assert self._resume is not None
        self._dense_shapes = [parameter.shape for parameter in model.parameters()]
        self._start(model)
        try:
            only = {"load_module_only": True, "load_optimizer_states": False, "load_lr_scheduler_states": False}
            self._load_checkpoint({**self._resume, **only})
        finally:
            self._end()

    def _load_states(self, handle: EngineHandle) -> None:
        """Optimizer and scheduler of the checkpoint, and none of its weights."""
        assert self._resume is not None
        values = handle.exact_values()
        own, handle.engine.lr_scheduler = handle.engine.lr_scheduler, self._lr_scheduler
        try:
            self._load_checkpoint(self._resume)
        finally:
            handle.engine.lr_scheduler = own
        handle.set_values(values)

    def _load_checkpoint(self, arguments: dict[str, Any]) -> None:
        with group.quiet(), user_code("loading DeepSpeed's checkpoint", InvalidModelError):
            path, _ = self._bound.engine.load_checkpoint(**arguments)
        if path is None:
            where = " with the tag " + repr(arguments["tag"]) if arguments.get("tag") else ""
            raise InvalidModelError(
                f"resume_from_checkpoint_args: there is no checkpoint of DeepSpeed in {arguments['load_dir']}{where}; "
                "correct load_dir or tag"
            )

    def bind(self, model: nn.Module) -> None:
        if self._model is not None:
            raise RuntimeError("the evaluator is already bound; unbind it first")
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            raise InvalidModelError(f"the model is wrapped in {type(model).__name__}; give the module itself")
        if self._plan is None:
            self.resolve(model)
        if self.can_train:
            shapes = [parameter.shape for parameter in model.parameters()]
            self._start(model)
            if self._resume is not None and not self._resume.get("load_module_only") and shapes == self._dense_shapes:
                self._load_states(self._bound)
            try:
                self._bound.join(self.extra_groups, [] if self._lr_scheduler is None else [self._lr_scheduler])
            except BaseException:
                self._end()
                raise
        self._model = model

    def _start(self, model: nn.Module) -> None:
        self._group = group.ProcessGroup()
        try:
            with seeding.aside(), user_code("making the DeepSpeed engine"):
                self._handle = EngineHandle(model, lambda: self._engine(model), Footprint(model, FOREIGN))
        except BaseException:
            self._end()
            raise

    def _engine(self, model: nn.Module) -> Any:
        assert self._plan is not None
        deepspeed = group.load()
        built = iter(self._plan.build(model))
        optimizer = next(built) if call_of(self._optimizer) is not None else None
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if optimizer is None and self._optimizer is not None:
            optimizer = self._optimizer(parameters)
            if not isinstance(optimizer, torch.optim.Optimizer):
                raise InvalidModelError(
                    f"the optimizer function returned a {type(optimizer).__name__}; return a torch.optim.Optimizer"
                )
        scheduler = next(built) if call_of(self._scheduler) is not None else None
        config = deepspeed_config.for_engine(self._config, ranks.world(), optimizer is not None)
        with group.quiet():
            engine, *_ = deepspeed.initialize(
                model=model,
                optimizer=optimizer,
                model_parameters=parameters,
                config=config,
                dist_init_required=False,
            )
        if scheduler is None and self._scheduler is not None:
            held = engine.optimizer if optimizer is None else optimizer
            while not isinstance(held, torch.optim.Optimizer) and hasattr(held, "optimizer"):
                held = held.optimizer
            scheduler = (
                self._scheduler(parameters, held) if _positional(self._scheduler) >= 2 else self._scheduler(held)
            )
        self._lr_scheduler = scheduler if self._scheduler is not None else engine.lr_scheduler
        return engine

    def unbind(self) -> None:
        super().unbind()
        self._end()

    def _end(self) -> None:
        try:
            if self._handle is not None:
                self._handle.hand_back()
        finally:
            self._handle = self._lr_scheduler = self._model = None
            self._patches = []
            if self._group is not None:
                self._group.close()
                self._group = None

    def train(self, max_steps: int | None = None, max_epochs: int | None = None) -> None:
        model, training_func = self.model, self._functions["training_func"]
        if training_func is None:
            raise InvalidModelError(f"the evaluator cannot train; give it {self.train_needs}")
        handle = self._bound
        engine = handle.engine
        given = [] if self._lr_scheduler is None else [self._lr_scheduler]
        limits = Limits(training_func, max_steps, max_epochs, given)
        tape, self.tape = self.tape or Tape(model), None
        with flags_restored(model), torch.enable_grad(), group.quiet(), user_code("training_func"):
            if not (engine.training and engine.module.training):
                engine.train()
            self._playing = tape
            try:
                with tape.running([engine, model], [], group.folder()), handle.recorded(tape):
                    training_func(engine, engine.optimizer, self._step, self._lr_scheduler, max_steps, max_epochs)
            finally:
                self._playing = None
        handle.drop_gradients()
        self._remarks = limits.remarks()

    def _step(self, batch: Any, engine: Any, *args: Any, **kwargs: Any) -> Any:
        if self._playing is None:  # somebody has kept it for later
            return self._patched(batch, engine, *args, **kwargs)
        return self._playing.loss(batch, lambda: self._patched(batch, engine, *args, **kwargs))

    def _patched(self, batch: Any, engine: Any, *args: Any, **kwargs: Any) -> Any:
        output = self._functions["training_step"](batch, engine, *args, **kwargs)
        loss = loss_in(output)
        for patch in self._patches:
            loss = patch(loss, batch)
        return with_loss(output, loss)

    def evaluate(self, model: nn.Module | None = None) -> Score:
        if model is None:
            model = self.model
        evaluating_func = self._functions["evaluating_func"]
        if evaluating_func is None:
            raise InvalidModelError(f"the evaluator cannot evaluate; give it {self.evaluate_needs}")
        with contextlib.ExitStack() as undone:
            undone.enter_context(seeding.aside())
            undone.enter_context(generators.aside(self.user_objects()))
            undone.enter_context(flags_restored(model))
            undone.enter_context(torch.no_grad())
            undone.enter_context(group.quiet())
            model.eval()
            with user_code("evaluating_func"):
                value = evaluating_func(model)
        return score_of(value)

    def remarks(self) -> list[str]:
        return list(self._remarks)

    def optimizers(self) -> Iterator[torch.optim.Optimizer]:
        return iter(() if self._handle is None else (self._handle.optimizer,))

    def state_dict(self) -> dict[str, Any]:
        if self._handle is None:
            return {}
        scheduler = None if self._lr_scheduler is None else plain(self._lr_scheduler.state_dict())
        return {**self._bound.state_dict(), "scheduler": scheduler}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._handle is None:
            return
        self._handle.load_state_dict(state)
        if self._lr_scheduler is not None:
            self._lr_scheduler.load_state_dict(dict(state["scheduler"]))

    def patch_loss(self, patch: LossPatch) -> None:
        self._patches.append(patch)

    def before_optimizer_step(self, hook: Callable[[], None]) -> None:
        if self._handle is not None:
            self._handle.before_step(hook)

    def after_optimizer_step(self, hook: Callable[[], None]) -> None:
        if self._handle is not None:
            self._handle.after_step(hook)

    def gradient(self, parameter: nn.Parameter) -> torch.Tensor | None:
        return self._bound.gradient(parameter)

    @contextlib.contextmanager
    def whole_parameters(self, modify: bool = False) -> Iterator[None]:
        if self._handle is None:
            yield
            return
        with self._handle.whole_parameters(modify):
            yield


def _source(given: Any, name: str, kind: type) -> Any:
    """A traced object or a function; None if nothing is given."""
    check_place(given, name)
    if given is None or call_of(given) is not None:
        return given
    what = type(given).__name__
    if isinstance(given, list | tuple):
        raise InvalidModelError(f"{name} is a {what}; DeepSpeed takes one: give it alone")
    if isinstance(given, kind):
        raise InvalidModelError(
            f"{name} is a {what} that was not traced, so it cannot be built again for a smaller model; make it with "
            f"mp.trace({what})(...) or give a function that makes it"
        )
    if not callable(given):
        raise InvalidModelError(f"{name} is a {what}; give what mp.trace made, or a function that makes it")
    return given


def _resume_arguments(given: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The checked arguments of load_checkpoint; None if nothing is to be loaded."""
    if given is None:
        return None
    where = "resume_from_checkpoint_args"
    if not isinstance(given, Mapping):
        raise InvalidModelError(f"{where} is a {type(given).__name__}; give a dict with load_dir")
    for name, value in given.items():
        if name not in _RESUME:
            raise InvalidModelError(f"{where} has no {name!r}; it takes {', '.join(_RESUME)}")
        if value is not None and not isinstance(value, _RESUME[name]):
            raise InvalidModelError(f"{where}.{name} is a {type(value).__name__}; give a {_RESUME[name].__name__}")
    if not given.get("load_dir"):
        raise InvalidModelError(f"{where} needs load_dir, the folder that DeepSpeed's save_checkpoint wrote to")
    return {name: value for name, value in given.items() if value is not None}
