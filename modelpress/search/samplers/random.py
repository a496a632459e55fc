"""Random search: independent, uniform draws (Bergstra and Bengio 2012)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from modelpress.api.v1alpha1 import Categorical, FloatRange, Goal
from modelpress.api.v1alpha1.base import Scalar
from modelpress.search.space import Dimension, Space

from .base import Observation, derive

_BITS = 128


class RandomSampler:
    """Draws every parameter uniformly (with log: by its logarithm) from a stream of its own.

    The draw depends on seed, trial number and parameter name alone: history and parallelism change nothing, and
    neither does a parameter that is added elsewhere in the space.
    """

    independent: ClassVar[bool] = True

    def __init__(self, space: Space, goals: Sequence[Goal], seed: int) -> None:
        self._space = space
        self._seed = seed

    def sample(self, number: int, observations: Sequence[Observation], attempt: int = 0) -> dict[str, Scalar] | None:
        """See Sampler.sample; never None."""
        again = (str(attempt),) if attempt else ()
        return self._space.walk(lambda dimension: draw(dimension, derive(self._seed, number, dimension.name, *again)))


def draw(dimension: Dimension, bits: int) -> Scalar:
    """The value that 128 uniform random bits stand for."""
    domain = dimension.domain
    if isinstance(domain, Categorical) or dimension.size == 1 or (dimension.size is not None and not domain.log):
        assert dimension.size is not None
        return dimension.at((bits * dimension.size) >> _BITS)
    share = (bits >> (_BITS - 53)) / 2**53
    if isinstance(domain, FloatRange):
        if not domain.log:
            return dimension.tidy(domain.min * (1 - share) + domain.max * share)
        return dimension.tidy(math.exp(math.log(domain.min) * (1 - share) + math.log(domain.max) * share))
    # Each integer gets the share of [min - 1/2, max + 1/2] that rounds to it.
    low, high = math.log(domain.min - 0.5), math.log(domain.max + 0.5)
    return min(max(round(math.exp(low * (1 - share) + high * share)), domain.min), domain.max)
