"""What the structured methods have in common."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from modelpress_runner.edits.axes import module_axis


def weight_of(module: nn.Module) -> nn.Parameter:
    """module.weight; selection has seen to it that there is one."""
    return cast(nn.Parameter, module.weight)


def channel_weights(module: nn.Module) -> torch.Tensor:
    """The weights of each output channel in float64, on the CPU: (channels, weights of one). No bias."""
    axis = module_axis(module, type(module).__name__, "out")
    return axis.rows("weight", weight_of(module).detach().to("cpu", torch.float64))
