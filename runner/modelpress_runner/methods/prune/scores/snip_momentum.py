"""Single weights by connection sensitivity (Lee et al. 2018, arXiv 1810.02340) that fades: the default of Neural
Compressor 2, whose documents print the two factors the other way round."""

from __future__ import annotations

import torch

from modelpress_runner.methods.prune.gradients import GradientMethod


class SnipMomentum(GradientMethod):
    """Score of a weight: S <- 0.9 S + |w dL/dw|, from step to step."""

    name = "snip_momentum"
    globally_comparable = True
    decay = 0.9

    def term(self, weights: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
        """As GradientMethod.term."""
        return (weights * gradients).abs()


METHOD = SnipMomentum()
