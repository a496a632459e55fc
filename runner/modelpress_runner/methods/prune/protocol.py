"""What every pruning method is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn


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
    op_types: tuple[str, ...]  # pruned if an entry names no types
    also: tuple[str, ...]  # further types that an entry may name

    def score(self, module: nn.Module, generator: torch.Generator) -> torch.Tensor:
        """Scores in float64, on the CPU: (output channels,) if structured, else shaped like module.weight.

        `generator` is the module's own; a method without chance leaves it alone.
        """
        ...
