"""The distillBlocks block: which parts of a model learn from their twins in the dense model, and how."""

from typing import Annotated, ClassVar

from pydantic import Field

from .base import ApiModel, ModuleName

Names = Annotated[list[ModuleName], Field(min_length=1, max_length=256)]


class DistillBlocks(ApiModel):
    """Trains the model block by block to give what the dense model's blocks give, on calibration data without labels.

    Each block takes what the blocks before it give by now, and learns what its twin gave in the dense model, so that it
    makes good for their error, too. One block trains at a time: of no other are activations or optimizer states kept.
    """

    op_names: Names | None = Field(
        default=None,
        description="Exact names of the blocks, as in model.named_modules(). Without these and opNamesRe: the layers, "
        "members of the model's outermost lists of alike modules.",
    )
    op_names_re: Names | None = Field(
        default=None, description="Regular expressions that match whole names of blocks, beside opNames."
    )
    steps: Annotated[int, Field(ge=1, le=100_000)] = Field(
        default=100, description="Optimizer steps (Adam) of each block, each on one batch of the calibration data."
    )
    learning_rate: Annotated[float, Field(gt=0, le=10)] = Field(
        default=1e-3, description="At the first step; it falls to zero along a half wave of the cosine."
    )

    other_spellings: ClassVar[dict[str, str]] = {"max_steps": "steps", "lr": "learning_rate"}
