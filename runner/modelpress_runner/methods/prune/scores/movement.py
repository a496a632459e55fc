"""Single weights by whether training moves them away from zero (Sanh et al. 2020, arXiv 2005.07683, section 3.1).

The paper learns scores through a straight-through estimator, whose gradient is (dL/dw) w, so that plain descent leaves
the sum of -(dL/dw) w in them. Here that sum is taken over the steps that are scored by. A weight that is masked has
w = 0 and adds nothing, and what is removed does not come back.
"""

from __future__ import annotations

import torch

from modelpress_runner.methods.prune.gradients import GradientMethod


class Movement(GradientMethod):
    """Score of a weight: minus the sum over steps of w dL/dw; negative where descent shrinks it."""

    name = "movement"
    globally_comparable = True

    def term(self, weights: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
        """As GradientMethod.term."""
        return -weights * gradients


METHOD = Movement()
