"""Random numbers of one suggestion: the same for the same seed, trial and attempt, on every platform."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .base import derive


class Chance:
    """A stream of random numbers; `name` keeps the samplers' streams apart."""

    def __init__(self, seed: int, number: int, name: str, attempt: int) -> None:
        self._arguments, self._drawn = (seed, number, name, str(attempt)), 0

    def bits(self) -> int:
        """128 bits."""
        self._drawn += 1
        return derive(*self._arguments, str(self._drawn))

    def uniform(self) -> float:
        """A number of [0, 1)."""
        return (self.bits() >> 75) / 2**53

    def normal(self) -> float:
        """A standard normal number (Box and Muller 1958)."""
        return math.sqrt(-2 * math.log(1 - self.uniform())) * math.cos(2 * math.pi * self.uniform())

    def index(self, count: int) -> int:
        """A number of 0, 1, ..., count - 1."""
        return (self.bits() * count) >> 128

    def weighted(self, shares: Sequence[float]) -> int:
        """An index by its share; the shares sum to 1."""
        left = self.uniform()
        for index, share in enumerate(shares):
            left -= share
            if left < 0:
                return index
        return len(shares) - 1
