"""Patterns: which single weights are removed as one, and what their scores come to.

A weight is seen as the matrix that it multiplies with: a row for each output, a column for each input that the row
meets. Of a convolution those are the input channels at the first position of the kernel, then at the second, so that
inputs that lie beside each other in a block are beside each other in the layout that fast kernels use.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from modelpress.api.stages.prune import kept_of
from modelpress_runner.edits.axes import CONV, AxisView, module_axis
from modelpress_runner.errors import InvalidModelError
from modelpress_runner.methods.prune.channels import in_blocks

CHANNEL = "1xchannel"
INPUTS = "channelx1"


@dataclass
class Blocks:
    """The blocks of one module's weight.

    Attributes:
        scores: of each block, (blocks,).
        size: how many weights go with a block.
        share: of the weights, those that go if all blocks go.
        rows: of blocks, those of the same outputs; None: they lie across outputs.
    """

    scores: torch.Tensor
    size: int
    share: float
    rows: int | None
    _module: nn.Module
    _like: torch.Tensor
    _pattern: str | None
    _chosen: torch.Tensor | None = None  # of N:M: the weights that each group would lose, (rows, groups, M)

    def weights(self, removed: torch.Tensor) -> torch.Tensor:
        """The weights of the blocks `removed`, bool (blocks,): bool, in the shape of the weight."""
        if self._pattern is None:
            return removed.view(self._like.shape)
        if self._pattern == INPUTS:
            view = module_axis(self._module, type(self._module).__name__, "in")
            return ~view.keep_mask("weight", self._like, ~removed)
        if self._chosen is not None:
            groups = self._chosen & removed.view(self._chosen.shape[:2])[:, :, None]
            return unfolded(self._module, groups.flatten(1), self._like)
        outputs, inputs = _sides(self._pattern)
        matrix = removed.view(-1, _columns(self._module, self._like) // inputs)
        return unfolded(self._module, matrix.repeat_interleave(outputs, 0).repeat_interleave(inputs, 1), self._like)

    def whole(self, mask: torch.Tensor) -> torch.Tensor:
        """Bool (blocks,): those whose every weight is in `mask`, bool, in the shape of the weight."""
        if self._chosen is not None:
            gone = folded(self._module, mask).view(self._chosen.shape).sum(dim=2)
            return (gone >= self.size).flatten()
        return _reduced(self._module, self._pattern, mask.float()).flatten() == 1


def divide(module: nn.Module, name: str, pattern: str | None, scores: torch.Tensor, gone: torch.Tensor) -> Blocks:
    """The blocks of a weight.

    Args:
        name: of the module, for messages.
        pattern: None: single weights, in the order of the weight; 1x1: in rows of their outputs.
        scores: of single weights, in the shape of the weight.
        gone: bool, in that shape: those that are removed already, which a group of N:M loses first.

    Raises:
        InvalidModelError: the module cannot be divided so.
    """
    if pattern is None:
        return Blocks(scores.flatten(), 1, 1.0, None, module, scores, None)
    if pattern == INPUTS:
        try:
            module_axis(module, name, "in")
        except Exception as error:
            raise InvalidModelError(f"'{name}' ({type(module).__name__}) has no input channels to remove") from error
        found = _reduced(module, pattern, scores)
        return Blocks(found, scores.numel() // len(found), 1.0, None, module, scores, pattern)
    numbers = kept_of(pattern)
    outputs, inputs = (1, numbers[1]) if numbers else _sides(pattern)
    view = _axis(module)
    per_group = len(scores) if view is None else view.size // view.groups
    width = _columns(module, scores) if view is None else view.view("weight", scores).shape[2]
    for size, of, what in ((outputs, per_group, "outputs"), (inputs, width, "inputs")):
        if of % size:
            raise InvalidModelError(f"'{name}' has {of} {what}, which {pattern} does not divide")
    if numbers is None:
        found = _reduced(module, pattern, scores)
        return Blocks(found.flatten(), outputs * inputs, 1.0, len(found), module, scores, pattern)
    kept, of = numbers
    groups = folded(module, scores).reshape(-1, _columns(module, scores) // of, of)
    already = folded(module, gone).reshape(groups.shape)
    order = torch.sort(groups.masked_fill(already, -torch.inf), dim=2, stable=True).indices
    lowest = order[:, :, : of - kept]
    chosen = torch.zeros_like(already).scatter_(2, lowest, True)
    sums = groups.gather(2, lowest).sum(dim=2)
    return Blocks(sums.flatten(), of - kept, (of - kept) / of, len(sums), module, scores, pattern, chosen)


def by_output(view: AxisView, scores: torch.Tensor) -> torch.Tensor:
    """The scores of output channels, float64, (channels,): the means of those of their weights."""
    return in_blocks(lambda some: some.mean(dim=1), view.rows("weight", scores))


def _sides(pattern: str) -> tuple[int, int]:
    outputs, _, inputs = pattern.partition("x")
    return int(outputs), int(inputs)


def _reduced(module: nn.Module, pattern: str | None, tensor: torch.Tensor) -> torch.Tensor:
    if pattern is None:
        return tensor
    if pattern == INPUTS:
        view = module_axis(module, type(module).__name__, "in")
        return in_blocks(lambda some: some.mean(dim=1), view.rows("weight", tensor)).to(tensor.dtype)
    outputs, inputs = _sides(pattern)
    matrix = folded(module, tensor)
    return matrix.reshape(len(matrix) // outputs, outputs, -1, inputs).mean(dim=(1, 3))


def _axis(module: nn.Module) -> AxisView | None:
    return module_axis(module, type(module).__name__, "out") if isinstance(module, CONV | nn.Linear) else None


def _columns(module: nn.Module, tensor: torch.Tensor) -> int:
    view = _axis(module)
    return tensor.numel() // (len(tensor) if view is None else view.size)


def folded(module: nn.Module, tensor: torch.Tensor) -> torch.Tensor:
    """The matrix, (outputs, columns), of a tensor in the shape of the weight."""
    view = _axis(module)
    if view is None:
        return tensor.flatten(1)
    return view.view("weight", tensor).movedim(2, -1).reshape(view.size, -1)


def unfolded(module: nn.Module, matrix: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The tensor in the shape of the weight whose matrix this is."""
    view = _axis(module)
    if view is None:
        return matrix.reshape(like.shape)
    out = torch.empty(like.shape, dtype=matrix.dtype, device=matrix.device)
    target = view.view("weight", out).movedim(2, -1)
    target.copy_(matrix.view(target.shape))
    return out
