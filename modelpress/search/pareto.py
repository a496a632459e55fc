"""Which trials are best: the Pareto front, and one winner."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from modelpress.api.v1alpha1 import Goal


@dataclass(frozen=True)
class Candidate:
    """A trial that has a value for every objective. `violation` is 0 exactly if it meets every constraint."""

    number: int
    values: tuple[float, ...]
    violation: float = 0.0


def front(points: Mapping[int, Sequence[float]], goals: Sequence[Goal]) -> list[int]:
    """Numbers of the points that no other point dominates, ascending.

    A point dominates another if it is at least as good in every objective and better in one. Equal points do not
    dominate each other, so all of them are kept. O(n log n) for up to three objectives (Kung, Luccio and Preparata
    1975), O(n * length of the front) for more.

    Raises:
        ValueError: a value is NaN, or a point has not one value per goal.
    """
    numbers: dict[tuple[float, ...], list[int]] = {}
    for number, values in points.items():
        numbers.setdefault(_costs(number, values, goals), []).append(number)
    # In lexicographic order a point can be dominated only by an earlier one.
    ordered = sorted(numbers)
    kept = _staircase(ordered) if len(goals) <= 3 else _archive(ordered)
    return sorted(number for costs in kept for number in numbers[costs])


def best(candidates: Sequence[Candidate], goals: Sequence[Goal]) -> Candidate | None:
    """The winner: least total violation first, so feasible before infeasible; then the objectives in their order
    (lexicographic: the first decides, the next breaks ties); then the lowest number. None: there is no candidate."""
    return min(
        candidates,
        key=lambda item: (item.violation, _costs(item.number, item.values, goals), item.number),
        default=None,
    )


def thin(numbers: Sequence[int], points: Mapping[int, Sequence[float]], limit: int) -> list[int]:
    """At most `limit` (>= 2) numbers of a front, ascending: evenly spaced along the first objective, with both ends."""
    if len(numbers) <= limit:
        return sorted(numbers)
    along = sorted(numbers, key=lambda number: (tuple(points[number]), number))
    return sorted(along[round(i * (len(along) - 1) / (limit - 1))] for i in range(limit))


def _costs(number: int, values: Sequence[float], goals: Sequence[Goal]) -> tuple[float, ...]:
    """Values turned so that less is better."""
    if len(values) != len(goals):
        raise ValueError(f"trial {number} has {len(values)} values for {len(goals)} objectives")
    if any(math.isnan(value) for value in values):
        raise ValueError(f"trial {number} has NaN as a value")
    return tuple(value if goal == "minimize" else -value for value, goal in zip(values, goals, strict=True))


def _staircase(ordered: Sequence[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """The non-dominated among distinct, lexicographically sorted points of up to three dimensions.

    `seconds` ascends and `thirds` descends: the front, in the last two dimensions, of all points so far.
    """
    kept: list[tuple[float, ...]] = []
    seconds: list[float] = []
    thirds: list[float] = []
    for point in ordered:
        _, second, third = (*point, 0.0, 0.0)[:3]
        at = bisect_left(seconds, second)
        # The step at or left of `second` holds the least third value that comes with no greater second one.
        left = at if at < len(seconds) and seconds[at] == second else at - 1
        if left >= 0 and thirds[left] <= third:
            continue
        kept.append(point)
        end = at
        while end < len(seconds) and thirds[end] >= third:
            end += 1
        seconds[at:end], thirds[at:end] = [second], [third]
    return kept


def _archive(ordered: Sequence[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """The non-dominated among distinct, lexicographically sorted points of any dimension."""
    kept: list[tuple[float, ...]] = []
    for point in ordered:
        if not any(all(a <= b for a, b in zip(other, point, strict=True)) for other in kept):
            kept.append(point)
    return kept
