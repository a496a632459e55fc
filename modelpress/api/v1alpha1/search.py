"""How sparse each layer may be, found by scores of the pruned model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .base import ApiModel

Share = Annotated[float, Field(gt=0, lt=1)]


class Search(ApiModel):
    """Finds a sparsity for each layer, or dependency group, whose mean over their weights is the stage's sparsity."""

    type: Literal["sensitivity", "simulated_annealing"] = Field(
        description="sensitivity: scores each layer alone at each of `sparsities`, and takes of each the most at which "
        "it loses no more than a bound, the least bound that suffices (after Han et al. 2015, arXiv 1506.02626). "
        "simulated_annealing: changes all of them at random and takes what scores better, and what scores worse with a "
        "probability that falls (Liu et al. 2019, arXiv 1907.03141).",
    )
    sparsities: Annotated[list[Share], Field(min_length=1, max_length=32)] | None = Field(
        default=None, description="Of sensitivity; .1, .2, ... .9 if left out."
    )
    start_temperature: Annotated[float, Field(gt=0, le=1e6)] = Field(default=100.0, description="Of the annealing.")
    stop_temperature: Annotated[float, Field(gt=0, le=1e6)] = Field(default=20.0, description="Where it ends.")
    cool_down_rate: Share = Field(default=0.9, description="What the temperature is multiplied with at each try.")
    perturbation: Share = Field(default=0.35, description="The most that a sparsity changes at the first try.")
