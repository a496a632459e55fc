"""Units: sets of channels that only go together, joined while a model runs.

A channel of an axis of a module is an *atom*, a number from 1 on. Atoms that an operation holds together are joined
(union-find); what must stay is frozen, with the reason, and what is joined to it is frozen for the same reason.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

LABEL = torch.int32


def labels_of(atoms: range) -> torch.Tensor:
    """Atoms as a tensor, int32 (atoms,)."""
    return torch.arange(atoms.start, atoms.stop, dtype=LABEL)


class Units:
    """Atoms, joined and frozen. Label 0 stands for a position that is no channel of anything, and never changes."""

    def __init__(self) -> None:
        self._parent = np.zeros(1, dtype=np.int32)  # with room behind what is counted
        self.count = 1  # of atoms, with the 0
        self.constant = range(0)  # atoms of what is no weight
        self._reasons: dict[int, str] = {}  # by root

    def fresh(self, count: int) -> range:
        """New atoms."""
        first, end = self.count, self.count + count
        if end > len(self._parent):
            grown = np.zeros(max(end, len(self._parent) * 9 // 8), dtype=np.int32)
            grown[:first] = self._parent[:first]
            self._parent = grown
        self._parent[first:end] = np.arange(first, end, dtype=np.int32)
        self.count = end
        return range(first, end)

    def atoms(self, count: int) -> torch.Tensor:
        """New atoms as labels."""
        return labels_of(self.fresh(count))

    def roots(self, labels: torch.Tensor) -> torch.Tensor:
        """The labels with every atom replaced by the one that stands for its unit; they themselves if all do."""
        given = places = labels.numpy()
        while True:
            up = self._parent[places]
            if np.array_equal(up, places):
                return labels if places is given else torch.from_numpy(places)
            places = up

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
        pairs = torch.unique(first[differ].long() * self.count + second[differ]).tolist()
        for a, b in [divmod(pair, self.count) for pair in pairs]:
            if a == 0 or b == 0:
                self._freeze(self._find(a or b), reason)
            else:
                self._unite(self._find(a), self._find(b))
        self._flatten({atom for pair in pairs for atom in divmod(pair, self.count)})

    def freeze(self, labels: torch.Tensor, reason: str) -> None:
        """Keeps the units of these atoms; the first reason that is given is the one that is told."""
        for atom in torch.unique(labels).tolist():
            if atom:
                self._freeze(self._find(atom), reason)

    def reason(self, root: int) -> str | None:
        """Why the unit of this root must stay; None: it need not."""
        return self._reasons.get(root)

    # ------------------------------------------------------------------------------------------------------------------

    def _find(self, atom: int) -> int:
        parent = self._parent
        while parent[atom] != atom:
            parent[atom] = parent[parent[atom]]
            atom = int(parent[atom])
        return int(atom)

    def _unite(self, a: int, b: int) -> None:
        if a == b:
            return
        # The smaller number stands for both, so that the order of joining does not matter.
        root, other = (a, b) if a < b else (b, a)
        self._parent[other] = root
        reason = self._reasons.pop(other, None)
        if reason is not None:
            self._reasons.setdefault(root, reason)

    def _freeze(self, root: int, reason: str) -> None:
        self._reasons.setdefault(root, reason)

    def _flatten(self, atoms: Iterable[int]) -> None:
        for atom in atoms:
            self._parent[atom] = self._find(atom)
