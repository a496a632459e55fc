"""Output channels at random: the baseline that a score must beat."""

from __future__ import annotations

import torch
from torch import nn

from modelpress_runner.edits.axes import module_axis
from modelpress_runner.methods.prune.channels import OTHER_TYPES, weight_of
from modelpress_runner.methods.prune.protocol import PruneMethod


class Random(PruneMethod):
    """Score of a channel: a uniform draw from [0, 1)."""

    name = "random"
    extra_op_types = OTHER_TYPES

    def score(self, module: nn.Module, generator: torch.Generator) -> torch.Tensor:
        """As PruneMethod.score."""
        channels = module_axis(module, type(module).__name__, "out").size
        drawn = torch.rand(channels, generator=generator, dtype=torch.float64)
        device = weight_of(module).device
        return drawn if device.type == "mps" else drawn.to(device)


METHOD = Random()
