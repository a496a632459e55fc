"""A training loop of the user's own, as what goes along with a training sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from modelpress_runner.errors import InvalidModelError
from modelpress_runner.evaluators.base import Evaluator, Score
from modelpress_runner.evaluators.optimizer_hooks import unscaled
from modelpress_runner.evaluators.parameter_groups import join


class LoopEvaluator(Evaluator):
    """Neither trains nor scores: the loop calls `about_to_step` and `stepped`, and has its losses from elsewhere.

    Args:
        optimizers: those of the loop, as far as they are known.
        schedulers: theirs.
    """

    dummy_input = None

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer], schedulers: Sequence[Any]) -> None:
        self._optimizers, self._schedulers = optimizers, schedulers
        self._model: nn.Module | None = None
        self._before: list[Callable[[], None]] = []
        self._after: list[Callable[[], None]] = []

    def about_to_step(self) -> None:
        """Gradients are there as the first optimizer will use them."""
        for hook in self._before:
            hook()

    def stepped(self) -> None:
        """The optimizers have stepped."""
        for hook in self._after:
            hook()

    @property
    def can_train(self) -> bool:
        return False

    @property
    def can_evaluate(self) -> bool:
        return False

    @property
    def model(self) -> nn.Module:
        if self._model is None:
            raise RuntimeError("the evaluator is not bound to a model")
        return self._model

    def bind(self, model: nn.Module) -> None:
        if self.extra_groups and not self._optimizers:
            raise InvalidModelError(
                "a method trains parameters of its own, and the loop's optimizers are not known; give "
                "prepare_compression() the optimizers"
            )
        if self.extra_groups:
            join(self.extra_groups, self._optimizers[0], self._schedulers)
        self._model = model

    def unbind(self) -> None:
        super().unbind()
        self._before, self._after = [], []
        self._model = None

    def train(self, max_steps: int | None = None, max_epochs: int | None = None) -> None:
        raise TypeError("a loop of the user's own trains by itself")

    def evaluate(self, model: nn.Module | None = None) -> Score:
        raise TypeError("a loop of the user's own is not evaluated from here")

    def optimizers(self) -> Iterator[torch.optim.Optimizer]:
        return iter(self._optimizers)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """There is nothing to restore."""

    def gradient(self, parameter: nn.Parameter) -> torch.Tensor | None:
        return unscaled(parameter, self._optimizers)

    def patch_loss(self, patch: Callable[[torch.Tensor, Any], torch.Tensor]) -> None:
        """Nothing: losses go through on_after_compute_loss."""

    def before_optimizer_step(self, hook: Callable[[], None]) -> None:
        self._before.append(hook)

    def after_optimizer_step(self, hook: Callable[[], None]) -> None:
        self._after.append(hook)
