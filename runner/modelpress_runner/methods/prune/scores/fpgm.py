"""Output channels that the others can stand in for: those nearest to the geometric median (He et al. 2018,
arXiv 1811.00250)."""

from __future__ import annotations

import torch
from torch import nn

from modelpress_runner.methods.prune.channels import OTHER_TYPES, channel_rows, in_blocks
from modelpress_runner.methods.prune.protocol import PruneMethod


class FPGM(PruneMethod):
    """Score of a channel: the sum of the Euclidean distances of its weights to those of all other channels."""

    name = "fpgm"
    extra_op_types = OTHER_TYPES

    def score(self, module: nn.Module, generator: torch.Generator) -> torch.Tensor:
        """As PruneMethod.score."""
        every = channel_rows(module)

        def distances(some: torch.Tensor) -> torch.Tensor:
            # By products, which are many times as fast; in float64 what they lose is below what scores are rounded to.
            def to_some(others: torch.Tensor) -> torch.Tensor:
                return torch.cdist(some, others, compute_mode="use_mm_for_euclid_dist").T

            return in_blocks(to_some, every, compares=True).sum(dim=0)

        return in_blocks(distances, every, compares=True)


METHOD = FPGM()
