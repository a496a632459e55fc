"""Axes: from values to positions, with round numbers as ticks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

LOG_FROM = 100.0  # values this many times apart are drawn by logarithm
_MARGIN = 0.06


@dataclass(frozen=True)
class Scale:
    """Values from `low` to `high` on a line from `start` to `end`, evenly or by logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float) -> Scale:
        """A scale with some room beyond all values.

        Raises:
            ValueError: there are no values.
        """
        low, high = min(values), max(values)
        if low > 0 and high / low >= LOG_FROM:
            room = (high / low) ** _MARGIN
            return cls(low / room, high * room, start, end, True)
        room = (high - low) * _MARGIN or abs(high) * _MARGIN or 1.0
        return cls(low - room, high + room, start, end, False)

    def at(self, value: float) -> float:
        """Position of a value; beyond the ends where it is out of range."""
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low) if value > 0 else -1.0
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def holds(self, value: float) -> bool:
        """Whether a value lies between the ends."""
        return self.low <= value <= self.high

    def ticks(self, about: int = 5) -> list[float]:
        """Round values within the scale: 1, 2 or 5 times a power of ten apart, or such numbers themselves."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for factors in ((1, 2, 5), (1,)):
                found = [v for power in powers for f in factors if self.holds(v := f * 10.0**power)]
                if len(found) <= 2 * about:
                    return found
            return found[:: math.ceil(len(found) / about)]
        rough = (self.high - self.low) / about
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [float(f"{number * step:.12g}") for number in range(first, last + 1)]
