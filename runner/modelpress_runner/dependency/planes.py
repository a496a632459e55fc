"""Planes: which unit each position of a tensor belongs to.

A plane is a tensor of whole numbers with as many dimensions as its tensor; each has the tensor's size, or 1 where the
label is the same all along it. So what an activation of millions of elements carries is a vector of its channels. A
tensor has a plane for each independent structure: a weight one for its output and one for its input channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from modelpress_runner.dependency.unit_lists import UnitList
from modelpress_runner.dependency.units import Units, labels_of


@dataclass(frozen=True, eq=False)
class Plane:
    """Labels of the positions of one tensor.

    Attributes:
        labels: as the module says; 0: no channel of anything.
        zero: positions of a unit that is masked hold exact zeros.
    """

    labels: torch.Tensor
    zero: bool = False

    @property
    def varying(self) -> list[int]:
        """The dimensions along which labels change."""
        return [d for d, size in enumerate(self.labels.shape) if size > 1]

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether it can be that of a tensor of this shape."""
        return len(shape) == self.labels.dim() and all(
            n in (1, size) for n, size in zip(self.labels.shape, shape, strict=True)
        )

    def like(self, labels: torch.Tensor) -> Plane:
        """The same with other labels, made compact."""
        return replace(self, labels=compact(labels))

    def aligned(self, dims: int) -> Plane:
        """With dimensions of size 1 in front, as broadcasting adds them."""
        missing = dims - self.labels.dim()
        return replace(self, labels=self.labels.reshape((1,) * missing + tuple(self.labels.shape)))

    def expanded(self, shape: Sequence[int]) -> torch.Tensor:
        """Labels of every position of a tensor of this shape, without memory for those that repeat."""
        return self.labels.expand(tuple(shape))


@dataclass(frozen=True, slots=True)
class Axis:
    """A plane of a parameter, whose atoms lie along dimension `dim` of `dims`; labels are made when they are used."""

    atoms: range
    dim: int
    dims: int
    zero: bool

    def plane(self) -> Plane:
        """As it is from the start."""
        shape = [1] * self.dims
        shape[self.dim] = len(self.atoms)
        return Plane(labels_of(self.atoms).reshape(shape), self.zero)


@dataclass(frozen=True, slots=True)
class Kept:
    """Labels that are kept until a pass ends. Most count up: small blocks among activations would hold the memory of
    those that are gone."""

    units: UnitList
    shape: tuple[int, ...]

    @classmethod
    def of(cls, labels: torch.Tensor) -> Kept:
        """A copy of labels."""
        return cls(UnitList(labels.flatten().numpy().copy()), tuple(labels.shape))

    def labels(self) -> torch.Tensor:
        """The labels, made anew."""
        return torch.from_numpy(self.units.array.copy()).reshape(self.shape)


def compact(labels: torch.Tensor) -> torch.Tensor:
    """The labels with size 1 along every dimension that they do not change along."""
    for d, (size, stride) in enumerate(zip(labels.shape, labels.stride(), strict=True)):
        if size > 1 and stride == 0:
            labels = labels.narrow(d, 0, 1)
    for d, size in enumerate(labels.shape):
        if size > 1:
            first = labels.narrow(d, 0, 1)
            if bool((labels == first).all()):
                labels = first
    return labels


def reshaped(labels: torch.Tensor, old: Sequence[int], new: Sequence[int]) -> torch.Tensor:
    """Labels of a tensor of shape `old` once it has shape `new`.

    Dimensions that they do not change along, and that are not laid together with one that they do, keep size 1.
    """
    if 0 in old:
        return labels.expand(tuple(old)).reshape(tuple(new))
    sizes, result = list(labels.shape), [1] * len(new)
    i = j = 0
    while i < len(old) and j < len(new):
        first, begin, before, behind = i, j, old[i], new[j]
        i, j = i + 1, j + 1
        while before != behind:  # as many dimensions of either as hold equally many positions
            if before < behind:
                before, i = before * old[i], i + 1
            else:
                behind, j = behind * new[j], j + 1
        if any(size > 1 for size in sizes[first:i]):
            sizes[first:i], result[begin:j] = old[first:i], new[begin:j]
    return labels.expand(sizes).reshape(result)


def resolved(planes: Iterable[Plane], units: Units) -> list[Plane]:
    """The planes with the units of now, without those that hold no channel and those that say the same.

    A unit that is all of a tensor stays: nothing would be left.
    """
    out: list[Plane] = []
    for plane in planes:
        labels = compact(units.roots(plane.labels))
        if labels.numel() < 2:
            units.freeze(labels, "nothing would be left without them")
            continue
        for number, known in enumerate(out):
            if known.labels.shape == labels.shape and torch.equal(known.labels, labels):
                out[number] = replace(known, zero=known.zero or plane.zero)
                break
        else:
            out.append(Plane(labels, plane.zero))
    return out


def rigid(plane: Plane, dims: Iterable[int], units: Units, reason: str) -> Plane | None:
    """The plane once no single position may go along `dims`: only what reaches all along them can.

    Labels at one place of the other dimensions are joined; where there is no other dimension, they are frozen.

    Returns:
        The plane without these dimensions; None: nothing is left of it.
    """
    along = [d for d in plane.varying if d in set(dims)]
    if not along:
        return plane
    labels = plane.labels
    if len(along) == len(plane.varying):
        units.freeze(labels, reason)
        return None
    first = labels
    for d in along:
        first = first.narrow(d, 0, 1)
    units.join(first, labels, reason)
    return replace(plane, labels=compact(units.roots(first)))


def tied(
    first: tuple[Sequence[Plane], Sequence[int]],
    second: tuple[Sequence[Plane], Sequence[int]],
    units: Units,
    reason: str,
) -> list[Plane]:
    """As `meet`, both ways: each operand's planes with the dimensions that it is real along. The planes of both."""
    meet(first[0], second[0], second[1], units, reason)
    meet(second[0], first[0], first[1], units, reason)
    return resolved([*first[0], *second[0]], units)


def meet(planes: Sequence[Plane], other: Sequence[Plane], real: Sequence[int], units: Units, reason: str) -> None:
    """Ties planes of one operand to those of another whose positions they meet one by one.

    Both are aligned to the same dimensions; `real` are those along which the other operand does not broadcast. Where it
    has no channels, nothing can go; so its size along that dimension makes this operand rigid there. A buffer holds
    what it meets along some of its dimensions, so that it may go by the others: heads whose places a table turns.
    """
    other = [partner for partner in other if not _holds(partner, planes, units, reason)]
    covered = {d for plane in other for d in plane.varying}
    for plane in planes:
        for partner in other:
            if set(plane.varying) & set(partner.varying) and not _holds(plane, [partner], units, reason):
                units.join(plane.labels, partner.labels, reason)
        rigid(plane, [d for d in real if d not in covered], units, reason)


def _holds(plane: Plane, others: Sequence[Plane], units: Units, reason: str) -> bool:
    """Whether a plane is that of a buffer, and one of the others has channels along more dimensions; it stays then."""
    along = set(plane.varying)
    for other in others:
        across = set(other.varying)
        if along & across and across - along and units.are_constant(plane.labels):
            units.freeze(plane.labels, reason)
            return True
    return False
