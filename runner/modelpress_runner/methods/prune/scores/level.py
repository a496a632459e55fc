"""Single weights by magnitude (Han et al. 2015, arXiv 1506.02626)."""

from __future__ import annotations

import torch
from torch import nn

from modelpress_runner.methods.prune.channels import weight_of
from modelpress_runner.methods.prune.protocol import PruneMethod


class Level(PruneMethod):
    """Score of a weight: |w|. Biases are left alone.

    Embeddings are pruned only if an entry names them: rows of rare words are small because they were seldom trained,
    not because they do not matter.
    """

    name = "level"
    also = ("Embedding", "EmbeddingBag", "Bilinear")

    def score(self, module: nn.Module, generator: torch.Generator) -> torch.Tensor:
        """As PruneMethod.score."""
        weight = weight_of(module).detach()
        return weight.to(torch.promote_types(weight.dtype, torch.float32)).abs()


METHOD = Level()
