"""What the structured methods have in common."""

from __future__ import annotations

import torch
from torch import nn

from modelpress_runner.edits.axes import module_axis

# Types whose output channels can be scored and physically removed.
CHANNEL_TYPES = ("Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d", "Linear")


def channel_weights(module: nn.Module) -> torch.Tensor:
    """The weights of each output channel in float64, on the CPU: (channels, weights of one). No bias."""
    axis = module_axis(module, type(module).__name__, "out")
    return axis.rows("weight", module.weight.detach().to("cpu", torch.float64))
