"""Output channels by the L2 norm of their weights (as Li et al. 2016, arXiv 1608.08710, with the other norm)."""

from __future__ import annotations

import torch
from torch import nn

from modelpress_runner.methods.prune.channels import OTHER_TYPES, by_channel
from modelpress_runner.methods.prune.protocol import PruneMethod


class L2(PruneMethod):
    """Score of a channel: the square root of the sum of w^2 over its weights."""

    name = "l2"
    extra_op_types = OTHER_TYPES

    def score(self, module: nn.Module, generator: torch.Generator) -> torch.Tensor:
        """As PruneMethod.score."""
        return by_channel(module, lambda weights: weights.square().sum(dim=1).sqrt())


METHOD = L2()
