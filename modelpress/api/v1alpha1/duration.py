"""How long a training is."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from .base import ApiModel, Cel, cel_exactly_one, exactly_one

Epochs = Annotated[int, Field(ge=1, le=100_000)]
Steps = Annotated[int, Field(ge=1, le=1_000_000_000)]


class Duration(ApiModel):
    """How long to train: epochs or optimizer steps."""

    epochs: Epochs | None = Field(default=None, description="Passes over the training data.")
    max_steps: Steps | None = Field(default=None, description="Steps of the optimizer.")

    other_spellings: ClassVar[dict[str, str]] = {"max_epochs": "epochs", "steps": "max_steps"}
    cel_rules: ClassVar[tuple[Cel, ...]] = (cel_exactly_one("epochs", "maxSteps"),)

    @model_validator(mode="after")
    def _one(self) -> Duration:
        exactly_one(self, "epochs", "max_steps")
        return self
