"""How sparse each layer may be, found by scores of the pruned model."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from .amounts import Duration
from .base import ApiModel

Share = Annotated[float, Field(gt=0, lt=1)]


class Search(ApiModel):
    """Finds a sparsity for each layer, or dependency group, whose mean over their weights is the stage's sparsity."""

    type: Literal["sensitivity", "simulated_annealing", "net_adapt", "auto_compress"] = Field(
        description="sensitivity: scores each layer alone at each of `sparsities`, and takes of each the most at which "
        "it loses no more than a bound, the least bound that suffices (after Han et al. 2015, arXiv 1506.02626). "
        "simulated_annealing: changes all of them at random and takes what scores better, and what scores worse with a "
        "probability that falls (Liu et al. 2019, arXiv 1907.03141). net_adapt: step by step, takes the next share of "
        "the weights of whichever layer scores best without it (Yang et al. 2018, arXiv 1804.03230). auto_compress: in "
        "each round the annealing, and before pruning sparsify's training towards what it found (Liu et al. 2019).",
    )
    sparsities: Annotated[list[Share], Field(min_length=1, max_length=32)] | None = Field(
        default=None, description="Of sensitivity; .1, .2, ... .9 if left out."
    )
    start_temperature: Annotated[float, Field(gt=0, le=1e6)] = Field(default=100.0, description="Of the annealing.")
    stop_temperature: Annotated[float, Field(gt=0, le=1e6)] = Field(default=20.0, description="Where it ends.")
    cool_down_rate: Share = Field(default=0.9, description="What the temperature is multiplied with at each try.")
    perturbation: Share = Field(default=0.35, description="The most that a sparsity changes at the first try.")
    sparsity_per_step: Share = Field(
        default=0.05, description="Of net_adapt: what goes at each step, as a share of all weights."
    )
    train: Duration | None = Field(default=None, description="Of net_adapt: a short training before each score.")

    other_spellings: ClassVar[dict[str, str]] = {
        "sparsity_per_iteration": "sparsity_per_step",
        "perturbation_magnitude": "perturbation",
    }
