"""From scores to what is removed: rounding, ties, counts, and rankings across layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

_BITS = 17  # of the mantissa: steps of 0.8e-5 to 1.5e-5, relative
_SIGNIFICANT = {torch.float32: 24, torch.float64: 53}


def rounded(scores: torch.Tensor) -> torch.Tensor:
    """Scores rounded to about 1e-5 relative (17 significant bits), so that the order of a sum decides nothing.

    To the nearest, to even ones in the middle; in their own precision, float32 or float64, alike on every device.
    """
    bits = scores.view(torch.int32 if scores.dtype is torch.float32 else torch.int64)
    spare = _SIGNIFICANT[scores.dtype] - _BITS
    to_even = (bits >> spare) & 1
    return (to_even.add_(bits).add_((1 << (spare - 1)) - 1) & (-1 << spare)).view(scores.dtype)


def removed_count(size: int, sparsity: float) -> int:
    """floor(size * sparsity), at most size - 1. 0.29 of 100 is 29, although 100 * 0.29 is 28.999999999999996."""
    return max(0, min(size - 1, _share(size, sparsity)))


def _share(size: int, share: float) -> int:
    return math.floor(size * share + 1e-6)


@dataclass
class Candidates:
    """What is ranked together inside one layer or dependency group.

    Shapes: all (n,), all on one device.

    Attributes:
        weights: how many channels (or weights) go with each; None: one.
        already_pruned: those that earlier rounds removed, which stay removed whatever their score.
        keep: how many are kept at least.
        least: share of them that is removed at least.
        most: share of them that is removed at most.
        multiple: how many are kept is a multiple of it, unless all are.
    """

    scores: torch.Tensor
    weights: torch.Tensor | None
    already_pruned: torch.Tensor
    keep: int = 1
    least: float = 0.0
    most: float = 1.0
    multiple: int = 1

    def bounded(self, count: int) -> int:
        """As near to `count` as may be removed."""
        size = len(self.scores)
        count = min(max(count, _share(size, self.least)), _share(size, self.most), size - self.keep)
        return max(0, size - -(-(size - count) // self.multiple) * self.multiple)

    def places(self) -> list[int]:
        """All numbers of them that may have been removed, those that are already among them, ascending."""
        gone, size = int(self.already_pruned.sum()), len(self.scores)
        low, high = (self.bounded(count) for count in (gone, size))
        allowed = (count for count in range(low, high + 1) if count == low or (size - count) % self.multiple == 0)
        return sorted({max(gone, count) for count in allowed})

    @property
    def size(self) -> int:
        """How many channels or weights there are in all."""
        return len(self.scores) if self.weights is None else int(self.weights.sum())


def local_count(one: Candidates, sparsity: float) -> int:
    """How many `remove_local` removes."""
    return max(one.bounded(_share(len(one.scores), sparsity)), int(one.already_pruned.sum()))


def remove_local(one: Candidates, sparsity: float) -> torch.Tensor:
    """Bool (n,): the floor(n * sparsity) lowest scores; of equal ones those of lower index. The bounds hold."""
    return _lowest(one, _share(len(one.scores), sparsity))


def remove_below(one: Candidates, threshold: float) -> torch.Tensor:
    """Bool (n,): all scores below the threshold, the lowest of them first, as far as the bounds allow."""
    return _lowest(one, int(((one.scores < threshold) | one.already_pruned).sum()))


def _lowest(one: Candidates, count: int) -> torch.Tensor:
    order = _order(rounded(one.scores), one.already_pruned)
    removed = one.already_pruned.clone()
    removed[order[: one.bounded(count)]] = True
    return removed


def remove_by_row(one: Candidates, rows: int, sparsity: float) -> torch.Tensor:
    """As `remove_local`, but every row of the scores as (rows, n / rows) loses the same number, or one more.

    One more lose, until there are floor(n * sparsity), the rows whose next score is lowest.
    """
    scores = rounded(one.scores).view(rows, -1).masked_fill(one.already_pruned.view(rows, -1), -math.inf)
    each, more = divmod(one.bounded(_share(scores.numel(), sparsity)), rows)
    ascending, order = torch.sort(scores, dim=1, stable=True)
    removed = one.already_pruned.view(rows, -1).clone()
    removed.scatter_(1, order[:, :each], True)
    if more:
        first = torch.sort(ascending[:, each], stable=True).indices[:more]
        removed[first, order[first, each]] = True
    return removed.flatten()


def remove_global(many: Sequence[Candidates], sparsity: float, globally_comparable: bool = False) -> list[torch.Tensor]:
    """As `remove_local`, in one ranking over all members; the bounds of each hold.

    Removed is the longest run of lowest scores whose weights stay within floor(total weight * sparsity). To compare
    layers, a layer's scores are divided by their L2 norm: s_i / sqrt(sum_j s_j^2) (Molchanov et al. 2016, arXiv
    1611.06440, eq. 7). A layer whose scores are all zero keeps them. With `globally_comparable` they are
    taken as they are.
    """
    scores = torch.cat([rounded(one.scores if globally_comparable else one.scores / _norm(one.scores)) for one in many])
    weights = torch.cat([torch.ones_like(one.scores) if one.weights is None else one.weights for one in many])
    already_pruned = torch.cat([one.already_pruned for one in many])
    # The best of each member are out of the ranking: they are what the member keeps at least. Its lowest lead it.
    safe, first = torch.zeros_like(already_pruned), already_pruned.clone()
    orders = [_order(rounded(one.scores), one.already_pruned) for one in many]
    start = 0
    for one, order in zip(many, orders, strict=True):
        safe[start + order[min(_share(len(order), one.most), len(order) - one.keep) :]] = True
        first[start + order[: _share(len(order), one.least)]] = True
        start += len(order)
    order = _order(scores, first)
    order = order[~safe[order]]
    limit = math.floor(sum(one.size for one in many) * sparsity + 1e-6)
    removed = first & ~safe | already_pruned
    removed[order[torch.cumsum(weights[order], 0, dtype=torch.float64) <= limit]] = True
    parts = list(torch.split(removed, [len(one.scores) for one in many]))
    for one, order, part in zip(many, orders, parts, strict=True):
        if one.multiple > 1:  # gives back the best of what it would lose
            again = order[one.bounded(int(part.sum())) :]
            part[again[~one.already_pruned[again]]] = False
    return parts


def _norm(scores: torch.Tensor) -> torch.Tensor:
    norm = torch.linalg.vector_norm(scores)
    return norm if norm > 0 else torch.ones_like(norm)


def _order(scores: torch.Tensor, already_pruned: torch.Tensor) -> torch.Tensor:
    return torch.sort(scores.masked_fill(already_pruned, -math.inf), stable=True).indices
