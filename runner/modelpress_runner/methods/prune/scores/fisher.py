"""Single weights by what the loss would lose without them, to second order on the diagonal (LeCun et al. 1989, Optimal
Brain Damage), with the Fisher information in the Hessian's place (Theis et al. 2018, arXiv 1801.05787)."""

from __future__ import annotations

import torch

from modelpress_runner.methods.prune.gradients import GradientMethod


class Fisher(GradientMethod):
    """Score of a weight: w^2 / 2 times the sum over steps of (dL/dw)^2.

    A step's gradient is that of the mean loss of its batch; gradients of single samples are not taken.
    """

    name = "fisher"
    globally_comparable = True

    def term(self, weights: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
        """As GradientMethod.term."""
        return gradients.square()

    def scored(self, total: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """As GradientMethod.scored."""
        return weight.to(total).square().mul_(total).div_(2)


METHOD = Fisher()
