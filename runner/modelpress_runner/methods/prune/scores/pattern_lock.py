"""Keeps weights that are zero at zero, and removes no others: training goes on in the pattern that is there."""

from __future__ import annotations

import torch
from torch import nn

from modelpress_runner.methods.prune.channels import weight_of
from modelpress_runner.methods.prune.protocol import PruneMethod


class PatternLock(PruneMethod):
    """Score of a weight: 0 if it is zero, else 1."""

    name = "pattern_lock"
    extra_op_types = ("Embedding", "EmbeddingBag", "Bilinear")

    def score(self, module: nn.Module, generator: torch.Generator) -> torch.Tensor:
        """As PruneMethod.score."""
        return (weight_of(module).detach() != 0).float()


METHOD = PatternLock()
