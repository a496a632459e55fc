"""Single weights by what their layer's outputs lose, the others making up for it (Frantar and Alistarh 2023,
arXiv 2301.00774)."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import nn

from modelpress_runner.errors import InvalidModelError
from modelpress_runner.methods.prune.activations import ActivationMethod
from modelpress_runner.methods.prune.channels import weight_of
from modelpress_runner.methods.prune.patterns import folded, unfolded
from modelpress_runner.methods.prune.protocol import CompensatingMethod, Wanted
from modelpress_runner.methods.prune.surgeon import (
    BLOCK,
    Cheapest,
    CheapestInGroups,
    Choose,
    Fixed,
    costs,
    inverse_factor,
    removed_in_turn,
)
from modelpress_runner.methods.reconstruct.inputs import input_rows


class SparseGPT(ActivationMethod, CompensatingMethod):
    """Score of a weight: w^2 / [H^-1]_jj, H being the mean of x x^T over the inputs x of its output.

    In a local ranking weights are chosen block by block of columns, among weights that have made up for those before;
    inputs of a convolution count as columns at the first position of its kernel, then at the second.
    """

    name = "sparse_gpt"

    def room(self, module: nn.Module) -> torch.Size:
        """As ActivationMethod.room: H of each group of a convolution, (groups, columns, columns)."""
        kinds = (nn.Linear, nn.Conv1d, nn.Conv2d)
        if not any(isinstance(module, kind) and type(module).forward is kind.forward for kind in kinds):
            raise InvalidModelError(
                f"sparse_gpt needs to know what a weight is multiplied with, and {type(module).__name__} has a forward "
                "of its own; exclude it, or take wanda"
            )
        groups, columns = getattr(module, "groups", 1), weight_of(module)[0].numel()
        return torch.Size([groups, columns, columns])

    def bytes(self, module: nn.Module) -> int:
        """As CompensatingMethod.bytes: the sum, and what a call adds to it."""
        return 16 * math.prod(self.room(module))

    def seen(self, module: nn.Module, taken: torch.Tensor, given: torch.Tensor) -> tuple[torch.Tensor, int]:
        """As ActivationMethod.seen."""
        groups, columns, _ = self.room(module)
        positions = 1 if isinstance(module, nn.Linear) else math.prod(cast(Any, module).kernel_size)
        total, count = None, 0
        for rows in input_rows(module, taken):
            parts = rows.view(len(rows), groups, columns // positions, positions).transpose(2, 3)
            each = parts.reshape(len(rows), groups, columns).transpose(0, 1)
            products = each.transpose(1, 2) @ each
            total, count = products if total is None else total.add_(products), count + len(rows)
        if total is None:
            total = torch.zeros(groups, columns, columns, dtype=torch.float64)
        return total, count

    def scored(self, mean: torch.Tensor, module: nn.Module) -> torch.Tensor:
        """As ActivationMethod.scored: H, which `scores` makes scores of."""
        return mean.float() if weight_of(module).device.type == "mps" else mean

    def scores(self, collected: torch.Tensor, module: nn.Module) -> torch.Tensor:
        """As DataDrivenMethod.scores."""
        weight = weight_of(module).detach()
        found = costs(_grouped(module, weight), _wide(collected))
        return unfolded(module, found.flatten(0, 1), weight).to(weight.device, torch.float32)

    def chosen(self, module: nn.Module, collected: torch.Tensor, wanted: Wanted) -> tuple[torch.Tensor, torch.Tensor]:
        """As CompensatingMethod.chosen."""
        gone = _grouped(module, wanted.gone)
        if wanted.numbers is None:
            return _swept(module, collected, Cheapest(gone, wanted.count), BLOCK)
        kept, of = wanted.numbers
        return _swept(module, collected, CheapestInGroups(gone, wanted.count, kept, of), of)

    def compensated(self, module: nn.Module, collected: torch.Tensor, removed: torch.Tensor) -> torch.Tensor:
        """As CompensatingMethod.compensated."""
        return _swept(module, collected, Fixed(_grouped(module, removed)), BLOCK)[1]


def _swept(
    module: nn.Module, collected: torch.Tensor, choose: Choose, stride: int
) -> tuple[torch.Tensor, torch.Tensor]:
    weight = weight_of(module).detach()
    gone, left = removed_in_turn(_grouped(module, weight), inverse_factor(_wide(collected)), choose, stride)
    return tuple(  # type: ignore[return-value]
        unfolded(module, each.flatten(0, 1), weight).to(weight.device, dtype)
        for each, dtype in ((gone, torch.bool), (left, weight.dtype))
    )


def _grouped(module: nn.Module, tensor: torch.Tensor) -> torch.Tensor:
    """(groups, outputs of one, columns); float64, but for bool."""
    matrix = folded(module, tensor)
    matrix = matrix if matrix.dtype is torch.bool else _wide(matrix)
    matrix = matrix.cpu() if matrix.device.type == "mps" else matrix
    return matrix.view(getattr(module, "groups", 1), -1, matrix.shape[1])


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).to(torch.float64)


METHOD = SparseGPT()
