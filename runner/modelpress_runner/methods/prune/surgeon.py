"""Weights of a layer removed column by column, what is left to their right making up for them.

Optimal brain surgeon as SparseGPT has it (Frantar and Alistarh 2023, arXiv 2301.00774, algorithm 1). With inputs x and
H = mean of x x^T the outputs of a row w move by d H d^T, d its change. Removing w_j at least cost moves the others
by -w_j / [H^-1]_jj [H^-1]_j, and costs w_j^2 / [H^-1]_jj. Columns are gone through from left to right, and only those
to the right of one still move, so that all rows share one sequence of inverses: the rows of the upper Cholesky factor U
of H^-1, with U_jj^2 in the place of [H^-1]_jj. Updates wait within blocks of columns, and go on to the rest as one
product of matrices.

A weight is (groups, outputs of one, columns), each group with a matrix H of its own; everything is float64.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from modelpress_runner.methods.prune.ranking import rounded

BLOCK = 128  # columns that updates wait for, and among which single weights are chosen
DAMPING = 0.01  # of the mean of H's diagonal, added to it

# Of the columns from `start` on: their weights as they are by now and U_jj, (groups, outputs, n) and (groups, n); what
# goes of them, bool, (groups, outputs, n).
Choose = Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor]


def inverse_factor(moments: torch.Tensor) -> torch.Tensor:
    """U, (groups, columns, columns), of the damped H; inputs that are always zero leave the damping alone."""
    factor: torch.Tensor = torch.linalg.cholesky(_inverse(moments), upper=True)
    return factor


def costs(weight: torch.Tensor, moments: torch.Tensor) -> torch.Tensor:
    """w^2 / [H^-1]_jj of each weight, as long as nothing else goes."""
    return weight.square() / _inverse(moments).diagonal(dim1=1, dim2=2)[:, None]


def removed_in_turn(
    weight: torch.Tensor, factor: torch.Tensor, choose: Choose, stride: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """What goes, bool, and the new weight; `choose` is asked for `stride` columns at a time, as their turn comes."""
    columns = weight.shape[2]
    left, gone = weight.clone(), torch.zeros_like(weight, dtype=torch.bool)
    block = max(stride, BLOCK // stride * stride)
    for start in range(0, columns, block):
        end = min(start + block, columns)
        errors = torch.zeros_like(left[:, :, start:end])
        for column in range(start, end):
            if (column - start) % stride == 0:
                some = slice(column, min(column + stride, columns))
                scale = factor[:, some, some].diagonal(dim1=1, dim2=2)
                gone[:, :, some] = choose(column, left[:, :, some], scale)
            kept = left[:, :, column].masked_fill(gone[:, :, column], 0.0)
            error = (left[:, :, column] - kept) / factor[:, column, column, None]
            left[:, :, column:end] -= error[:, :, None] * factor[:, None, column, column:end]
            left[:, :, column] = kept
            errors[:, :, column - start] = error
        left[:, :, end:] -= errors @ factor[:, start:end, end:]
    return gone, left


class Fixed:
    """Chooses what is given: `gone`, bool, in the shape of the weight."""

    def __init__(self, gone: torch.Tensor) -> None:
        self._gone = gone

    def __call__(self, start: int, values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """As Choose."""
        return self._gone[:, :, start : start + values.shape[2]]


class Cheapest:
    """Chooses `count` weights in all, of each block of columns its share, those that cost least.

    Args:
        gone: bool, in the shape of the weight: what goes at any rate, and is counted.
    """

    def __init__(self, gone: torch.Tensor, count: int) -> None:
        self._gone = gone
        self._share = _Share(count - int(gone.sum()), int((~gone).sum()))

    def __call__(self, start: int, values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """As Choose."""
        before = self._gone[:, :, start : start + values.shape[2]]
        cost = (values / scale[:, None]).square()
        return before | _lowest(cost, before, self._share.next(int((~before).sum())))


class CheapestInGroups:
    """Chooses `count` groups in all of `of` columns of an output, of the groups in each such columns their share, and
    of each group all but the `kept` that cost most."""

    def __init__(self, gone: torch.Tensor, count: int, kept: int, of: int) -> None:
        self._gone, self._each, self._of = gone, of - kept, of
        done = gone.unflatten(2, (-1, of)).sum(dim=3) >= self._each
        self._share = _Share(count - int(done.sum()), int((~done).sum()))

    def __call__(self, start: int, values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """As Choose; asked for the columns of one group at a time."""
        before = self._gone[:, :, start : start + self._of]
        cost = rounded((values / scale[:, None]).square())
        order = torch.sort(cost.masked_fill(before, -torch.inf), dim=2, stable=True).indices[:, :, : self._each]
        chosen = torch.zeros_like(before).scatter_(2, order, True)
        done = before.sum(dim=2) >= self._each
        total = cost.gather(2, order).sum(dim=2)
        taken = _lowest(total, done, self._share.next(int((~done).sum())))
        return before | (chosen & taken[:, :, None])


class _Share:
    """Hands `count` out over `total` candidates, as they come, as evenly as whole numbers allow."""

    def __init__(self, count: int, total: int) -> None:
        self._count, self._total, self._seen, self._taken = max(0, count), max(1, total), 0, 0

    def next(self, candidates: int) -> int:
        self._seen += candidates
        more = self._count * self._seen // self._total - self._taken
        self._taken += more
        return more


def _lowest(cost: torch.Tensor, closed: torch.Tensor, count: int) -> torch.Tensor:
    """Bool: the `count` lowest that are not `closed`; of equal ones those of lower index."""
    out = torch.zeros_like(closed).flatten()
    order = torch.sort(rounded(cost.contiguous()).masked_fill(closed, torch.inf).flatten(), stable=True).indices
    out[order[:count]] = True
    return out.view(closed.shape)


def _inverse(moments: torch.Tensor) -> torch.Tensor:
    damped = moments.clone()
    diagonal = damped.diagonal(dim1=1, dim2=2)
    mean = diagonal.mean(dim=1, keepdim=True)
    diagonal += torch.where(mean > 0, DAMPING * mean, 1.0)
    return torch.cholesky_inverse(torch.linalg.cholesky(damped))
