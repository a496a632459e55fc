"""Single weights by connection sensitivity (Lee et al. 2018, arXiv 1810.02340)."""

from __future__ import annotations

import torch

from modelpress_runner.methods.prune.gradients import GradientMethod


class Snip(GradientMethod):
    """Score of a weight: |w dL/dw|, the derivative of the loss by a switch on the weight.

    The loss is that of all steps together: products are summed over the steps before their size is taken.
    """

    name = "snip"
    globally_comparable = True

    def term(self, weights: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
        """As GradientMethod.term."""
        return weights * gradients

    def scored(self, total: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """As GradientMethod.scored."""
        return total.abs()


METHOD = Snip()
