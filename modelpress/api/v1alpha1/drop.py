"""The dropLayers and dropExperts blocks: whole layers, and whole experts, that go."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from .amounts import Duration, Scores, SizeBudget
from .base import ApiModel, Cel, cel_exactly_one, exactly_one
from .selection import ModuleEntry

LayerScore = Literal["influence", "loss"]
Rounds = Annotated[int, Field(ge=1, le=1000)]


class WholeEntry(ModuleEntry):
    """Selects modules.

    Selected are (opNames or opNamesRe, else all) that are of opTypes, where given. `exclude` always wins. An entry that
    matches nothing is an error.
    """


_AMOUNTS = ("sparsity", "count", "budget")


class DropLayers(ApiModel):
    """Takes whole layers out: residual blocks without which the model runs and shapes stay.

    How much goes is exactly one of sparsity, count and budget. At least one of the selected layers stays.
    """

    by: LayerScore = Field(
        default="influence",
        description="Which go first. influence: those that turn what they take least, 1 - the mean cosine between what "
        "they take and what they give, over calibration data or the evaluation (ShortGPT: Men et al. 2024, arXiv "
        "2403.03853). loss: those without which the job's own score is best, each tried alone (Kim et al. 2024, arXiv "
        "2402.02834); needs an evaluator that evaluates.",
    )
    sparsity: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None, description="Share of the selected layers that goes, rounded down."
    )
    count: Annotated[int, Field(ge=1, le=100_000)] | None = Field(default=None, description="How many layers go.")
    budget: SizeBudget | None = Field(
        default=None, description="As few layers go as it takes for the model to fit; solved before the first round."
    )
    config_list: Annotated[list[WholeEntry], Field(min_length=1, max_length=128)] | None = Field(
        default=None,
        description="Among which layers. Left out, or where all entries exclude: the residual blocks that stand in a "
        "list or sequence of the model, outermost ones.",
    )
    rounds: Rounds = Field(default=1, description="In so many equal parts they go; scores are taken anew before each.")
    train: Duration | None = Field(default=None, description="Training after each round; none if left out.")
    scores: Scores | None = Field(default=None, description="How influence is collected.")

    other_spellings: ClassVar[dict[str, str]] = {"score": "by", "layers": "count", "num_layers": "count"}
    other_values: ClassVar[dict[str, dict[str, str]]] = {
        "by": dict.fromkeys(("cosine", "block_influence", "bi", "shortgpt"), "did you mean influence?")
    }
    cel_rules: ClassVar[tuple[Cel, ...]] = (cel_exactly_one(*_AMOUNTS),)

    @model_validator(mode="after")
    def _one(self) -> Self:
        exactly_one(self, *_AMOUNTS)
        return self


class DropExperts(ApiModel):
    """Takes whole experts out of layers that send each token to some of many (mixtures of experts), with their rows of
    the router. Of every layer equally many go, so that a configuration can say so.

    How much goes is exactly one of sparsity, count and budget. As many stay as a token is sent to, at least.
    """

    sparsity: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None, description="Share of each layer's experts that goes, rounded down."
    )
    count: Annotated[int, Field(ge=1, le=100_000)] | None = Field(
        default=None, description="How many experts of each layer go."
    )
    budget: SizeBudget | None = Field(
        default=None, description="As few go as it takes for the model to fit; solved before the first round."
    )
    config_list: Annotated[list[WholeEntry], Field(min_length=1, max_length=128)] | None = Field(
        default=None,
        description="Of which layers: modules that hold a router and experts. Left out, or where all entries exclude: "
        "all others.",
    )
    rounds: Rounds = Field(default=1, description="In so many equal parts they go; scores are taken anew before each.")
    train: Duration | None = Field(default=None, description="Training after each round; none if left out.")
    scores: Scores | None = Field(default=None, description="How what the router gives to experts is collected.")

    other_spellings: ClassVar[dict[str, str]] = {"experts": "count", "num_experts": "count"}
    cel_rules: ClassVar[tuple[Cel, ...]] = (cel_exactly_one(*_AMOUNTS),)

    @model_validator(mode="after")
    def _one(self) -> Self:
        exactly_one(self, *_AMOUNTS)
        return self
