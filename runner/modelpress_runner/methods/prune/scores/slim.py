"""Channels by the factors of the norms behind them (Liu et al. 2017, arXiv 1708.06519, network slimming).

What is selected are the norms; with a shrink each stands for its whole dependency group. The paper's penalty on the
factors, which drives some of them towards zero, goes along with a training: see `sparsify` of the stage.
"""

from __future__ import annotations

import torch
from torch import nn

from modelpress_runner.methods.prune.channels import by_channel
from modelpress_runner.methods.prune.protocol import PruneMethod


class Slim(PruneMethod):
    """Score of a channel: |gamma|, its factor in the norm. Factors are compared across layers as they are."""

    name = "slim"
    extra_op_types = ("InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d", "GroupNorm", "LayerNorm")
    globally_comparable = True
    takes_followers = True

    def score(self, module: nn.Module, generator: torch.Generator) -> torch.Tensor:
        """As PruneMethod.score."""
        return by_channel(module, lambda weights: weights.abs().sum(dim=1))


METHOD = Slim()
