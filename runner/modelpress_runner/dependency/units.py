"""Units: sets of channels that only go together, joined while a model runs.

A channel of an axis of a module is an *atom*, a number from 1 on. Atoms that an operation holds together are joined
(union-find); what must stay is frozen, with the reason, and what is joined to it is frozen for the same reason.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

LABEL = torch.int32
_PAGE = 64  # atoms


def labels_of(atoms: range) -> torch.Tensor:
    """Atoms as a tensor, int32 (atoms,)."""
    return torch.arange(atoms.start, atoms.stop, dtype=LABEL)


class _Ups:
    """By atom how far down its parent is, 0 of roots.

    Axes are joined whole, most of them position by position: then a page of atoms has one number. Others have rows.
    """

    def __init__(self, atoms: int) -> None:
        pages = -(-atoms // _PAGE)
        self._whole: Any = np.zeros(pages, dtype=np.int32)  # by page what all its atoms have
        self._row: Any = np.zeros(pages, dtype=np.int32)  # by page its row; 0: that of zeros
        self._rows: Any = np.zeros((1 + pages, _PAGE), dtype=np.int32)  # memory is only taken where they are written
        self._taken = 1

    def make_room(self, atoms: int) -> None:
        """For so many atoms."""
        if atoms > _PAGE * len(self._whole):
            more = max(-(-atoms // _PAGE), len(self._whole) * 9 // 8) - len(self._whole)
            self._whole, self._row = (
                np.append(each, np.zeros_like(each, shape=more)) for each in (self._whole, self._row)
            )
            rows = np.zeros((1 + len(self._whole), _PAGE), dtype=np.int32)
            rows[: self._taken] = self._rows[: self._taken]
            self._rows = rows

    def __getitem__(self, atoms: Any) -> Any:
        pages = atoms // _PAGE
        up, row = self._whole[pages], self._row[pages]
        return up + self._rows[row, atoms % _PAGE] if row.any() else up

    def set(self, atoms: Any, up: Any) -> None:
        """Of an array of roots that ascend."""
        pages, begin, count = np.unique(atoms // _PAGE, return_index=True, return_counts=True)
        if not len(pages):
            return
        alike = (count == _PAGE) & (np.minimum.reduceat(up, begin) == np.maximum.reduceat(up, begin))
        self._whole[pages[alike]] = up[begin[alike]]
        new = pages[~alike & (self._row[pages] == 0)]
        self._row[new] = np.arange(self._taken, self._taken + len(new))
        self._taken += len(new)
        rest = np.repeat(~alike, count)
        atoms = atoms[rest]
        self._rows[self._row[atoms // _PAGE], atoms % _PAGE] = up[rest]


class Units:
    """Atoms, joined and frozen. Label 0 stands for a position that is no channel of anything, and never changes."""

    def __init__(self, room: int = 0) -> None:
        """`room`: how many atoms there will be, as far as is known; more are no error."""
        self._up = _Ups(1 + room)
        self._why = np.zeros(1 + room, dtype=np.int32)  # of roots: the number of the reason; 0: none
        self.count = 1  # of atoms, with the 0 and with numbers that no atom has
        self.constant = range(0)  # atoms of what is no weight
        self._reasons: dict[str, int] = {}

    def fresh(self, count: int) -> range:
        """New atoms."""
        first = self.count if count < _PAGE else -(-self.count // _PAGE) * _PAGE
        end = first + count
        self._up.make_room(end)
        if end > len(self._why):
            more = max(end, len(self._why) * 9 // 8) - len(self._why)
            self._why = np.append(self._why, np.zeros(more, dtype=np.int32))
        self.count = end
        return range(first, end)

    def atoms(self, count: int) -> torch.Tensor:
        """New atoms as labels."""
        return labels_of(self.fresh(count))

    def roots(self, labels: torch.Tensor) -> torch.Tensor:
        """The labels with every atom replaced by the one that stands for its unit; they themselves if all do."""
        given = labels.numpy()
        found = self._root(given)
        return labels if found is given else torch.from_numpy(found)

    def are_constant(self, labels: torch.Tensor) -> bool:
        """Whether atoms have met no others than those of what is no weight."""
        roots = self.roots(labels)
        low, high = self.constant.start, self.constant.stop
        return low < high and bool(((roots >= low) & (roots < high)).all())

    def join(self, first: torch.Tensor, second: torch.Tensor, reason: str) -> None:
        """Joins atoms at the same position of two tensors of whole numbers, which broadcast.

        An atom that meets a 0 is tied to what cannot change: it is frozen for `reason`.
        """
        first, second = torch.broadcast_tensors(self.roots(first), self.roots(second))
        differ = first != second
        if not bool(differ.any()):
            return
        pairs = torch.unique(first[differ].long() * self.count + second[differ]).numpy()
        one, other = (each.astype(np.int32) for each in divmod(pairs, self.count))
        fixed = (one == 0) | (other == 0)
        self._freeze((one + other)[fixed], reason)
        self._unite(one[~fixed], other[~fixed])

    def freeze(self, labels: torch.Tensor, reason: str) -> None:
        """Keeps the units of these atoms; the first reason that is given is the one that is told."""
        self._freeze(self.roots(labels).numpy(), reason)

    def reasons(self, roots: Any) -> Any:
        """Numbers of the reasons why the units of an array of roots must stay, of the same shape; 0: they need not."""
        return self._why[roots]

    @property
    def texts(self) -> list[str]:
        """The reasons by their numbers."""
        return ["", *self._reasons]

    # ------------------------------------------------------------------------------------------------------------------

    def _unite(self, one: Any, other: Any) -> None:
        """Joins two arrays of roots, position by position."""
        met, places = np.unique(np.concatenate([one, other]), return_inverse=True)
        one, other = np.split(places, 2)
        stands = np.arange(len(met))  # by place the one that stands for it
        while len(one):
            # The smallest number stands for all, so that the order of joining does not matter.
            low, high = np.minimum(one, other), np.maximum(one, other)
            np.minimum.at(stands, high, low)
            while (further := stands[stands] != stands).any():
                stands[further] = stands[stands[further]]
            one, other = stands[low], stands[high]
            left = one != other
            one, other = one[left], other[left]
        roots, why = met[stands], self._why[met]
        below = roots < met
        self._up.set(met[below], (roots - met)[below])
        told = (why > 0) & (self._why[roots] == 0)
        self._why[roots[told][::-1]] = why[told][::-1]  # of several the smallest one's, which is written last

    def _freeze(self, roots: Any, reason: str) -> None:
        new = roots[(roots > 0) & (self._why[roots] == 0)]
        if len(new):
            self._why[new] = self._reasons.setdefault(reason, len(self._reasons) + 1)

    def _root(self, atoms: Any) -> Any:
        while True:
            up = self._up[atoms]
            if not up.any():
                return atoms
            atoms = atoms + up
