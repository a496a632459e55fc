"""Scores on the device that the weights are on, in blocks, so that no wide copy of a weight is ever made."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import nn

from modelpress_runner.edits.axes import module_axis
from modelpress_runner.edits.recurrent import RECURRENT

# Types besides a row's whose output channels can be scored by their weights: transformers' linear layer, the rows of
# queries, keys and values that nn.MultiheadAttention has in one weight, embeddings, where residual streams begin, and
# recurrent layers, a hidden unit of which has rows in all gates, layers and directions.
_RECURRENT = ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell")
OTHER_TYPES = ("Conv1D", "MultiheadAttention", "Embedding", *_RECURRENT)
BLOCK = 1 << 22  # entries that are in float64 at a time, but for channels that have more


def weight_of(module: nn.Module) -> nn.Parameter:
    """The weight that scores a module; selection has seen to it that there is one."""
    if isinstance(module, RECURRENT):
        return module.get_parameter("weight_ih_l0" if isinstance(module, nn.RNNBase) else "weight_ih")
    return cast(nn.Parameter, module.in_proj_weight if isinstance(module, nn.MultiheadAttention) else module.weight)


def by_channel(module: nn.Module, reduce: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Scores of the output channels, float64, (channels,), by their weights without the bias.

    `reduce` gets the weights of some channels, float64, (n, weights of one), and gives (n,).
    """
    return in_blocks(reduce, channel_rows(module))


def channel_rows(module: nn.Module) -> torch.Tensor:
    """The weights of each output channel, without the bias, (channels, weights of one), in the weight's own type."""
    axis = module_axis(module, type(module).__name__, "out")
    if isinstance(module, RECURRENT):
        weights = {name: getattr(module, name).detach() for name in axis.parameters if name.startswith("weight")}
        return torch.cat([axis.rows(name, weight) for name, weight in weights.items()], 1)
    return axis.rows(axis.main, weight_of(module).detach())


def in_blocks(reduce: Callable[..., torch.Tensor], *matrices: torch.Tensor) -> torch.Tensor:
    """reduce(*matrices), for all (n, m) alike, over some rows at a time, which it gets in float64; (n, ...), float64.

    Everything stays on the matrices' device, but for devices without float64, whose rows are brought to the CPU.
    """
    rows, width = matrices[0].shape
    step = max(1, BLOCK // max(1, width))
    device = matrices[0].device
    place = torch.device("cpu") if device.type == "mps" else device
    parts = [
        reduce(*(matrix[start : start + step].to(place, torch.float64) for matrix in matrices))
        for start in range(0, rows, step)
    ]
    return torch.cat(parts)
