"""What a layer multiplies its weight with: its inputs as rows of a matrix."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

_ENTRIES = 1 << 22  # of float64 at a time


def is_matrix_product(module: nn.Module) -> bool:
    """Whether the module multiplies rows of its input with its weight, and `input_rows` gives them.

    So do linear layers and convolutions of one and two dimensions without groups, if their class computes as torch's.
    """
    return any(
        isinstance(module, kind) and type(module).forward is kind.forward and getattr(module, "groups", 1) == 1
        for kind in (nn.Linear, nn.Conv1d, nn.Conv2d)
    )


def weight_matrix(tensor: torch.Tensor) -> torch.Tensor:
    """A weight, or its mask, as a matrix: a view of shape (outputs, inputs), a convolution's inputs being its patches'
    entries in the order channel, row, column."""
    return tensor.reshape(tensor.shape[0], -1)


def input_rows(module: nn.Module, given: torch.Tensor) -> Iterator[torch.Tensor]:
    """The rows of one call, some at a time: float64 (rows, inputs), on the input's device where that has float64.

    A convolution has a row for each position of its output, padding included; one with groups has all channels in it.
    """
    if isinstance(module, nn.Linear):
        yield from _some(given.reshape(-1, given.shape[-1]))
        return
    assert isinstance(module, nn.Conv1d | nn.Conv2d)
    dims = len(module.kernel_size)
    images = given if given.dim() == dims + 2 else given.unsqueeze(0)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    width = images.shape[1] * math.prod(module.kernel_size)
    positions = max(1, images[0].numel() // images.shape[1])
    step = max(1, _ENTRIES // (positions * width))
    for few in images.split(step):
        padded = F.pad(few, module._reversed_padding_repeated_twice, mode)
        if dims == 1:
            padded = padded.unsqueeze(2)
        kernel, dilation, stride = (
            (1, *value) if dims == 1 else value for value in (module.kernel_size, module.dilation, module.stride)
        )
        patches = F.unfold(padded, kernel, dilation, 0, stride)
        yield from _some(patches.transpose(1, 2).reshape(-1, width))


def _some(rows: torch.Tensor) -> Iterator[torch.Tensor]:
    place = torch.device("cpu") if rows.device.type == "mps" else rows.device
    for few in rows.split(max(1, _ENTRIES // max(1, rows.shape[1]))):
        yield few.to(place, torch.float64)
