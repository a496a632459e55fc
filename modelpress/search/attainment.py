"""How far a search has come after each of its trials. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modelpress.api.v1alpha1 import Goal

from .hypervolume import hypervolume
from .pareto import Candidate, front

MAX_STEPS = 100  # of a curve that is shown; a search of some hundred trials rarely gains more often


@dataclass(frozen=True)
class Attainment:
    """What a search had attained, as steps: after trial `numbers[i]` it was `shares[i]`, and until the next one.

    Attributes:
        numbers: of the trials that brought it further, ascending.
        shares: of the hypervolume between the worst and the best value of each objective among all feasible trials:
            0 at the worst, 1 where one trial is best in everything. With one objective how far the best is from the
            worst, so the last is 1.
    """

    numbers: tuple[int, ...] = ()
    shares: tuple[float, ...] = ()

    def at(self, number: int) -> float:
        """The share once that trial was over; 0 before the first."""
        found = [share for other, share in zip(self.numbers, self.shares, strict=True) if other <= number]
        return found[-1] if found else 0.0

    def thinned(self, most: int = MAX_STEPS) -> Attainment:
        """At most so many steps, the first and the last among them."""
        last = len(self.numbers) - 1
        if last < most:
            return self
        kept = [round(index * last / (most - 1)) for index in range(most)]
        return Attainment(tuple(self.numbers[i] for i in kept), tuple(self.shares[i] for i in kept))


def attainment(candidates: Sequence[Candidate], goals: Sequence[Goal]) -> Attainment:
    """What feasible trials attained, in the order of their numbers; the reference is the worst value of each objective.

    An objective in which all trials are alike says nothing and is left out.
    """
    feasible = sorted((item for item in candidates if item.violation == 0), key=lambda item: item.number)
    if not feasible:
        return Attainment()
    scaled = _scaled(feasible, goals)
    numbers: list[int] = []
    shares: list[float] = []
    standing: dict[int, tuple[float, ...]] = {}
    all_up: list[Goal] = ["maximize"] * len(next(iter(scaled.values())))
    for number, gains in scaled.items():
        standing[number] = gains
        kept = front(standing, all_up) if all_up else [number]
        if number not in kept:
            del standing[number]
            continue
        standing = {other: standing[other] for other in kept}
        share = hypervolume(list(standing.values()), [0.0] * len(all_up), all_up) if all_up else 1.0
        if not shares or share > shares[-1]:
            numbers.append(number)
            shares.append(share)
    return Attainment(tuple(numbers), tuple(shares))


def _scaled(feasible: Sequence[Candidate], goals: Sequence[Goal]) -> dict[int, tuple[float, ...]]:
    """Each objective from 0, the worst, to 1, the best."""
    ranges = []
    for axis, goal in enumerate(goals):
        values = [item.values[axis] for item in feasible]
        worst, best = (min(values), max(values)) if goal == "maximize" else (max(values), min(values))
        if worst != best:
            ranges.append((axis, worst, best - worst))
    return {
        item.number: tuple((item.values[axis] - worst) / width for axis, worst, width in ranges) for item in feasible
    }
