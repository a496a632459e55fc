"""Training that prepares pruning: a term in the loss drives what will be removed towards zero."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from .base import ApiModel, Cel

_TWO_LENGTHS = Cel("!(has(self.epochs) && has(self.maxSteps))", "epochs and maxSteps are two lengths; give one of them")


class Sparsify(ApiModel):
    """A term in the loss over the stage's modules: in a training of its own before the first round, whose length is
    epochs or maxSteps; in a training that the stage goes along with until its schedule ends, and then it has none."""

    penalty: Literal["l1", "group_lasso", "admm"] = Field(
        default="l1",
        description="l1: strength times the sum of |w|; with slim of the norms' factors (Liu et al. 2017, arXiv "
        "1708.06519). group_lasso: strength times the sum of the norms of output channels (Wen et al. 2016, arXiv "
        "1608.03665). admm: strength / 2 times the squared distance to what pruning would leave, with duals (Zhang et "
        "al. 2018, arXiv 1804.03294).",
    )
    strength: Annotated[float, Field(gt=0, le=1e9)] = Field(default=1e-4, description="Of the term; rho of admm.")
    frequency: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = Field(
        default=None, description="Of admm: optimizer steps between two projections; 100 if left out."
    )
    epochs: Annotated[int, Field(ge=1, le=100_000)] | None = Field(default=None, description="Passes over the data.")
    max_steps: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = Field(
        default=None, description="Steps of the optimizer."
    )

    other_spellings: ClassVar[dict[str, str]] = {
        "regular_scale": "strength",
        "rho": "strength",
        "training_steps": "max_steps",
        "training_epochs": "epochs",
        "reg_type": "penalty",
    }
    cel_rules: ClassVar[tuple[Cel, ...]] = (_TWO_LENGTHS,)

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.epochs is not None and self.max_steps is not None:
            raise PydanticCustomError("two_lengths", _TWO_LENGTHS.message, {})
        return self
