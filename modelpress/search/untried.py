"""Points whose recipe was not tried before: none is measured twice, and a small space ends when it is used up."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from modelpress.api.search_space import PlacementError, Space
from modelpress.api.v1alpha1 import CompressionSweepSpec
from modelpress.api.v1alpha1.base import Scalar

from .points import CAP, Points
from .samplers import Observation, Sampler, derive
from .samplers.random import RandomSampler

Parameters = dict[str, Scalar]

# Points that a sampler which learns may give for one trial; each costs a fit. Then points are drawn.
FITTED = 8
# Draws in a space that can be counted, before its points are gone through by number.
DRAWS = 64
# Draws where there is a continuum: 255 of 256 values of a condition may be used up, and the last one's subspace not.
DRAWS_OF_A_CONTINUUM = 4096
# Points of a counted space that are told apart: twice as many as a sweep has trials.
_COUNTED = 2 * CAP
# Invalid recipes that are passed over while the points are gone through; the next one is refused like any other.
_INVALID = 256


class Untried:
    """Gives each trial a point whose recipe is not that of another.

    Recipes are compared, not parameters: what counts is the specification with the parameters put in.

    Args:
        spec: the sweep.
        space: its search space.
        sampler: proposes points.
        valid: whether the parameters give a valid recipe.
        earlier: trials of earlier sweeps, numbered from 0: the sampler learns from them, and they count as no trials.
    """

    def __init__(
        self,
        spec: CompressionSweepSpec,
        space: Space,
        sampler: Sampler,
        valid: Callable[[Parameters], bool],
        earlier: Sequence[Observation] = (),
    ) -> None:
        self._earlier = tuple(earlier)
        self._space, self._sampler, self._valid = space, sampler, valid
        self._seed = spec.algorithm.seed
        self._initial = spec.algorithm.initial or []
        finite = all(dimension.size is not None for dimension in space.dimensions)
        self._points = Points(space) if finite else None
        self._random = RandomSampler(space, (), self._seed)
        # Of a sampler whose answers do not depend on results: the points of trials 0, 1, ... and their recipes.
        self._sequence: list[Parameters] = []
        self._taken: set[bytes] = set()
        self._ended = False
        self._recipes: dict[int, tuple[Parameters, bytes]] = {}  # of observed trials, as long as they stay the same

    def point(self, number: int, observations: list[Observation]) -> Parameters | None:
        """The point of trial `number`; None: every recipe of the space was tried.

        Where results change nothing it depends on seed and number alone: trials that were lost count like any other, so
        a disturbed sweep goes through the same points as an undisturbed one.
        """
        if self._sampler.independent:
            return self._independent(number)
        tried = {self._observed(item) for item in observations}
        if (wish := self._wish(number, tried)) is not None:
            return wish
        first = self._sampled(number, observations, 0)
        if first is not None and self.recipe(first) not in tried and (self._valid(first) or self._some_left(tried)):
            return first
        for attempt in range(1, FITTED):
            found = self._sampled(number, observations, attempt)
            if found is not None and self.recipe(found) not in tried and self._valid(found):
                return found
        return self._drawn(number, tried)

    def learned(self, observations: Sequence[Observation]) -> list[Observation]:
        """What the sampler learns from: the trials, and those of earlier sweeps."""
        before = len(self._earlier)
        return [*self._earlier, *(replace(item, number=item.number + before) for item in observations)]

    def recipe(self, parameters: Mapping[str, Any]) -> bytes:
        """A digest of the specification that the parameters give."""
        try:
            document = self._space.place(parameters)
        except PlacementError:
            document = dict(parameters)
        return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).digest()[:16]

    def _sampled(self, number: int, observations: Sequence[Observation], attempt: int) -> Parameters | None:
        """What the sampler gives; behind earlier trials its own count on."""
        before = len(self._earlier)
        return self._sampler.sample(number + before, self.learned(observations) if before else observations, attempt)

    def _wish(self, number: int, tried: Container[bytes]) -> Parameters | None:
        """The point that the user wants as trial `number`, unless it was tried; what he leaves open is drawn."""
        wanted = self._initial[number] if number < len(self._initial) else {}
        for attempt in range(FITTED if wanted else 0):
            found = self._random.sample(number, [], attempt, wanted)
            if self.recipe(found) not in tried:
                return found
        return None

    def _observed(self, trial: Observation) -> bytes:
        known = self._recipes.get(trial.number)
        if known is None or known[0] is not trial.parameters:
            known = self._recipes[trial.number] = trial.parameters, self.recipe(trial.parameters)
        return known[1]

    def _independent(self, number: int) -> Parameters | None:
        while len(self._sequence) <= number and not self._ended:
            found = self._next(len(self._sequence))
            if found is None:
                self._ended = True
            else:
                self._sequence.append(found)
                self._taken.add(self.recipe(found))
        return dict(self._sequence[number]) if number < len(self._sequence) else None

    def _next(self, number: int) -> Parameters | None:
        if (wish := self._wish(number, self._taken)) is not None:
            return wish
        number -= min(number, len(self._initial))  # so that a grid and a sequence begin at their beginning
        attempt = 0
        while attempt < DRAWS or self._points is None:
            found = self._sampler.sample(number, [], attempt)
            if found is None or self.recipe(found) not in self._taken:
                return found
            attempt += 1
            if attempt >= DRAWS_OF_A_CONTINUUM:
                return None
        return next(self._by_number(number, self._taken), None)

    def _drawn(self, number: int, tried: Container[bytes]) -> Parameters | None:
        """A point by chance; where none is found so, one of those that are left."""
        draws = DRAWS if self._points is not None else DRAWS_OF_A_CONTINUUM
        for attempt in range(draws):
            found = self._random.sample(number, [], attempt)
            if self.recipe(found) not in tried and self._valid(found):
                return found
        return self._left(number, tried)

    def _left(self, number: int, tried: Container[bytes]) -> Parameters | None:
        """The first by number that is valid, or that follows on so many invalid ones that nobody looks further."""
        for invalid, found in enumerate(self._by_number(number, tried)):
            if invalid >= _INVALID or self._valid(found):
                return found
        return None

    def _by_number(self, number: int, tried: Container[bytes]) -> Iterator[Parameters]:
        """The points of a counted space that were not tried, from a random one on."""
        if self._points is None:
            return
        count = self._points.count(_COUNTED)
        start = derive(self._seed, number, "left") % count
        for index in range(count):
            found = self._points.at((start + index) % count)
            if found is not None and self.recipe(found) not in tried:
                yield found

    def _some_left(self, tried: Container[bytes]) -> bool:
        """Whether a valid recipe was not tried, as far as that can be found out."""
        if self._points is None:
            return True
        return self._left(0, tried) is not None
