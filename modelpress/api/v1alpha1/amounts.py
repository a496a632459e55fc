"""How long, how much, from how much data: blocks that stages of several kinds hold."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from .base import ApiModel, Cel, cel_exactly_one, exactly_one

BudgetMetric = Literal["macs", "parameters", "sizeBytes", "latencyMs"]
Epochs = Annotated[int, Field(ge=1, le=100_000)]
Steps = Annotated[int, Field(ge=1, le=1_000_000_000)]


class Duration(ApiModel):
    """How long to train: epochs or optimizer steps."""

    epochs: Epochs | None = Field(default=None, description="Passes over the training data.")
    max_steps: Steps | None = Field(default=None, description="Steps of the optimizer.")

    other_spellings: ClassVar[dict[str, str]] = {"max_epochs": "epochs", "steps": "max_steps"}
    cel_rules: ClassVar[tuple[Cel, ...]] = (cel_exactly_one("epochs", "maxSteps"),)

    @model_validator(mode="after")
    def _one(self) -> Self:
        exactly_one(self, "epochs", "max_steps")
        return self


class Scores(ApiModel):
    """How scores are collected: from a pass over data in which the model does not change."""

    steps: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=10,
        description="For gradients: optimizer steps that the evaluator's training makes. For activations: batches of "
        "the calibration data or of the evaluation, at most; without `scores` it is all of them.",
    )

    other_spellings: ClassVar[dict[str, str]] = {"training_steps": "steps"}


class SizeBudget(ApiModel):
    """What the model may cost behind the stage; exactly one of max and maxRatio."""

    metric: BudgetMetric = Field(
        description="As measured of the result: sizeBytes and latencyMs in the target's format, a latency here."
    )
    max: Annotated[float, Field(gt=0)] | None = Field(default=None, description="Greatest value.")
    max_ratio: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None, description="Greatest share of what the model costs when the stage begins."
    )

    cel_rules: ClassVar[tuple[Cel, ...]] = (cel_exactly_one("max", "maxRatio"),)

    @model_validator(mode="after")
    def _one(self) -> Self:
        exactly_one(self, "max", "max_ratio")
        return self
