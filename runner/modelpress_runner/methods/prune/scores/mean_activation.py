"""Output channels by the mean of what a ReLU lets through of them (Molchanov et al. 2016, arXiv 1611.06440)."""

from __future__ import annotations

import torch

from modelpress_runner.methods.prune.activations import OutputMethod


class MeanActivation(OutputMethod):
    """Score of a channel: the mean of max(0, output)."""

    name = "mean_activation"

    def of_outputs(self, rectified: torch.Tensor) -> torch.Tensor:
        """As OutputMethod.of_outputs."""
        return rectified


METHOD = MeanActivation()
