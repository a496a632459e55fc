"""Units: sets of channels that only go together, joined while a model runs.

A channel of an axis of a module is an *atom*, a number from 1 on. Atoms that an operation holds together are joined
(union-find); what must stay is frozen, with the reason, and what is joined to it is frozen for the same reason.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

LABEL = torch.int32


def labels_of(atoms: range) -> torch.Tensor:
    """Atoms as a tensor, int32 (atoms,)."""
    return torch.arange(atoms.start, atoms.stop, dtype=LABEL)


class Units:
    """Atoms, joined and frozen. Label 0 stands for a position that is no channel of anything, and never changes."""

    def __init__(self, room: int = 0) -> None:
        """`room`: how many atoms there will be, as far as is known; more are no error."""
        # By atom how far down its parent is, 0 of roots: of those a page of memory is only taken where others lie, too.
        self._up = np.zeros(1 + room, dtype=np.int32)  # with room behind what is counted
        self._why = np.zeros(1 + room, dtype=np.int32)  # of roots: the number of the reason; 0: none
        self.count = 1  # of atoms, with the 0
        self.constant = range(0)  # atoms of what is no weight
        self._reasons: dict[str, int] = {}

    def fresh(self, count: int) -> range:
        """New atoms."""
        first, end = self.count, self.count + count
        if end > len(self._up):
            room = max(end, len(self._up) * 9 // 8)
            self._up = np.concatenate([self._up[:first], np.zeros(room - first, dtype=np.int32)])
            self._why = np.concatenate([self._why[:first], np.zeros(room - first, dtype=np.int32)])
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
        met = np.unique(np.concatenate([one, other]))
        while len(one):
            # The smallest number stands for all, so that the order of joining does not matter.
            low, high = np.minimum(one, other), np.maximum(one, other)
            np.minimum.at(self._up, high, low - high)
            one, other = self._root(low), self._root(high)
            left = one != other
            one, other = one[left], other[left]
        roots, why = self._root(met), self._why[met]
        below = roots < met
        self._up[met[below]] = (roots - met)[below]
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
