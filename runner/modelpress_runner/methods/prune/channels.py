"""Scores on the device that the weights are on, in blocks, so that no wide copy of a weight is ever made."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import torch
from torch import nn

from modelpress_runner.edits.axes import AxisView, module_axis
from modelpress_runner.edits.recurrent import RECURRENT

# Types besides a row's whose output channels can be scored by their weights: transformers' linear layer, the rows of
# queries, keys and values that nn.MultiheadAttention has in one weight, embeddings, where residual streams begin, and
# recurrent layers, a hidden unit of which has rows in all gates, layers and directions.
_RECURRENT = ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell")
OTHER_TYPES = ("Conv1D", "MultiheadAttention", "Embedding", *_RECURRENT)
# Entries that are in float64 at a time, but for channels that have more; and where each is read once, on a CPU, so that
# they stay in its cache.
BLOCK, CACHED = 1 << 22, 1 << 16


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


def in_blocks(reduce: Callable[..., torch.Tensor], *matrices: torch.Tensor, compares: bool = False) -> torch.Tensor:
    """reduce(*matrices), for all (n, m) alike, over some rows at a time, which it gets in float64; (n, ...), float64.

    Everything stays on the matrices' device, but for devices without float64, whose rows are brought to the CPU.

    Args:
        compares: whether `reduce` goes over more than what it is given, so that few large blocks cost less.
    """
    return torch.cat([reduce(*some) for some in _blocks(matrices, compares)])


def squares(view: AxisView, name: str) -> torch.Tensor:
    """The sum of w^2 over each channel's entries of parameter `name`, float64, (channels,), on its device."""
    tensor = getattr(view.owner, name).detach()
    if view.dimension(name) != 1:
        return in_blocks(lambda some: some.square().sum(dim=1), view.rows(name, tensor))
    # Columns are summed as they lie, and not brought together first.
    matrix = tensor.flatten(1)
    parts = (some.square().sum(dim=0) for (some,) in _blocks([matrix], False))
    return functools.reduce(torch.add, parts).view(view.size, -1).sum(dim=1)


def _blocks(matrices: Sequence[torch.Tensor], large: bool) -> Iterator[list[torch.Tensor]]:
    rows, width = matrices[0].shape
    device = matrices[0].device
    place = torch.device("cpu") if device.type == "mps" else device
    step = max(1, (CACHED if place.type == "cpu" and not large else BLOCK) // max(1, width))
    for start in range(0, rows, step):
        yield [matrix[start : start + step].to(place, torch.float64) for matrix in matrices]
