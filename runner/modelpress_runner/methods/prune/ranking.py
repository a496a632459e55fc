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
    return max(0, min(size - 1, math.floor(size * sparsity + 1e-6)))


@dataclass
class Candidates:
    """What is ranked together inside one layer or dependency group.

    Shapes: all (n,), all on one device. `weights` says how many channels (or weights) go with each, None: one;
    `already_pruned` those that earlier rounds removed, which stay removed whatever their score.
    """

    scores: torch.Tensor
    weights: torch.Tensor | None
    already_pruned: torch.Tensor

    @property
    def size(self) -> int:
        """How many channels or weights there are in all."""
        return len(self.scores) if self.weights is None else int(self.weights.sum())


def remove_local(one: Candidates, sparsity: float) -> torch.Tensor:
    """Bool (n,): the floor(n * sparsity) lowest scores; of equal ones those of lower index. At least one is left."""
    order = _order(rounded(one.scores), one.already_pruned)
    removed = one.already_pruned.clone()
    removed[order[: removed_count(len(order), sparsity)]] = True
    return removed


def remove_by_row(one: Candidates, rows: int, sparsity: float) -> torch.Tensor:
    """As `remove_local`, but every row of the scores as (rows, n / rows) loses the same number, or one more.

    One more lose, until there are floor(n * sparsity), the rows whose next score is lowest.
    """
    scores = rounded(one.scores).view(rows, -1).masked_fill(one.already_pruned.view(rows, -1), -math.inf)
    each, more = divmod(removed_count(scores.numel(), sparsity), rows)
    ascending, order = torch.sort(scores, dim=1, stable=True)
    removed = one.already_pruned.view(rows, -1).clone()
    removed.scatter_(1, order[:, :each], True)
    if more:
        first = torch.sort(ascending[:, each], stable=True).indices[:more]
        removed[first, order[first, each]] = True
    return removed.flatten()


def remove_global(many: Sequence[Candidates], sparsity: float, globally_comparable: bool = False) -> list[torch.Tensor]:
    """As `remove_local`, in one ranking over all members; each of them keeps at least one.

    Removed is the longest run of lowest scores whose weights stay within floor(total weight * sparsity). To compare
    layers, a layer's scores are divided by their L2 norm: s_i / sqrt(sum_j s_j^2) (Molchanov et al. 2016, arXiv
    1611.06440, eq. 7). A layer whose scores are all zero keeps them. With `globally_comparable` they are
    taken as they are.
    """
    scores = torch.cat([rounded(one.scores if globally_comparable else one.scores / _norm(one.scores)) for one in many])
    weights = torch.cat([torch.ones_like(one.scores) if one.weights is None else one.weights for one in many])
    already_pruned = torch.cat([one.already_pruned for one in many])
    # The best of each member is out of the ranking: it is what the member keeps at least.
    safe = torch.zeros_like(already_pruned)
    start = 0
    for one in many:
        safe[start + int(_order(rounded(one.scores), one.already_pruned)[-1])] = True
        start += len(one.scores)
    order = _order(scores, already_pruned)
    order = order[~safe[order]]
    limit = math.floor(sum(one.size for one in many) * sparsity + 1e-6)
    removed = already_pruned.clone()
    removed[order[torch.cumsum(weights[order], 0, dtype=torch.float64) <= limit]] = True
    return list(torch.split(removed, [len(one.scores) for one in many]))


def _norm(scores: torch.Tensor) -> torch.Tensor:
    norm = torch.linalg.vector_norm(scores)
    return norm if norm > 0 else torch.ones_like(norm)


def _order(scores: torch.Tensor, already_pruned: torch.Tensor) -> torch.Tensor:
    return torch.sort(scores.masked_fill(already_pruned, -math.inf), stable=True).indices
