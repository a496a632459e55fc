"""The points of a search space by number: counted and reached, never listed."""

from __future__ import annotations

from dataclasses import dataclass, field

from modelpress.api.search_space import Dimension, Space, same
from modelpress.api.v1alpha1.base import Scalar

# Counts stop here, so that a space of any size is counted in bounded time; a sweep has at most 10,000 trials.
CAP = 10_000


@dataclass(frozen=True)
class _ValueRun:
    """Neighbouring values of a dimension that have the same effect on the conditions of later ones."""

    first: int
    length: int
    kills: frozenset[int]  # positions of the later dimensions that these values make inactive


@dataclass
class _Counts:
    """Combinations by (position, dead positions), saturated at `cap`."""

    cap: int
    known: dict[tuple[int, frozenset[int]], int] = field(default_factory=dict)


class Points:
    """The points of a space without a continuum: the first parameter varies slowest, the last fastest.

    A parameter whose condition does not hold has no values to run through, so it multiplies nothing. A point is reached
    by counting: its number is a mixed-radix number whose digits depend on those before.

    Args:
        space: none of its dimensions is continuous.
    """

    def __init__(self, space: Space) -> None:
        self._dimensions = space.dimensions
        self._runs: list[list[_ValueRun]] = []
        self._followers: list[frozenset[int]] = []
        for dimension in space.dimensions:
            assert dimension.size is not None
            wanted = {
                later: values
                for later, other in enumerate(space.dimensions)
                for name, values in other.when
                if name == dimension.name
            }
            self._followers.append(frozenset(wanted))
            self._runs.append(_runs(dimension, dimension.size, wanted))
        self._counts = _Counts(CAP)

    def count(self, most: int = CAP) -> int:
        """How many points there are, or `most` if there are more."""
        return self._count(0, frozenset(), self._counts if most <= CAP else _Counts(most))

    def at(self, number: int) -> dict[str, Scalar] | None:
        """Point `number`, from 0; None: there are not so many."""
        counts = self._counts if number < CAP else _Counts(number + 1)
        if number >= self._count(0, frozenset(), counts):
            return None
        chosen: dict[str, Scalar] = {}
        dead: frozenset[int] = frozenset()
        rest = number
        for position, dimension in enumerate(self._dimensions):
            if position in dead:
                dead |= self._followers[position]
                continue
            for run in self._runs[position]:
                each = self._count(position + 1, dead | run.kills, counts)
                if rest < each * run.length:
                    chosen[dimension.name] = dimension.at(run.first + rest // each)
                    rest %= each
                    dead |= run.kills
                    break
                rest -= each * run.length
        return chosen

    def _count(self, position: int, dead: frozenset[int], counts: _Counts) -> int:
        """Combinations of the dimensions from `position` on, or cap if there are more."""
        if position == len(self._dimensions):
            return 1
        key = position, frozenset(later for later in dead if later >= position)
        if key not in counts.known:
            if position in dead:
                total = self._count(position + 1, key[1] | self._followers[position], counts)
            else:
                total = 0
                for run in self._runs[position]:
                    total += run.length * self._count(position + 1, key[1] | run.kills, counts)
                    if total >= counts.cap:
                        break
            counts.known[key] = min(total, counts.cap)
        return counts.known[key]


def _runs(dimension: Dimension, size: int, wanted: dict[int, tuple[Scalar, ...]]) -> list[_ValueRun]:
    """The dimension's values, cut where their effect on later conditions changes."""
    kills = frozenset(wanted)
    named: dict[int, frozenset[int]] = {}
    for value in (value for values in wanted.values() for value in values):
        if dimension.contains(value):
            named[dimension.index_of(value)] = frozenset(
                later for later, values in wanted.items() if not any(same(value, other) for other in values)
            )
    runs = []
    start = 0
    for index in sorted(named):
        if index > start:
            runs.append(_ValueRun(start, index - start, kills))
        runs.append(_ValueRun(index, 1, named[index]))
        start = index + 1
    if start < size:
        runs.append(_ValueRun(start, size - start, kills))
    return runs
