"""Quasi-random search: a randomised Halton sequence (Halton 1960; Owen 2017, arXiv 1706.02808), in exact integers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import ClassVar

from modelpress.api.search_space import Dimension, Space
from modelpress.api.v1alpha1 import Goal
from modelpress.api.v1alpha1.base import Scalar

from .base import Observation, derive
from .unit import BITS, value_of

_PRECISION = 2**64  # digits are taken until they count for less than one of so many parts


class QmcSampler:
    """Fills the space more evenly than chance: trial n is point n of a low-discrepancy sequence.

    Parameter i counts in the i-th prime's base; the digits of every place are permuted by a permutation of their own
    that comes from the seed, without which high bases would fill their range in stripes. History and parallelism change
    nothing. A point whose recipe was tried before is replaced by the one of the same number of another sequence.
    """

    independent: ClassVar[bool] = True

    def __init__(self, space: Space, goals: Sequence[Goal], seed: int) -> None:
        self._space = space
        free = [dimension.name for dimension in space.dimensions if dimension.size != 1]
        self._bases = dict(zip(free, _primes(), strict=False))
        self._seed = seed
        self._permutations: dict[tuple[str, int, int], list[int]] = {}

    def sample(self, number: int, observations: Sequence[Observation], attempt: int = 0) -> dict[str, Scalar] | None:
        """See Sampler.sample; never None."""

        def choose(dimension: Dimension) -> Scalar:
            if dimension.size == 1:
                return dimension.at(0)
            return value_of(dimension, self._bits(dimension.name, number, attempt))

        return self._space.walk(choose)

    def _bits(self, name: str, number: int, attempt: int) -> int:
        """Coordinate `number` of a parameter, times 2^128."""
        base = self._bases[name]
        above, below, place = 0, 1, 0
        while below < _PRECISION:
            number, digit = divmod(number, base)
            above = above * base + self._permutation(name, base, place, attempt)[digit]
            below *= base
            place += 1
        return (above << BITS) // below

    def _permutation(self, name: str, base: int, place: int, attempt: int) -> list[int]:
        key = name, place, attempt
        if key not in self._permutations:
            if len(self._permutations) > 65_536:
                self._permutations.clear()
            again = (str(attempt),) if attempt else ()
            self._permutations[key] = sorted(
                range(base), key=lambda digit: derive(self._seed, digit, "qmc", name, str(place), *again)
            )
        return self._permutations[key]


def _primes() -> Iterator[int]:
    known: list[int] = []
    for number in itertools.count(2):
        if all(number % prime for prime in known):
            known.append(number)
            yield number
