"""Single weights by magnitude, relative to what would be left of their layer (Lee et al. 2020, arXiv 2010.07611)."""

from __future__ import annotations

import torch
from torch import nn

from modelpress_runner.methods.prune.channels import weight_of
from modelpress_runner.methods.prune.protocol import PruneMethod


class Lamp(PruneMethod):
    """Score of a weight: w^2 over the sum of v^2 of all weights v of its layer that are no smaller; of equal ones the
    one of lower index counts as smaller.

    Within a layer it ranks as the magnitude does; across layers it is compared as it is. The largest weight of a layer
    scores 1.
    """

    name = "lamp"
    globally_comparable = True

    def score(self, module: nn.Module, generator: torch.Generator) -> torch.Tensor:
        """As PruneMethod.score."""
        weight = weight_of(module).detach()
        place = torch.device("cpu") if weight.device.type == "mps" else weight.device
        squares = weight.to(place, torch.float64).square().flatten()
        ascending, order = torch.sort(squares, stable=True)
        no_smaller = ascending.flip(0).cumsum(0).flip(0)
        shares = torch.where(ascending > 0, ascending / no_smaller, 0.0)
        scores = torch.empty_like(shares, dtype=torch.float32).index_copy_(0, order, shares.float())
        return scores.view(weight.shape).to(weight.device)


METHOD = Lamp()
