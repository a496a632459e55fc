"""Single weights by the size of their gradients (the criterion `gradient` of Neural Compressor 2)."""

from __future__ import annotations

import torch

from modelpress_runner.methods.prune.gradients import GradientMethod


class Gradient(GradientMethod):
    """Score of a weight: the sum over steps of |dL/dw|."""

    name = "gradient"
    globally_comparable = True

    def term(self, weights: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
        """As GradientMethod.term."""
        return gradients.abs()


METHOD = Gradient()
