"""What came out of a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from modelpress_runner.edits.base import Edit
from modelpress_runner.edits.masks import Masks


@dataclass
class RecipeOutcome:
    """What came out of a recipe.

    Attributes:
        model: the compressed model.
        masks: masks that are still in force, 1 = kept.
        edits: what makes its structure of the dense one's, in order of replay.
        stages: one record per stage.
        notes: remarks for the model card.
        steps: optimizer steps that the result has behind it.
        executed: optimizer steps that all attempts made, as far as they could still say so.
        checkpoints: how many checkpoints this attempt wrote.
        resumed: whether an earlier attempt's checkpoint was used.
    """

    model: nn.Module
    masks: Masks
    edits: list[Edit]
    stages: list[dict[str, Any]]
    notes: list[str]
    steps: int = 0
    executed: int = 0
    checkpoints: int = 0
    resumed: bool = False

    @property
    def training(self) -> dict[str, int]:
        """Counts of the training's optimizer steps, as metrics.json has them."""
        return {
            "steps": self.steps,
            "executed": self.executed,
            "repeated": max(0, self.executed - self.steps),
            "checkpoints": self.checkpoints,
        }
