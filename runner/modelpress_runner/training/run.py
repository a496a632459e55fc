"""One training step of a stage, chunk by chunk: masks stay in force, and what trains nothing is an error."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import nn

from modelpress_runner.edits.masks import Masks
from modelpress_runner.errors import CompressionError
from modelpress_runner.evaluators.base import Evaluator
from modelpress_runner.runtime.preserve import devices_restored
from modelpress_runner.training.step import Training

MOST_STEP_CHUNKS = 10


@dataclass(frozen=True)
class Chunk:
    """One call of the user's training; exactly one of both is set."""

    max_steps: int | None
    max_epochs: int | None


def chunks_of(training: Training, resumable: bool = True) -> list[Chunk]:
    """The calls that a training step is cut into.

    Epochs are trained one by one. n optimizer steps become min(10, n) chunks whose sizes differ by at most one, the
    larger first. What is not resumable is one chunk.
    """
    if not resumable:
        return [Chunk(training.max_steps, training.epochs)]
    if training.epochs is not None:
        return [Chunk(None, 1)] * training.epochs
    assert training.max_steps is not None
    count = min(MOST_STEP_CHUNKS, training.max_steps)
    size, larger = divmod(training.max_steps, count)
    return [Chunk(size + (index < larger), None) for index in range(count)]


class MaskKeeper:
    """Sets masked weights to zero."""

    def __init__(self, model: nn.Module, masks: Masks) -> None:
        self._pairs: list[tuple[nn.Parameter, torch.Tensor]] = []  # with True where a weight is pruned
        for module_name, by_parameter in masks.items():
            module = model.get_submodule(module_name)
            for name, mask in by_parameter.items():
                self._pairs.append((getattr(module, name), mask == 0))

    def __bool__(self) -> bool:
        return bool(self._pairs)

    @torch.no_grad()
    def apply(self) -> None:
        """Sets every masked weight to zero, wherever training has moved the parameter."""
        for number, (parameter, gone) in enumerate(self._pairs):
            if gone.device != parameter.device:
                gone = gone.to(parameter.device)
                self._pairs[number] = (parameter, gone)
            # .data: another loss may still be on its way back through the parameter, and nothing changes for it.
            parameter.data.masked_fill_(gone, 0)


def check_masks(model: nn.Module, masks: Masks, after: str) -> None:
    """Raises CompressionError if a masked weight is not zero any more, or has another shape, `after` a stage."""
    for module_name, by_parameter in masks.items():
        for name, mask in by_parameter.items():
            full = f"{module_name}.{name}"
            try:
                parameter = getattr(model.get_submodule(module_name), name)
            except AttributeError:
                raise CompressionError(f"after {after} the masked {full} is no longer in the model") from None
            if parameter.shape != mask.shape:
                raise CompressionError(
                    f"after {after} {full} has shape {tuple(parameter.shape)}, its mask {tuple(mask.shape)}"
                )
            alive = int(torch.count_nonzero(parameter.detach().masked_fill(mask.to(parameter.device, torch.bool), 0)))
            if alive:
                raise CompressionError(f"after {after} {alive} pruned weights of {full} are no longer zero")


def check_finite(model: nn.Module) -> None:
    """Raises CompressionError if a parameter is NaN or infinite."""
    for name, value in model.named_parameters():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CompressionError(f"training made {name} NaN or infinite; lower the learning rate or prune less")


class TrainingRun:
    """A training step that is under way: the evaluator is bound while the context is open.

    Training may move the model to another device; at the end it is back where it was.

    Args:
        model: what trains.
        evaluator: how it trains.
        masks: kept in force after every optimizer step and at the end of every chunk.
        stop: called before every loss and optimizer step; it raises Stopped if the run should end.
    """

    def __init__(self, model: nn.Module, evaluator: Evaluator, masks: Masks, stop: Callable[[], None]) -> None:
        self._model, self._evaluator, self._stop = model, evaluator, stop
        self._masks = MaskKeeper(model, masks)
        self._before: dict[str, torch.Tensor] | None = None
        self._steps = 0
        self._highest_rate = 0.0

    def __enter__(self) -> TrainingRun:
        self._masks.apply()
        with contextlib.ExitStack() as undone:
            undone.enter_context(devices_restored(self._model))
            undone.callback(self._clear_gradients)
            undone.callback(self._evaluator.unbind)
            self._evaluator.bind(self._model)
            self._evaluator.patch_loss(lambda loss, batch: (self._stop(), loss)[1])
            self._evaluator.before_optimizer_step(self._stop)
            self._evaluator.after_optimizer_step(self._after_step)
            trainable = {name: value for name, value in self._model.named_parameters() if value.requires_grad}
            with self._evaluator.whole_parameters():
                self._before = {name: value.detach().clone() for name, value in trainable.items()}
            self._undone = undone.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._undone.close()

    def _after_step(self) -> None:
        self._steps += 1
        self._mask()
        if self._before is not None:  # only as long as it is open whether anything moves
            for optimizer in self._evaluator.optimizers():
                for group in optimizer.param_groups:
                    self._highest_rate = max(self._highest_rate, float(group.get("lr", 1.0)))

    def state_dict(self) -> dict[str, Any]:
        """State of optimizers and schedulers."""
        return self._evaluator.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on behind an earlier chunk."""
        self._evaluator.load_state_dict(state)
        self._before = None

    def run(self, chunk: Chunk, last: bool) -> None:
        """Trains one chunk.

        Raises:
            CompressionError: no weight has changed, or a weight is NaN or infinite.
            UserCodeError: the user's training raised.
            Stopped: the run should end.
        """
        self._stop()
        self._evaluator.train(chunk.max_steps, chunk.max_epochs)
        self._mask()
        # Every chunk starts without gradients, so that a resumed chunk equals one that was not interrupted.
        self._clear_gradients()
        with self._evaluator.whole_parameters():
            self._check_moved(last)
            check_finite(self._model)

    def _mask(self) -> None:
        if self._masks:
            with self._evaluator.whole_parameters(modify=True):
                self._masks.apply()

    def _clear_gradients(self) -> None:
        for parameter in self._model.parameters():
            parameter.grad = None

    def _check_moved(self, last: bool) -> None:
        if self._before is None:
            return
        now = dict(self._model.named_parameters())
        if any(not torch.equal(now[name].detach(), value.to(now[name].device)) for name, value in self._before.items()):
            self._before = None
            return
        # A warm-up may well start at a learning rate of zero.
        if last or self._steps == 0 or self._highest_rate > 0 or not self._before:
            raise CompressionError(f"training changed no weight: {self._why_nothing_moves()}")

    def _why_nothing_moves(self) -> str:
        if not self._before:
            return "no parameter of the model requires gradients"
        own = {id(parameter) for parameter in self._model.parameters()}
        held = {
            id(parameter)
            for optimizer in self._evaluator.optimizers()
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        if held and not held & own and not self._evaluator.sharded:  # which holds parts of parameters
            return (
                "the optimizer holds parameters of another model; make it with mp.trace(...) from this model's "
                "parameters, or give a function (params) -> Optimizer that uses the params it is given"
            )
        if self._steps == 0:
            return "it made no optimizer step; check that it uses the model, the optimizer and the limits it is given"
        if self._highest_rate == 0:
            return "the learning rate was zero throughout"
        return (
            "the optimizer stepped but no weight has a gradient; check that the training trains the model it is given "
            "and calls backward() on its loss"
        )
