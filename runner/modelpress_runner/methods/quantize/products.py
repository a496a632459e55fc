"""Layers that multiply rows of their input with a matrix: the matrix, the rows, and what rounding it costs."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from modelpress_runner.edits.axes import is_conv1d
from modelpress_runner.edits.quantize import dense_class
from modelpress_runner.methods.reconstruct.inputs import input_rows, weight_matrix

_ROWS = 512  # of a weight at a time


def is_product(module: nn.Module) -> bool:
    """Whether `rows` and `matrix` know the layer: linear ones, transformers' Conv1D, and convolutions of one and two
    dimensions without groups."""
    own = dense_class(module)
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d)
    plain = any(isinstance(module, kind) and own.forward is kind.forward for kind in kinds)
    return is_conv1d(module) or (plain and getattr(module, "groups", 1) == 1)


def matrix(module: nn.Module, weight: torch.Tensor) -> torch.Tensor:
    """A weight of the layer, or its mask or integers, as a matrix: a view of shape (outputs, inputs)."""
    return weight.T if is_conv1d(module) else weight_matrix(weight)


def shaped(module: nn.Module, values: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """The inverse of `matrix`."""
    return values.T.contiguous() if is_conv1d(module) else values.reshape(shape)


def rows(module: nn.Module, given: torch.Tensor) -> Iterator[torch.Tensor]:
    """The rows of one call, some at a time: float64 (rows, inputs)."""
    if is_conv1d(module):
        for few in given.reshape(-1, given.shape[-1]).split(4096):
            yield few.double()
        return
    yield from input_rows(module, given)


def error(difference: torch.Tensor, products: torch.Tensor) -> torch.Tensor:
    """Squared error of each output over all rows, (outputs,): float64: d P d for each row d of `difference`.

    Args:
        difference: (outputs, inputs).
        products: (inputs, inputs), the sum of the rows' outer products.
    """
    parts = []
    for few in difference.split(_ROWS):
        few = few.to(products.dtype)
        parts.append(((few @ products) * few).sum(1, dtype=torch.float64))
    return torch.cat(parts)
