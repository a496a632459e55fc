"""What every evaluator can do, whatever trains behind it."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from modelpress_runner.errors import InvalidModelError
from modelpress_runner.evaluators.ddp import move_to_rank_device
from modelpress_runner.evaluators.hooks import BackwardHook, ForwardHook, Hook, TensorHook, found, module_called
from modelpress_runner.evaluators.parameter_groups import ParameterGroup
from modelpress_runner.runtime.preserve import devices_restored

if TYPE_CHECKING:
    from modelpress_runner.evaluators.replay.tape import Tape

Score = dict[str, float]  # evaluator metrics; "default" is the score


class Evaluator(abc.ABC):
    """Adapter around a user's training and evaluation code.

    Lifecycle: `bind(model)` builds optimizers and schedulers again for this very model; `train` and `evaluate` work on
    the bound model; `unbind` reverts everything, after which it may be bound to another model. Binding twice without
    unbinding raises RuntimeError.
    """

    dummy_input: Any  # a tensor, tuple, list or dict of tensors as the model takes them, or None
    resumable: bool = True  # False: no checkpoints are taken inside of a training
    supports_max_steps: bool = True  # False: train() knows epochs only
    train_needs: str = "what it needs to train"  # what to give so that can_train holds, for messages
    evaluate_needs: str = "what it needs to evaluate"
    sharded: bool = False  # True: state_dict differs between ranks, so that of every rank is kept
    parts: bool = False  # True: while bound, each rank has a part of each parameter only
    calls_function: bool = False  # True: `train` calls a training function of the user's, with the tape around it
    replays: bool = False  # True: to go on inside of a training it calls that function again, from its begin
    scores_inside: bool = True  # False: the bound model cannot be evaluated before `train` returns
    goes_on_here: bool = True  # False: the present safe point is one to stop at only
    tape: Tape | None = None  # of the coming call of `train`, where `calls_function`
    # Of what goes along with the coming training: `bind` adds them to the first optimizer, `unbind` forgets them.
    extra_groups: Sequence[ParameterGroup] = ()
    _hooks: tuple[Hook, ...] = ()  # on the bound model

    @property
    @abc.abstractmethod
    def can_train(self) -> bool:
        """Whether `train` will work."""

    @property
    @abc.abstractmethod
    def can_evaluate(self) -> bool:
        """Whether `evaluate` will work."""

    def attach_model(self, model: nn.Module) -> None:  # noqa: B027
        """Told which model it is for, as soon as both are there; the model may still get other weights."""

    def record_parameter_names(self, model: nn.Module) -> None:  # noqa: B027
        """Learns which parameters of the user's own `model` the optimizers hold, before it is copied or changed."""

    def on_stage_begin(self, method: str, algorithm: str | None) -> None:  # noqa: B027
        """Told before each stage what trains next: method "prune" with its algorithm, or "finetune" with None."""

    def on_training_begin(self, max_steps: int | None, max_epochs: int | None) -> None:  # noqa: B027
        """Told, before it is bound for a training step of the recipe, how long that is.

        One of both is set. For schedules that span the whole of a training; without it, or for other training (scores),
        an evaluator knows the lengths of single calls of `train` only.
        """

    def rng_roots(self) -> dict[str, Any]:
        """The user's functions by name: random number generators of his own are looked for behind them."""
        return {}

    @abc.abstractmethod
    def bind(self, model: nn.Module) -> None:
        """Builds optimizers and schedulers for `model` from what was recorded of them.

        Raises:
            InvalidModelError: something does not fit the model, or the first optimizer does not take `extra_groups`.
        """

    @abc.abstractmethod
    def unbind(self) -> None:
        """Reverts everything that `bind` and the hooks below did. Does nothing if not bound.

        Implementations call super().unbind(), which takes the hooks of `register_..._hook` off the model.
        """
        self.extra_groups = ()
        hooks, self._hooks = self._hooks, ()
        for hook in hooks:
            hook.remove()

    @property
    @abc.abstractmethod
    def model(self) -> nn.Module:
        """The bound model. RuntimeError if there is none."""

    @abc.abstractmethod
    def train(self, max_steps: int | None = None, max_epochs: int | None = None) -> None:
        """One call of the user's training, with the same optimizer and scheduler objects as before.

        After `load_state_dict` of a state from within a call it goes on with that call, whose limits these are.
        """

    @abc.abstractmethod
    def evaluate(self, model: nn.Module | None = None) -> Score:
        """Evaluates the bound model, or `model` without binding it (a loaded program, the dense model).

        Raises:
            InvalidModelError: no number, no key `default`, NaN or infinity, or a reserved name.
        """

    @contextlib.contextmanager
    def placed(self, model: nn.Module) -> Iterator[None]:
        """Inside, a model that is not bound is where it can be called by others; afterwards it is where it was."""
        with devices_restored(model):
            move_to_rank_device(model)
            yield

    @abc.abstractmethod
    def optimizers(self) -> Iterator[torch.optim.Optimizer]:
        """The optimizers of the bound model."""

    @abc.abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """State of all optimizers and schedulers: tensors and plain data only, loadable with weights_only."""

    @abc.abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` gave."""

    def at_safe_points(self, hook: Callable[[], None], wanted: Callable[[], bool]) -> None:  # noqa: B027
        """Calls `hook` where `state_dict` is one that training can go on from, until unbound.

        For evaluators that know such places by themselves; where `replays`, the tape knows them.

        Args:
            hook: may raise Stopped.
            wanted: asked at most once after each optimizer step: whether to come to such a place soon. For those whom
                it costs something; others call `hook` wherever they are at one.
        """

    @property
    def interruption(self) -> float:
        """Seconds that the training stood still for the last safe point, besides what the hook there took."""
        return 0.0

    def remarks(self) -> list[str]:
        """What is odd about the last call of `train`, as notes for the user."""
        return []

    @abc.abstractmethod
    def patch_loss(self, patch: Callable[[torch.Tensor, Any], torch.Tensor]) -> None:
        """From now on the loss is patch(loss, batch), until unbound."""

    @abc.abstractmethod
    def before_optimizer_step(self, hook: Callable[[], None]) -> None:
        """Calls `hook` before each step of the first optimizer, until unbound."""

    @abc.abstractmethod
    def after_optimizer_step(self, hook: Callable[[], None]) -> None:
        """Calls `hook` after each step of any optimizer, until unbound."""

    def register_tensor_hook(self, tensor: torch.Tensor | str, hook: TensorHook) -> None:
        """Puts `hook` on a parameter of the bound model, by its name, or on a tensor, until unbound.

        Raises:
            InvalidModelError: there is no such parameter, or the tensor requires no gradient.
        """
        name = tensor if isinstance(tensor, str) else "the tensor"
        if isinstance(tensor, str):
            tensor = found(dict(self.model.named_parameters(remove_duplicate=False)), tensor, "parameter")
        if not tensor.requires_grad:
            raise InvalidModelError(f"{name} requires no gradient, so no hook can see one; set requires_grad")
        self._remember(hook)
        hook.attach(tensor)

    def register_forward_hook(self, module: str, hook: ForwardHook) -> None:
        """Puts `hook` on the module of this name in the bound model, until unbound.

        Raises:
            InvalidModelError: there is no such module.
        """
        target = module_called(self.model, module)
        self._remember(hook)
        hook.attach(target)

    def register_backward_hook(self, module: str, hook: BackwardHook) -> None:
        """Puts `hook` on the module of this name in the bound model, until unbound.

        Raises:
            InvalidModelError: there is no such module.
        """
        target = module_called(self.model, module)
        self._remember(hook)
        hook.attach(target)

    def _remember(self, hook: Hook) -> None:
        if not any(hook is known for known in self._hooks):
            self._hooks = (*self._hooks, hook)

    def gradient(self, parameter: nn.Parameter) -> torch.Tensor | None:
        """The whole gradient of a parameter of the bound model, seen from a hook before the optimizer step."""
        return parameter.grad

    @contextlib.contextmanager
    def gathered_parameters(self, modify: bool = False) -> Iterator[None]:
        """Inside, every parameter of the bound model is there as a whole, on every rank; with `modify` it may change.

        For evaluators that spread parameters over ranks; all ranks must enter it together, and change alike.
        """
        yield
