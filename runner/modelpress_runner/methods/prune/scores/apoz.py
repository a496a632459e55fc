"""Output channels that a ReLU silences most often: the average percentage of zeros (Hu et al. 2016,
arXiv 1607.03250)."""

from __future__ import annotations

import torch

from modelpress_runner.methods.prune.activations import OutputMethod


class APoZ(OutputMethod):
    """Score of a channel: the share of its outputs that are above zero, which is 1 - APoZ."""

    name = "apoz"
    globally_comparable = True

    def of_outputs(self, rectified: torch.Tensor) -> torch.Tensor:
        """As OutputMethod.of_outputs."""
        return (rectified > 0).to(torch.float32)


METHOD = APoZ()
