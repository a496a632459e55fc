"""NSGA-II (Deb, Pratap, Agarwal and Meyarivan 2002), one child at a time, so that nobody waits for a generation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from modelpress.api.search_space import Dimension, Space
from modelpress.api.v1alpha1 import Categorical, Goal
from modelpress.api.v1alpha1.base import Scalar

from .base import Observation
from .chance import Chance
from .random import RandomSampler
from .selection import Ranked, best
from .unit import share_of, value_at, value_of

POPULATION = 16  # parents; a sweep has some tens of trials, where the papers have thousands of evaluations
CROSSOVER = 0.9
_SPREAD, _STEP = 15.0, 20.0  # distribution indices of crossover and mutation, as in the paper's experiments


class Nsga2Sampler:
    """Crosses and mutates the best trials so far, by Pareto rank, crowding and what constraints they miss.

    The steady state form (Durillo, Nebro, Luna and Alba 2009, "On the effect of the steady-state selection scheme in
    multi-objective genetic algorithms"): the parents of every trial are the 16 best of all that are complete by then,
    so generations need not be remembered. The first 16 are drawn at random. Parents win tournaments of two; numbers are
    crossed by SBX and mutated polynomially in units of their range, categories are taken from one parent or drawn anew.
    """

    independent: ClassVar[bool] = False

    def __init__(self, space: Space, goals: Sequence[Goal], seed: int) -> None:
        self._space, self._goals, self._seed = space, tuple(goals), seed
        self._random = RandomSampler(space, goals, seed)
        self._free = sum(dimension.size != 1 for dimension in space.dimensions)
        self._held: dict[int, tuple[Observation, bool]] = {}

    def sample(self, number: int, observations: Sequence[Observation], attempt: int = 0) -> dict[str, Scalar] | None:
        """See Sampler.sample; never None. Further attempts mutate more."""
        usable = [item for item in observations if item.state == "complete" and self._holds(item)]
        if len(usable) < POPULATION:
            return self._random.sample(number, observations, attempt)
        parents = best(usable, self._goals, POPULATION)
        chance = Chance(self._seed, number, "nsga2", attempt)
        one, other = _winner(parents, chance), _winner(parents, chance)
        crossed = chance.uniform() < CROSSOVER
        rate = min(1.0, (1 + attempt) / max(1, self._free))

        def choose(dimension: Dimension) -> Scalar:
            name = dimension.name
            genes = [point[name] for point in (one, other) if name in point]
            if dimension.size == 1 or not genes:
                return value_of(dimension, chance.bits())
            first, second = genes[0], genes[-1] if crossed else genes[0]
            mutated = chance.uniform() < rate
            if isinstance(dimension.domain, Categorical):
                return value_of(dimension, chance.bits()) if mutated else (first if chance.uniform() < 0.5 else second)
            share, step = _crossed(share_of(dimension, first), share_of(dimension, second), chance)
            if mutated:
                share, step = _mutated(share, chance.uniform()), True
            return value_at(dimension, share) if step else first

        return self._space.walk(choose)

    def _holds(self, item: Observation) -> bool:
        cached = self._held.get(item.number)
        if cached is None or cached[0] != item:
            cached = self._held[item.number] = item, self._space.holds(item.parameters)
        return cached[1]


def _winner(parents: Sequence[Ranked], chance: Chance) -> dict[str, Scalar]:
    """The better of two parents."""
    two = [parents[chance.index(len(parents))] for _ in range(2)]
    return min(two, key=lambda item: item.key).observation.parameters


def _crossed(one: float, other: float, chance: Chance) -> tuple[float, bool]:
    """One of the two children of simulated binary crossover (Deb and Agrawal 1995), and whether it is no copy of `one`.

    As usual, half of the numbers are left as they are.
    """
    draw, side = chance.uniform(), chance.uniform()
    if one == other or side < 0.5:
        return one, False
    beta = (2 * draw) ** (1 / (_SPREAD + 1)) if draw < 0.5 else (1 / (2 * (1 - draw))) ** (1 / (_SPREAD + 1))
    sign = 1 if side < 0.75 else -1
    return 0.5 * ((1 + sign * beta) * one + (1 - sign * beta) * other), True


def _mutated(share: float, draw: float) -> float:
    """Polynomial mutation (Deb and Goyal 1996) of a number of [0, 1]."""
    share = min(max(share, 0.0), 1.0)
    power = _STEP + 1
    if draw < 0.5:
        return share + math.pow(2 * draw + (1 - 2 * draw) * math.pow(1 - share, power), 1 / power) - 1
    return share + 1 - math.pow(2 * (1 - draw) + (2 * draw - 1) * math.pow(share, power), 1 / power)
