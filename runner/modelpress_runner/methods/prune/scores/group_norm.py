"""Output channels by the norm of everything that goes with them (Fang et al. 2023, arXiv 2301.12900, DepGraph)."""

from __future__ import annotations

import torch
from torch import nn

from modelpress_runner.dependency.groups import ChannelDependencies
from modelpress_runner.edits.axes import axis_of
from modelpress_runner.methods.prune.channels import OTHER_TYPES, by_channel, squares
from modelpress_runner.methods.prune.protocol import PruneMethod


class GroupNorm(PruneMethod):
    """Score of a channel: the square root of the sum of w^2 over all weights that a shrink would take with it.

    Those are its own, the inputs of the layers that follow, and factors of norms; biases do not count. Without a shrink
    nothing goes with a channel, and what counts is its own weights.
    """

    name = "group_norm"
    extra_op_types = OTHER_TYPES

    def score(self, module: nn.Module, generator: torch.Generator) -> torch.Tensor:
        """As PruneMethod.score."""
        return by_channel(module, lambda weights: weights.square().sum(dim=1).sqrt())

    def score_units(self, model: nn.Module, dependencies: ChannelDependencies, units: torch.Tensor) -> torch.Tensor:
        """As PruneMethod.score_units."""
        total = torch.zeros(dependencies.unit_count, dtype=torch.float64)
        for axis in dependencies.axes:
            if not units[axis.vector].any():
                continue
            view = axis_of(model, axis.module, axis.axis)
            for name in view.parameters:
                if "bias" not in name:
                    total.index_add_(0, axis.vector, squares(view, name).cpu())
        return total.sqrt_()


METHOD = GroupNorm()
