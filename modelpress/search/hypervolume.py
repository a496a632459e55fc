"""How much of the space of objectives a front dominates."""

from __future__ import annotations

from collections.abc import Sequence

from modelpress.api.v1alpha1 import Goal

Point = tuple[float, ...]


def hypervolume(points: Sequence[Sequence[float]], reference: Sequence[float], goals: Sequence[Goal]) -> float:
    """The volume between the reference and the points that are better than it in every objective.

    By slices along the last objective (Zitzler 1999), so O(n^(m-1) log n) for m objectives: for fronts as sweeps have
    them, not for thousands of points in five dimensions.
    """
    gains = [_gain(point, reference, goals) for point in points]
    return _volume(sorted({gain for gain in gains if all(value > 0 for value in gain)}))


def _gain(point: Sequence[float], reference: Sequence[float], goals: Sequence[Goal]) -> Point:
    """How much better a point is than the reference in each objective."""
    return tuple(
        value - least if goal == "maximize" else least - value
        for value, least, goal in zip(point, reference, goals, strict=True)
    )


def _volume(gains: Sequence[Point]) -> float:
    if not gains:
        return 0.0
    if len(gains[0]) == 1:
        return max(gain[0] for gain in gains)
    levels = sorted({gain[-1] for gain in gains}, reverse=True)
    total = 0.0
    for level, below in zip(levels, [*levels[1:], 0.0], strict=True):
        above = {gain[:-1] for gain in gains if gain[-1] >= level}
        total += (level - below) * _volume(sorted(above))
    return total
