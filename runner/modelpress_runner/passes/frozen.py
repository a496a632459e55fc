"""Training passes over a model that does not change: for scores that look at gradients or activations.

The user's training runs as it is, whatever evaluator is behind it. After each optimizer step every parameter and buffer
gets its value back, so neither optimizers nor schedulers nor frameworks need to know; the model stays in eval mode,
whoever calls train() on it, so no statistics are gathered and no dropout falls.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from modelpress_runner.errors import CompressionError
from modelpress_runner.evaluators.base import Evaluator
from modelpress_runner.process.stopping import Stopped
from modelpress_runner.runtime import rng
from modelpress_runner.runtime import user_rng as generators
from modelpress_runner.runtime.preserve import flags_restored


class _StopPasses(Stopped):
    """Ends a training that goes on after enough steps; passes through training loops as Stopped does."""


def scoring_passes(
    model: nn.Module,
    evaluator: Evaluator,
    steps: int,
    *,
    before_step: Callable[[], None],
    bound: Callable[[], None] = lambda: None,
    stop: Callable[[], None] = lambda: None,
) -> None:
    """Runs the evaluator's training for `steps` optimizer steps over `model`, which keeps every bit of its state.

    Afterwards, whatever happened inside, parameters, buffers, gradients, training modes, requires_grad and all random
    number generators, those behind the user's functions included, are as they were, and the evaluator is unbound.

    Args:
        model: the model; the evaluator must not be bound.
        evaluator: must be able to train.
        steps: steps of its first optimizer. A training that ends earlier is called again, one that goes on is ended.
        before_step: called before each of them, with the gradients there.
        bound: called once the evaluator is bound, to put hooks in place.
        stop: called before every loss and step; raises Stopped to end the run.

    Raises:
        CompressionError: the training makes no optimizer step, or does not leave the model in eval mode.
        UserCodeError: the user's training raised.
        Stopped: `stop` raised it.
    """
    with contextlib.ExitStack() as reverted:
        reverted.enter_context(rng.fork_rng())
        reverted.enter_context(generators.aside(evaluator.rng_roots()))
        reverted.enter_context(flags_restored(model))
        reverted.enter_context(_no_gradients(model))
        state = _ModelValues(model)
        reverted.callback(state.restore)
        model.eval()
        reverted.enter_context(_held_in_eval(model))
        reverted.callback(evaluator.unbind)
        evaluator.bind(model)
        _Passes(model, evaluator, steps, state, before_step, stop).run(bound)


class _Passes:
    """The passes while the evaluator is bound."""

    def __init__(
        self,
        model: nn.Module,
        evaluator: Evaluator,
        steps: int,
        state: _ModelValues,
        before_step: Callable[[], None],
        stop: Callable[[], None],
    ) -> None:
        self._model, self._evaluator, self._state = model, evaluator, state
        self._wanted, self._done = steps, 0
        self._before_step, self._stop = before_step, stop

    def run(self, bound: Callable[[], None]) -> None:
        self._evaluator.patch_loss(lambda loss, batch: (self._stop(), loss)[1])
        self._evaluator.before_optimizer_step(self._before)
        self._evaluator.after_optimizer_step(self._after)
        bound()
        while self._done < self._wanted:
            done = self._done
            left = self._wanted - done
            self._stop()
            with contextlib.suppress(_StopPasses):
                if self._evaluator.supports_max_steps:
                    self._evaluator.train(max_steps=left)
                else:
                    self._evaluator.train(max_epochs=1)
            if self._done == done:
                made = f"only {done}" if done else "none"
                raise CompressionError(
                    f"scores need {self._wanted} optimizer steps, but training made {made}; check that it uses the "
                    "model, the optimizer and the limits it is given"
                )

    def _before(self) -> None:
        self._stop()
        if self._done == self._wanted:
            raise _StopPasses
        training = next((name or "the model" for name, part in self._model.named_modules() if part.training), None)
        if training is not None:
            raise CompressionError(
                f"scores are collected in eval mode, but the training sets {training}.training = True itself; let it "
                "call train() and eval() instead"
            )
        self._before_step()
        self._done += 1

    def _after(self) -> None:
        with self._evaluator.gathered_parameters(modify=True):
            self._state.refill()


class _ModelValues:
    """Copies of all parameters and buffers of a model, and the very objects."""

    def __init__(self, model: nn.Module) -> None:
        self._tensors: list[tuple[dict[str, Any], str, torch.Tensor | None, torch.Tensor | None]] = [
            (place, name, tensor, None if tensor is None else tensor.detach().clone())
            for module in model.modules()
            for place in (module._parameters, module._buffers)
            for name, tensor in place.items()
        ]
        self._elsewhere: dict[int, torch.Tensor] = {}  # copies on the device that training has moved the model to

    @torch.no_grad()
    def refill(self) -> None:
        """Gives what is in the model now the values of then, wherever training has moved it to."""
        for number, (place, name, tensor, value) in enumerate(self._tensors):
            now = place.get(name)
            if value is None:
                place[name] = None
            elif now is None or now.shape != value.shape:
                place[name] = tensor
                _set(tensor, value)
            else:
                if now.device != value.device:
                    if number not in self._elsewhere:
                        self._elsewhere[number] = value.to(now.device)
                    value = self._elsewhere[number]
                # .data: autograd may still need the tensor for another loss, and its value is the same again.
                now.data.copy_(value)

    @torch.no_grad()
    def restore(self) -> None:
        """Puts the objects back in their places, with the values of then, on the devices of then."""
        for place, name, tensor, value in self._tensors:
            place[name] = tensor
            if value is not None:
                _set(tensor, value)


def _set(tensor: torch.Tensor | None, value: torch.Tensor) -> None:
    assert tensor is not None
    if (tensor.dtype, tensor.device, tensor.shape) == (value.dtype, value.device, value.shape):
        tensor.data.copy_(value)
    else:
        tensor.data = value.clone()


@contextlib.contextmanager
def _no_gradients(model: nn.Module) -> Iterator[None]:
    """Inside, the model starts without gradients; afterwards it has those that it had."""
    before = [(p, p.grad, None if p.grad is None else p.grad.detach().clone()) for p in model.parameters()]
    try:
        for parameter, _, _ in before:
            parameter.grad = None
        yield
    finally:
        for parameter, gradient, value in before:
            if gradient is not None and value is not None:
                gradient.data.copy_(value)
            parameter.grad = gradient


@contextlib.contextmanager
def _held_in_eval(model: nn.Module) -> Iterator[None]:
    """Inside, train() does nothing to the modules of `model`, which are in eval mode, called on them or from above."""
    held = {id(module) for module in model.modules()}
    original = nn.Module.train
    # cuDNN's recurrent layers have no backward pass in eval mode; those of torch do.
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    cudnn = torch.backends.cudnn.enabled

    def train(self: nn.Module, mode: bool = True) -> nn.Module:
        return self if id(self) in held else original(self, mode)

    try:
        nn.Module.train = train  # type: ignore[assignment, method-assign]
        if recurrent:
            torch.backends.cudnn.enabled = False
        yield
    finally:
        nn.Module.train = original  # type: ignore[method-assign]
        torch.backends.cudnn.enabled = cudnn
