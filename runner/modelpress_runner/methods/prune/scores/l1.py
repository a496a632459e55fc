"""Output channels by the L1 norm of their weights (Li et al. 2016, arXiv 1608.08710)."""

from __future__ import annotations

import torch
from torch import nn

from modelpress_runner.methods.prune.channels import OTHER_TYPES, by_channel
from modelpress_runner.methods.prune.protocol import PruneMethod


class L1(PruneMethod):
    """Score of a channel: the sum of |w| over its weights."""

    name = "l1"
    extra_op_types = OTHER_TYPES

    def score(self, module: nn.Module, generator: torch.Generator) -> torch.Tensor:
        """As PruneMethod.score."""
        return by_channel(module, lambda weights: weights.abs().sum(dim=1))


METHOD = L1()
