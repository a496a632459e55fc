"""Which trials are better, for samplers that go by ranks: feasible ones first, then the Pareto fronts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from modelpress.api.v1alpha1 import Goal
from modelpress.search import pareto

from .base import Observation


@dataclass(frozen=True)
class Ranked:
    """A complete trial among others. Less is better of `key`: its front, then minus the crowding distance in it."""

    observation: Observation
    key: tuple[float, float, int]


def best(observations: Sequence[Observation], goals: Sequence[Goal], count: int) -> list[Ranked]:
    """The best `count` of the complete trials, best first.

    Constrained domination (Deb et al. 2002, section VI): feasible before infeasible, infeasible ones by what they miss
    in all, feasible ones by the number of their front, and in one front those that lie less crowded first; equal ones
    by their number.
    """
    complete = [item for item in observations if item.state == "complete"]
    left = {item.number: item for item in complete if _missed(item) == 0}
    found: list[Ranked] = []
    depth = 0
    while left and len(found) < count:
        front = pareto.front({number: item.values for number, item in left.items()}, goals)
        spread = crowding([left[number].values for number in front])
        ranked = [
            Ranked(left.pop(number), (float(depth), -distance, number))
            for number, distance in zip(front, spread, strict=True)
        ]
        found += sorted(ranked, key=lambda item: item.key)
        depth += 1
    infeasible = sorted((item for item in complete if _missed(item) > 0), key=lambda item: (_missed(item), item.number))
    found += [Ranked(item, (float(depth + place), 0.0, item.number)) for place, item in enumerate(infeasible[:count])]
    return found[:count]


def crowding(points: Sequence[Sequence[float]]) -> list[float]:
    """The crowding distance of each point of a front (Deb et al. 2002): infinite at the ends of every objective.

    Equal points lie at no distance from each other, so all but the first of them are the most crowded.
    """
    distances = [0.0] * len(points)
    if not points:
        return distances
    distinct = {tuple(point): index for index, point in reversed(list(enumerate(points)))}
    for axis in range(len(points[0])):
        order = sorted(distinct.values(), key=lambda index: (points[index][axis], index))
        width = points[order[-1]][axis] - points[order[0]][axis]
        distances[order[0]] = distances[order[-1]] = math.inf
        for before, index, after in zip(order, order[1:], order[2:], strict=False):
            distances[index] += (points[after][axis] - points[before][axis]) / width if width > 0 else 0.0
    return distances


def by_rank(observations: Sequence[Observation], goal: Goal) -> list[Observation]:
    """Complete and stopped trials of a search for one objective, best first.

    Feasible before infeasible, infeasible ones by what they miss; stopped ones behind, by how far they came, then by
    their last score, as far as they have one.
    """
    sign = 1.0 if goal == "minimize" else -1.0

    def key(item: Observation) -> tuple[float, ...]:
        if item.state == "complete":
            return (0, _missed(item), sign * item.values[0], item.number)
        step, value = item.intermediate[-1]
        return (1, -step, sign * value, item.number)

    told = [
        item for item in observations if item.state == "complete" or (item.state == "stopped" and item.intermediate)
    ]
    return sorted(told, key=key)


def _missed(item: Observation) -> float:
    return math.fsum(item.violations) if math.inf not in item.violations else math.inf
