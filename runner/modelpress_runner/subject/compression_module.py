"""A model with its training as the methods of one class: a CompressionModule, and the evaluator that trains with it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from modelpress_runner.edits.wrappers import inner
from modelpress_runner.errors import InvalidModelError, InvalidSpecError
from modelpress_runner.evaluators.base import Evaluator, Score
from modelpress_runner.evaluators.ddp import move_to_rank_device, wrapped
from modelpress_runner.evaluators.optimizer_hooks import after_step, before_step, unscaled
from modelpress_runner.evaluators.optimizer_state import load_optimizer, plain
from modelpress_runner.evaluators.parameter_groups import join
from modelpress_runner.runtime.preserve import flags_restored
from modelpress_runner.subject.subject import Subject, as_evaluator, kind_of
from modelpress_runner.usercode.calling import user_code


class CompressionModule:
    """A model with its training as class methods. `model` and `evaluator` are needed, the others add abilities.

    A class is enough; of an object (what the entrypoint names or returns) the parts may be plain methods.

    Training in prune stages needs optimizer_factory, criterion and sparsifying_trainer; training afterwards needs
    optimizer_factory, criterion and post_compress_finetuning_trainer. Either trainer serves for both if it is alone.
    """

    @classmethod
    def model(cls) -> nn.Module:
        """The trained model; it may take keywords, which are then the recipe's model.args."""
        raise NotImplementedError

    @classmethod
    def evaluator(cls) -> Evaluator | Callable[[nn.Module], Any]:
        """A function model -> number (or dict with the key 'default'), or an Evaluator."""
        raise NotImplementedError

    @classmethod
    def optimizer_factory(cls) -> Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None:
        """A function parameters -> Optimizer."""
        return None

    @classmethod
    def criterion(cls) -> Callable[..., torch.Tensor] | None:
        """The loss as a function of the model's output and the target."""
        return None

    @classmethod
    def sparsifying_trainer(cls, algorithm_name: str) -> Callable[..., Any] | None:
        """trainer(model, optimizer, criterion, current_epoch): one epoch inside a prune stage."""
        return None

    @classmethod
    def post_compress_finetuning_trainer(cls, algorithm_name: str) -> Callable[..., Any] | None:
        """trainer(model, optimizer, criterion, current_epoch): one epoch after pruning."""
        return None

    @classmethod
    def post_compress_finetuning_epochs(cls, algorithm_name: str) -> int:
        """Epochs to finetune at the end of a recipe that has no finetune stage of its own."""
        return 0

    @classmethod
    def example_inputs(cls) -> Any:
        """Example inputs for the model."""
        return None

    @classmethod
    def calibration_data(cls) -> Iterable[Any] | None:
        """Batches for methods that need to see data, as Subject.calibration_data."""
        return None


_REQUIRED = ("model", "evaluator")
_TRAINERS = ("sparsifying_trainer", "post_compress_finetuning_trainer")
_OPTIONAL = (
    "optimizer_factory",
    "criterion",
    *_TRAINERS,
    "post_compress_finetuning_epochs",
    "example_inputs",
    "calibration_data",
)


def subject_of(module: type[CompressionModule] | CompressionModule, **args: Any) -> Subject:
    """The subject of a CompressionModule, a class or an object of it; `args` go to its `model`.

    Raises:
        InvalidModelError: a part is missing, raises or is of the wrong kind, or two parts would train.
    """
    name = module_name(module)
    for part in (*_REQUIRED, *_OPTIONAL):
        defined = inspect.getattr_static(module, part)
        if inspect.isclass(module) and inspect.isfunction(defined):
            raise InvalidModelError(f"{name}.{part} is a method of objects; put @classmethod before it")
        if part in _REQUIRED and not _defines(module, part):
            raise InvalidModelError(f"{name} does not define {part}(); add it as a classmethod")
    with user_code(f"{name}.model", InvalidModelError):
        model = module.model(**args)
    with user_code(f"{name}.evaluator", InvalidModelError):
        given = as_evaluator(module.evaluator())
    if given is None:
        raise InvalidModelError(f"{name}.evaluator() returned None; return a function model -> number")
    with user_code(f"{name}.example_inputs", InvalidModelError):
        example_inputs = module.example_inputs()
    with user_code(f"{name}.calibration_data", InvalidModelError):
        calibration_data = module.calibration_data()
    if not given.can_train:
        return Subject(model, ModuleEvaluator(module, given), example_inputs, calibration_data)
    own = [part for part in _TRAINERS if _defines(module, part)]
    if own:
        raise InvalidModelError(
            f"{name}.evaluator() returned an evaluator that trains, and {name} defines {own[0]}(), too; keep one"
        )
    return Subject(model, given, example_inputs, calibration_data)


def module_name(module: type[CompressionModule] | CompressionModule) -> str:
    """What messages call a CompressionModule."""
    return module.__name__ if isinstance(module, type) else type(module).__name__


def _defines(module: type[CompressionModule] | CompressionModule, part: str) -> bool:
    return inspect.getattr_static(module, part) is not inspect.getattr_static(CompressionModule, part)


class ModuleEvaluator(Evaluator):
    """Trains with the trainers of a CompressionModule, epoch by epoch; scores with its evaluator."""

    supports_max_steps = False
    train_needs = "optimizer_factory, criterion, and sparsifying_trainer or post_compress_finetuning_trainer"
    evaluate_needs = "evaluator"

    def __init__(self, module: type[CompressionModule] | CompressionModule, scorer: Evaluator) -> None:
        self._module, self._name = module, module_name(module)
        self._scorer = scorer
        self.dummy_input = scorer.dummy_input
        self._method, self._algorithm = "finetune", ""
        self._model: nn.Module | None = None
        self._trained: nn.Module | None = None  # the bound model, or what it is wrapped in
        self._optimizer: torch.optim.Optimizer | None = None
        self._epoch = self._until = 0  # epochs that are over, and those that the present call ends with
        self._safe: Callable[[], None] | None = None
        self._patches: list[Callable[[torch.Tensor, Any], torch.Tensor]] = []
        self._handles: list[Any] = []

    def rng_roots(self) -> dict[str, Any]:
        return {"module": self._module, **self._scorer.rng_roots()}

    def on_stage_begin(self, method: str, algorithm: str | None) -> None:
        self._method, self._algorithm = method, algorithm or ""

    def finetune_epochs(self, algorithm: str | None) -> int:
        """How many epochs the module wants at the end of a recipe without finetune stage.

        Raises:
            InvalidModelError: it wants some and cannot train, or no such number.
        """
        epochs: Any = self._asked("post_compress_finetuning_epochs", algorithm or "")
        if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 0:
            raise InvalidModelError(
                f"{self._name}.post_compress_finetuning_epochs() returned {epochs!r}; return 0 or more"
            )
        if epochs and not self.can_train:
            raise InvalidModelError(
                f"{self._name}.post_compress_finetuning_epochs() returned {epochs}, but {self._name} cannot train; "
                f"give it {self.train_needs}, or return 0"
            )
        return epochs

    def _asked(self, part: str, algorithm: str) -> Any:
        """What a part says for an algorithm; one that takes no argument says the same for all."""
        function = getattr(self._module, part)
        with user_code(f"{self._name}.{part}", InvalidModelError):
            return function(algorithm) if _takes_argument(function) else function()

    def _trainer(self) -> Callable[..., Any] | None:
        for part in _TRAINERS if self._method == "prune" else reversed(_TRAINERS):
            trainer = self._asked(part, self._algorithm)
            if trainer is not None:
                trained: Callable[..., Any] | None = self._function(
                    trainer, part, "a function (model, optimizer, criterion, current_epoch)"
                )
                return trained
        return None

    def _function(self, value: Any, part: str, wanted: str) -> Any:
        if value is not None and not callable(value):
            raise InvalidModelError(f"{self._name}.{part}() returned a {kind_of(value)}; return {wanted}")
        return value

    def _factory(self) -> Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None:
        with user_code(f"{self._name}.optimizer_factory", InvalidModelError):
            factory = self._module.optimizer_factory()
        made: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = self._function(
            factory, "optimizer_factory", "a function parameters -> Optimizer"
        )
        return made

    def _criterion(self) -> Callable[..., torch.Tensor] | None:
        with user_code(f"{self._name}.criterion", InvalidModelError):
            criterion = self._module.criterion()
        checked: Callable[..., torch.Tensor] | None = self._function(
            criterion, "criterion", "a function (output, target) -> loss"
        )
        return checked

    @property
    def can_train(self) -> bool:
        return all(part is not None for part in (self._factory(), self._criterion(), self._trainer()))

    @property
    def can_evaluate(self) -> bool:
        return self._scorer.can_evaluate

    @property
    def model(self) -> nn.Module:
        if self._model is None:
            raise RuntimeError("the evaluator is not bound to a model")
        return self._model

    def bind(self, model: nn.Module) -> None:
        if self._model is not None:
            raise RuntimeError("the evaluator is already bound; unbind it first")
        model = inner(model)
        move_to_rank_device(model)
        factory = self._factory()
        with user_code(f"the factory of {self._name}.optimizer_factory()"):
            optimizer = None if factory is None else factory(model.parameters())
        if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
            raise InvalidModelError(
                f"the factory of {self._name}.optimizer_factory() made a {kind_of(optimizer)}; it must make "
                "a torch.optim.Optimizer"
            )
        if optimizer is not None:
            join(self.extra_groups, optimizer, ())
        self._model, self._optimizer, self._epoch, self._until = model, optimizer, 0, 0

    def unbind(self) -> None:
        super().unbind()
        for handle in self._handles:
            handle.remove()
        self._handles, self._patches, self._safe = [], [], None
        self._model = self._trained = self._optimizer = None

    def train(self, max_steps: int | None = None, max_epochs: int | None = None) -> None:
        model = self.model
        if max_epochs is None:
            raise InvalidSpecError(f"{self._name} trains by epochs; give epochs instead of maxSteps")
        trainer, criterion = self._trainer(), self._criterion()
        if trainer is None or criterion is None or self._optimizer is None:
            raise InvalidModelError(f"{self._name} cannot train; give it {self.train_needs}")
        if self._trained is None:
            self._trained = wrapped(model)
        if self._epoch >= self._until:  # else it goes on with a call that was broken off
            self._until = self._epoch + max_epochs
        with flags_restored(model), torch.enable_grad(), self._patched(criterion) as loss:
            while self._epoch < self._until:
                if not self._trained.training:
                    self._trained.train()
                with user_code(f"the trainer of {self._name}"):
                    trainer(self._trained, self._optimizer, loss, self._epoch)
                self._epoch += 1
                if self._safe is not None and self._epoch < self._until:
                    self._safe()

    def _patched(self, criterion: Callable[..., torch.Tensor]) -> _PatchedCriterion:
        return _PatchedCriterion(criterion, self._patches)

    def evaluate(self, model: nn.Module | None = None) -> Score:
        return self._scorer.evaluate(self.model if model is None else model)

    def optimizers(self) -> Iterator[torch.optim.Optimizer]:
        return iter(() if self._optimizer is None else (self._optimizer,))

    def state_dict(self) -> dict[str, Any]:
        optimizers = [plain(each.state_dict()) for each in self.optimizers()]
        return {"epoch": self._epoch, "until": self._until, "optimizers": optimizers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._epoch, self._until = state["epoch"], state["until"]
        for optimizer, saved in zip(self.optimizers(), state["optimizers"], strict=True):
            load_optimizer(optimizer, saved)

    def at_safe_points(self, hook: Callable[[], None], wanted: Callable[[], bool]) -> None:
        """As in the protocol: behind each epoch."""
        self._safe = hook

    def patch_loss(self, patch: Callable[[torch.Tensor, Any], torch.Tensor]) -> None:
        """As in the protocol; `batch` is the tuple of what the criterion was called with."""
        self._patches.append(patch)

    def before_optimizer_step(self, hook: Callable[[], None]) -> None:
        if self._optimizer is not None:
            self._handles.append(before_step(self._optimizer, hook))

    def after_optimizer_step(self, hook: Callable[[], None]) -> None:
        if self._optimizer is not None:
            self._handles.append(after_step(self._optimizer, hook))

    def gradient(self, parameter: nn.Parameter) -> torch.Tensor | None:
        return unscaled(parameter, self.optimizers())


class _PatchedCriterion:
    """A criterion whose result goes through the loss patches, as a context: a module stays the module it is."""

    def __init__(self, criterion: Callable[..., torch.Tensor], patches: list[Callable[..., torch.Tensor]]) -> None:
        self._criterion, self._patches = criterion, patches
        self._handle: Any = None

    def __enter__(self) -> Callable[..., torch.Tensor]:
        if not self._patches:
            return self._criterion
        if isinstance(self._criterion, nn.Module):
            self._handle = self._criterion.register_forward_hook(lambda module, args, loss: self._apply(loss, args))
            return self._criterion
        return lambda *args, **kwargs: self._apply(self._criterion(*args, **kwargs), args)

    def _apply(self, loss: torch.Tensor, args: tuple[Any, ...]) -> torch.Tensor:
        for patch in self._patches:
            loss = patch(loss, args)
        return loss

    def __exit__(self, *_: object) -> None:
        if self._handle is not None:
            self._handle.remove()


def is_compression_module(value: Any) -> bool:
    """Whether `value` is a CompressionModule, as a class or an instance."""
    return (inspect.isclass(value) and issubclass(value, CompressionModule)) or isinstance(value, CompressionModule)


def _takes_argument(function: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return True
    return any(each.kind not in (each.KEYWORD_ONLY, each.VAR_KEYWORD) for each in parameters)
