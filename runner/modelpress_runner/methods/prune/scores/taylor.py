"""Output channels by how much the loss would change without them, to first order (Molchanov et al. 2019,
arXiv 1906.10771, "Taylor FO").

The paper gives two ways to score the set S of a channel's weights w with gradients g: the square of their joint
contribution, (sum over S of g w)^2, and the sum of what each contributes alone, the sum over S of (g w)^2. This is the
second: contributions of opposite sign within a channel do not cancel. Both are averaged over mini-batches; the sum over
steps ranks alike.
"""

from __future__ import annotations

import torch

from modelpress_runner.methods.prune.gradients import GradientMethod


class Taylor(GradientMethod):
    """Score of a channel: the sum over steps and over its weights of (w dL/dw)^2. No bias.

    Scores of different layers are parts of one loss and are compared as they are.
    """

    name = "taylor"
    globally_comparable = True

    def term(self, weights: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
        """As GradientMethod.term."""
        return (weights * gradients).square_().sum(dim=1)


METHOD = Taylor()
