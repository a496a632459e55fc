"""Inputs of a proof: the dummy input, and others of its kind that fill ranges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from modelpress_runner.runtime.graph import map_tensors, tensors_in

Table = tuple[int, torch.Tensor]  # rows of an embedding, and the indices that were looked up in it


@dataclass(frozen=True)
class Change:
    """What of the dummy input changes: numbers, indices into tables, masks; how many rows; whether it is shorter."""

    numbers: bool = True
    indices: bool = True
    masks: bool = True
    rows: int | None = None
    shorter: bool = False


# Tried in this order: a model may refuse inputs that are drawn (a logarithm, a schema), and then less is drawn.
CHANGES = (
    Change(),
    Change(masks=False),
    Change(numbers=False),
    Change(indices=False, masks=False),
    Change(numbers=False, masks=False),
)


class Examples:
    """The dummy input and its variations.

    Args:
        dummy_input: as the model takes it.
        tables: of the embeddings that the dummy input went into; tensors of the input that are their indices are drawn
            from all of their rows.
    """

    def __init__(self, dummy_input: Any, tables: Sequence[Table] = ()) -> None:
        self._dummy = dummy_input
        self._tensors = tensors_in(dummy_input)
        self._kinds = [_kind(tensor, tables) for tensor in self._tensors]

    def dummy(self) -> Any:
        """The dummy input, copied: a model may write into it."""
        return map_tensors(self._dummy, torch.clone)

    def varied(self, change: Change, seed: int) -> Any:
        """Another input. Equal seeds give equal ones."""
        generator = torch.Generator().manual_seed(seed)
        batch = _common({t.shape[0] for t in self._tensors if t.dim()})
        cut = self._shortened() if change.shorter else {}
        numbers = iter(range(len(self._tensors)))

        def vary(tensor: torch.Tensor) -> torch.Tensor:
            number = next(numbers)
            for dim, size in cut.get(number, ()):
                tensor = tensor.narrow(dim, 0, size)
            if change.rows is not None and batch and tensor.dim():
                tensor = tensor.index_select(0, torch.arange(change.rows, device=tensor.device) % batch)
            return self._kinds[number](tensor, change, generator)

        return map_tensors(self._dummy, vary)

    @property
    def rows(self) -> int | None:
        """Size of dimension 0, where all tensors have the same."""
        return _common({t.shape[0] for t in self._tensors if t.dim()})

    def _shortened(self) -> dict[int, list[tuple[int, int]]]:
        """For each tensor by number the (dimension, size) that make a sequence shorter, or an image smaller."""
        sequences = [t.shape[1] for t in self._tensors if not t.is_floating_point() and t.dim() >= 2]
        length = sequences[0] if sequences else next((t.shape[1] for t in self._tensors if t.dim() == 3), None)
        out: dict[int, list[tuple[int, int]]] = {}
        for number, tensor in enumerate(self._tensors):
            if length is not None:
                last = 2 if tensor.is_floating_point() else tensor.dim()
                dims = [dim for dim in range(1, last) if dim < tensor.dim() and tensor.shape[dim] == length > 1]
            else:
                dims = [dim for dim in range(2, tensor.dim()) if tensor.shape[dim] > 1]
            out[number] = [(dim, (tensor.shape[dim] + 1) // 2) for dim in dims]
        return out


_Vary = Callable[[torch.Tensor, Change, torch.Generator], torch.Tensor]


def _kind(tensor: torch.Tensor, tables: Sequence[Table]) -> _Vary:
    if tensor.is_floating_point() or tensor.is_complex():
        return _numbers(tensor)
    rows = [rows for rows, indices in tables if indices.shape == tensor.shape and torch.equal(indices, tensor)]
    if rows:
        return _indices(0, min(rows))
    if tensor.numel() and int(tensor.min()) >= 0 and int(tensor.max()) <= 1:
        return _mask if tensor.dim() else _same
    return _indices(int(tensor.min()), int(tensor.max()) + 1) if tensor.numel() else _same


def _same(tensor: torch.Tensor, change: Change, generator: torch.Generator) -> torch.Tensor:
    return tensor.clone()


def _numbers(like: torch.Tensor) -> _Vary:
    values = like.detach()
    finite = bool(values.numel()) and bool(torch.isfinite(values).all())
    if not finite:
        return _same  # a mask of infinities
    wide = values.to("cpu", torch.complex128 if like.is_complex() else torch.float64)
    spread = float(wide.std()) if wide.numel() > 1 else 0.0
    # Numbers that are all alike say nothing of their range.
    center = wide.mean() if spread > 0 else torch.zeros((), dtype=wide.dtype)
    spread = spread if spread > 0 else 1.0

    def vary(tensor: torch.Tensor, change: Change, generator: torch.Generator) -> torch.Tensor:
        if not change.numbers:
            return tensor.clone()
        return (center + spread * torch.randn(tensor.shape, generator=generator, dtype=wide.dtype)).to(tensor)

    return vary


def _indices(low: int, high: int) -> _Vary:
    def vary(tensor: torch.Tensor, change: Change, generator: torch.Generator) -> torch.Tensor:
        if not change.indices:
            return tensor.clone()
        return torch.randint(low, high, tensor.shape, generator=generator).to(tensor)

    return vary


def _mask(tensor: torch.Tensor, change: Change, generator: torch.Generator) -> torch.Tensor:
    """True up to a place of its own in every row; both values are there, whichever of them means padding."""
    length = tensor.shape[-1]
    if not change.masks or length < 2:
        return tensor.clone()
    ends = torch.randint(1, length, (*tensor.shape[:-1], 1), generator=generator)
    return (torch.arange(length) < ends).to(tensor)


def _common(sizes: set[int]) -> int | None:
    return sizes.pop() if len(sizes) == 1 else None
