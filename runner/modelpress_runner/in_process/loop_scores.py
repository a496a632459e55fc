"""Scores that need gradients, collected from the steps that a training loop of the user's own makes anyway."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import nn

from modelpress_runner.errors import InvalidModelError, InvalidSpecError
from modelpress_runner.evaluators.base import Evaluator, Score
from modelpress_runner.evaluators.optimizer_hooks import unscaled
from modelpress_runner.methods.prune.channels import weight_of
from modelpress_runner.methods.prune.protocol import Collector, DataDrivenMethod
from modelpress_runner.methods.prune.registry import method
from modelpress_runner.methods.prune.selection import Choice
from modelpress_runner.methods.prune.statistics import Scores, is_data_driven
from modelpress_runner.runtime import distributed as ranks


class ScoreWindow:
    """Collects the scores of some modules over the last steps before they are pruned.

    Other than in a stage that modelpress trains itself, the model is not frozen meanwhile: it trains on.

    Args:
        model: the model in the loop.
        choices: the stage's modules; those whose method looks at weights only do not matter here.
        path: of the stage, for messages.
        optimizers: those of the loop, as far as they are known.

    Raises:
        InvalidSpecError: a module cannot be scored.
    """

    def __init__(
        self, model: nn.Module, choices: Iterable[Choice], path: str, optimizers: Sequence[torch.optim.Optimizer]
    ) -> None:
        self._model, self._path = model, path
        self._choices = [choice for choice in choices if is_data_driven(choice)]
        self._evaluator = _LoopEvaluator(optimizers)
        self._collectors: dict[str, Collector] | None = None
        self._made()

    def __bool__(self) -> bool:
        return bool(self._choices)

    def step(self) -> None:
        """The gradients of one more step are there. A step with one that is not finite does not count: scalers of mixed
        precision leave such steps out."""
        if self._collectors is None:
            self._evaluator.bind(self._model)
            self._collectors = self._made()
            for collector in self._collectors.values():
                collector.attach()
        if all(self._is_finite(choice) for choice in self._choices):
            for collector in self._collectors.values():
                collector.update()

    def scores(self) -> Scores:
        """What was collected, the same on every rank; afterwards the window is empty again.

        Raises:
            CompressionError: a module got no gradient.
        """
        collectors = self._made() if self._collectors is None else self._collectors
        try:
            return {name: ranks.all_reduce_mean(each.compute()) for name, each in collectors.items()}
        finally:
            self.close()

    def close(self) -> None:
        """Takes off the model again what collecting has put on it."""
        self._evaluator.unbind()
        self._collectors = None

    def _is_finite(self, choice: Choice) -> bool:
        gradient = self._evaluator.gradient(weight_of(self._model.get_submodule(choice.module)))
        return gradient is None or bool(torch.isfinite(gradient).all())

    def _made(self) -> dict[str, Collector]:
        made: dict[str, Collector] = {}
        for choice in self._choices:
            pruner = cast(DataDrivenMethod, method(choice.algorithm))
            try:
                module = self._model.get_submodule(choice.module)
                made[choice.module] = pruner.collector(choice.module, module, self._evaluator)
            except InvalidModelError as error:
                raise InvalidSpecError(str(error), f"{self._path}.configList[{choice.entry}]") from error
        return made


class _LoopEvaluator(Evaluator):
    """What collectors see of a loop: a model that hooks may be put on, and gradients. It neither trains nor scores."""

    dummy_input = None

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self._optimizers = optimizers
        self._model: nn.Module | None = None

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
        self._model = model

    def unbind(self) -> None:
        super().unbind()
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
        raise TypeError("the loss of a loop of the user's own goes through on_after_compute_loss")

    def before_optimizer_step(self, hook: Callable[[], None]) -> None:
        raise TypeError("a loop of the user's own calls callbacks")

    def after_optimizer_step(self, hook: Callable[[], None]) -> None:
        raise TypeError("a loop of the user's own calls callbacks")
