"""What every pruning method is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from modelpress_runner.evaluators.base import Evaluator


@dataclass(frozen=True)
class Needs:
    """What a method needs besides the model."""

    evaluate: bool = False
    train: bool = False
    dummy_input: bool = False


class PruneMethod(Protocol):
    """Scores the parts of one module; the lowest scores are removed first.

    A structured method scores output channels, another one single weights. Modules are matched by class name, their own
    or that of a base class.
    """

    name: str
    structured: bool
    needs: Needs
    comparable: bool  # scores of different layers are of one kind: a global ranking takes them as they are

    @property
    def op_types(self) -> tuple[str, ...]:
        """Pruned if an entry names no types."""

    @property
    def also(self) -> tuple[str, ...]:
        """Further types that an entry may name."""

    def score(self, module: nn.Module, generator: torch.Generator) -> torch.Tensor:
        """Scores in float64, on the CPU: (output channels,) if structured, else shaped like module.weight.

        `generator` is the module's own; a method without chance leaves it alone.
        """
        ...


class Collector(Protocol):
    """Gathers the scores of one module from training steps over the frozen model."""

    def start(self) -> None:
        """The evaluator is bound: hooks can be put in place; they go when it is unbound."""

    def step(self) -> None:
        """The gradients of a step are there, and parameters are whole."""

    def total(self) -> torch.Tensor:
        """This rank's scores of all steps together, as PruneMethod.score gives them.

        Raises:
            CompressionError: there is nothing to score by.
        """
        ...


class DataDrivenMethod(PruneMethod, Protocol):
    """A method that scores by training steps: needs.train. Its scores are collected, and `score` is not asked."""

    def collector(self, name: str, module: nn.Module, evaluator: Evaluator) -> Collector:
        """A collector for one module, which the model knows by `name`.

        Raises:
            InvalidModelError: the module cannot be scored, whatever is trained.
        """
        ...
