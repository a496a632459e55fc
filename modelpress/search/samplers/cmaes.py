"""CMA-ES (Hansen and Ostermeier 2001), with categories beside the numbers; a pure function of the history."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from modelpress.api.search_space import Dimension, Space, SpaceError
from modelpress.api.v1alpha1 import Categorical, Goal
from modelpress.api.v1alpha1.base import Scalar

from .base import Observation
from .chance import Chance
from .gaussian import Gaussian, recombination
from .qmc import QmcSampler
from .selection import by_rank
from .unit import share_of, value_at, value_of

FIRST = 10  # trials that fill the space before the distribution begins
SIGMA = 1 / 6  # of a parameter's range, at the start: around a good point, so narrower than over the whole range
LEARNED = 0.3  # share of a category's weight that a generation decides


class CmaesSampler:
    """Draws numbers from a normal distribution, and categories by weights, that follow the results.

    For one objective. The first ten trials are those of a quasi-random sequence, and the distribution begins around the
    best of them: a sweep has some tens of trials, too few to come from the middle of the space to where it is good.
    Trials are then taken in the order of their numbers, as many at a time as a generation has, and all
    that counts is how they rank among themselves: feasible before infeasible, infeasible ones by what they miss,
    stopped ones last. So the distribution is worked out anew from any history, and no trial waits for others. Weights
    of categories move by the natural gradient, as in PBIL (Baluja 1994; Ollivier et al. 2017, section 5.1), and none
    vanishes. What has a condition is drawn at random.

    Raises:
        SpaceError: there is more than one objective.
    """

    independent: ClassVar[bool] = False

    def __init__(self, space: Space, goals: Sequence[Goal], seed: int) -> None:
        if len(goals) != 1:
            raise SpaceError("spec.objectives: cmaes follows one objective; use algorithm nsga2 or tpe for several")
        free = [dimension for dimension in space.dimensions if dimension.size != 1]
        self._numbers = [item for item in free if not item.when and not isinstance(item.domain, Categorical)]
        self._categories = [item for item in free if not item.when and isinstance(item.domain, Categorical)]
        self._space, self._goal, self._seed = space, goals[0], seed
        self._size = 4 + math.floor(3 * math.log(max(1, len(self._numbers) + len(self._categories))))
        self._least = 1 - 0.73 ** (1 / max(1, len(self._categories)))  # of a category's weight (Hamano et al. 2024)
        self._weights = recombination(self._size)
        self._sequence = QmcSampler(space, goals, seed)
        self._start([])
        self._held: dict[int, tuple[Observation, bool]] = {}

    def sample(self, number: int, observations: Sequence[Observation], attempt: int = 0) -> dict[str, Scalar] | None:
        """See Sampler.sample; never None."""
        usable = [item for item in sorted(observations, key=lambda item: item.number) if self._teaches(item)]
        if len(usable) < FIRST:
            return self._sequence.sample(number, observations, attempt)
        chance = Chance(self._seed, number, "cmaes", attempt)
        self._learn(usable)
        shares = self._gaussian.draw(chance.normal) if self._gaussian is not None else []
        found = {item.name: value_at(item, share) for item, share in zip(self._numbers, shares, strict=True)}
        found |= {item.name: item.at(chance.weighted(self._shares[item.name])) for item in self._categories}

        def choose(dimension: Dimension) -> Scalar:
            return found[dimension.name] if dimension.name in found else value_of(dimension, chance.bits())

        return self._space.walk(choose)

    def _start(self, first: Sequence[Observation]) -> None:
        """Begin around the best of the first trials."""
        ranked = by_rank(first, self._goal)
        middle = self._point(ranked[0]) if ranked else [0.5] * len(self._numbers)
        self._gaussian = Gaussian(middle, SIGMA, self._size) if self._numbers else None
        self._shares = {item.name: [1 / (item.size or 1)] * (item.size or 1) for item in self._categories}
        for dimension in self._categories:
            self._follow(dimension, ranked)
        self._told = list(first)

    def _learn(self, usable: Sequence[Observation]) -> None:
        """Bring the distribution to what these observations say; goes on from the last time where they begin alike."""
        told = FIRST + (len(usable) - FIRST) // self._size * self._size
        if not self._told or list(usable[: len(self._told)]) != self._told:
            self._start(usable[:FIRST])
        for start in range(len(self._told), told, self._size):
            ranked = by_rank(usable[start : start + self._size], self._goal)
            if self._gaussian is not None:
                self._gaussian.tell([self._point(item) for item in ranked])
            for dimension in self._categories:
                self._follow(dimension, ranked)
        self._told = list(usable[:told])

    def _point(self, item: Observation) -> list[float]:
        return [share_of(dimension, item.parameters[dimension.name]) for dimension in self._numbers]

    def _follow(self, dimension: Dimension, ranked: Sequence[Observation]) -> None:
        """Move the weights of a category's values towards those of the better half."""
        old = self._shares[dimension.name]
        new = [(1 - LEARNED) * share for share in old]
        for weight, item in zip(self._weights, ranked, strict=False):
            new[dimension.index_of(item.parameters[dimension.name])] += LEARNED * weight
        least = self._least / len(new)
        raised = [max(share, least) for share in new]
        self._shares[dimension.name] = [share / math.fsum(raised) for share in raised]

    def _teaches(self, item: Observation) -> bool:
        if item.state != "complete" and not (item.state == "stopped" and item.intermediate):
            return False
        cached = self._held.get(item.number)
        if cached is None or cached[0] != item:
            cached = self._held[item.number] = item, self._space.holds(item.parameters)
        return cached[1]
