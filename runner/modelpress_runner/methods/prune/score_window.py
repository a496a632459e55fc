"""Scores that need data, collected from the steps that a training makes anyway."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from modelpress_runner.evaluators.base import Evaluator
from modelpress_runner.methods.prune.channels import weight_of
from modelpress_runner.methods.prune.selection import Choice
from modelpress_runner.methods.prune.statistics import Scores, collector, is_data_driven
from modelpress_runner.passes.collectors import Collector, TrainingPass


class ScoreWindow:
    """Collects the scores of some modules over the last steps before they are pruned.

    Other than between the trainings of a recipe, the model is not frozen meanwhile: it trains on.

    Args:
        model: the model that trains.
        choices: the stage's modules; those whose method looks at weights only do not matter here.
        path: of the stage, for messages.
        evaluator: what trains.

    Raises:
        InvalidSpecError: a module cannot be scored.
    """

    def __init__(self, model: nn.Module, choices: Iterable[Choice], path: str, evaluator: Evaluator) -> None:
        self._model, self._path, self._evaluator = model, path, evaluator
        self._choices = [choice for choice in choices if is_data_driven(choice)]
        self._watched = TrainingPass(evaluator)
        self._collectors: dict[str, Collector] | None = None
        self._made()

    def __bool__(self) -> bool:
        return bool(self._choices)

    def open(self) -> None:
        """Collecting begins, unless it has."""
        if self._collectors is None:
            self._collectors = self._made()
            for each in self._collectors.values():
                each.attach()

    def step(self) -> None:
        """The gradients of one more step are there. A step with one that is not finite does not count: scalers of mixed
        precision leave such steps out."""
        self.open()
        assert self._collectors is not None
        with self._evaluator.gathered_parameters():
            if all(self._is_finite(choice) for choice in self._choices):
                for each in self._collectors.values():
                    each.update()

    def scores(self) -> Scores:
        """What was collected, the same on every rank; afterwards the window is empty again.

        Raises:
            CompressionError: a module got no gradient.
        """
        collectors = self._made() if self._collectors is None else self._collectors
        try:
            for each in collectors.values():
                each.sync()
            return {name: each.compute() for name, each in collectors.items()}
        finally:
            self.close()

    def close(self) -> None:
        """Takes off the model again what collecting has put on it."""
        self._watched.close()
        self._collectors = None

    def state_dict(self) -> dict[str, Any]:
        """What was collected so far, by module; empty: collecting has not begun."""
        return {name: each.state_dict() for name, each in (self._collectors or {}).items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was."""
        self.close()
        if state:
            self.open()
        for name, each in (self._collectors or {}).items():
            each.load_state_dict(state[name])

    def _is_finite(self, choice: Choice) -> bool:
        gradient = self._evaluator.gradient(weight_of(self._model.get_submodule(choice.module)))
        return gradient is None or bool(torch.isfinite(gradient).all())

    def _made(self) -> dict[str, Collector]:
        return {choice.module: collector(choice, self._model, self._watched, self._path) for choice in self._choices}
