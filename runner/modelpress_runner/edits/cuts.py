"""Cuts: the edits that take channels away."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import nn

from modelpress_runner.edits.attention import PrunedMultiheadAttention, keep_from_nested
from modelpress_runner.edits.axes import DIMENSION, SIDES, AxisView, axis_of, partners, shrink_shared
from modelpress_runner.edits.axes import cut as cut_tensor
from modelpress_runner.edits.base import Edit, register
from modelpress_runner.edits.masks import Masks
from modelpress_runner.errors import CompressionError, InvalidModelError


@register
@dataclass(frozen=True)
class Cut(Edit):
    """One shrunk axis: `kept` are the indices of the module's parameters along it that stay, ascending.

    axis "out" is what the module gives (output channels of a convolution, features of a norm), "in" what it takes,
    "hidden" what takes the hidden units of a recurrent layer; of a plain parameter "dimN" is its dimension N. A
    parameter that modules share is cut in all of them, and stays shared. Kept values are copied bit by bit.
    """

    kind: ClassVar[str] = "cut"

    module: str
    axis: str
    kept: tuple[int, ...]

    def apply(self, model: nn.Module, masks: Masks | None = None) -> None:
        """As Edit.apply."""
        try:
            view = axis_of(model, self.module, self.axis)
            if not self.kept or self.kept[-1] >= view.size:
                raise CompressionError(
                    f"'{self.module}' has {view.size} {self.axis} channels; the cut keeps numbers up to "
                    f"{self.kept[-1] if self.kept else 'none'}"
                )
            kept = kept_vector(self.kept, view.size)
            _cut_masks(masks or {}, self._owner(model), view, kept)
            names = {id(module): name for name, module in model.named_modules()}
            for other, _ in partners(model, view):
                _cut_masks(masks or {}, names[id(other.owner)], other, kept)
            shrink_shared(model, view, kept)
            if isinstance(view.owner, PrunedMultiheadAttention):
                keep_from_nested(model, view.owner)
        except CompressionError as error:
            raise InvalidModelError(f"{error}; the model is not the one that was shrunk") from error

    def to_plain(self) -> dict[str, Any]:
        """{"module", "axis", "kept"}"""
        return {"module": self.module, "axis": self.axis, "kept": list(self.kept)}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """As Edit.from_plain."""
        module, axis, kept = plain.get("module"), plain.get("axis"), plain.get("kept")
        if (
            not isinstance(module, str)
            or not isinstance(axis, str)
            or not (axis in SIDES or DIMENSION.fullmatch(axis))
            or not isinstance(kept, list)
            or not kept
            or not all(type(index) is int and index >= 0 for index in kept)
            or not all(a < b for a, b in itertools.pairwise(kept))
        ):
            raise ValueError("it needs module, axis (in, out, hidden, dimN) and kept (ascending numbers)")
        return cls(module, axis, tuple(kept))

    def _owner(self, model: nn.Module) -> str:
        """Where its masks stand: those of a plain parameter are its module's."""
        try:
            model.get_submodule(self.module)
        except AttributeError:
            return self.module.rpartition(".")[0]
        return self.module


def _cut_masks(masks: Masks, module: str, view: AxisView, kept: torch.Tensor) -> None:
    tensors = masks.get(module, {})
    for name in tensors.keys() & view.tensors.keys():
        tensors[name] = cut_tensor(view, name, tensors[name], kept)


def kept_vector(kept: Iterable[int], size: int) -> torch.Tensor:
    """Bool (size,), True at the indices `kept`."""
    vector = torch.zeros(size, dtype=torch.bool)
    vector[torch.tensor(list(kept), dtype=torch.long)] = True
    return vector
