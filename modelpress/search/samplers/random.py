"""Random search: independent, uniform draws (Bergstra and Bengio 2012)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from modelpress.api.search_space import Dimension, Space
from modelpress.api.v1alpha1 import Goal
from modelpress.api.v1alpha1.base import Scalar

from .base import Observation, derive
from .unit import value_of


class RandomSampler:
    """Draws every parameter uniformly (with log: by its logarithm) from a stream of its own.

    The draw depends on seed, trial number and parameter name alone: history and parallelism change nothing, and
    neither does a parameter that is added elsewhere in the space.
    """

    independent: ClassVar[bool] = True

    def __init__(self, space: Space, goals: Sequence[Goal], seed: int) -> None:
        self._space = space
        self._seed = seed

    def sample(
        self,
        number: int,
        observations: Sequence[Observation],
        attempt: int = 0,
        given: Mapping[str, Scalar] | None = None,
    ) -> dict[str, Scalar]:
        """See Sampler.sample. `given`: parameters that are not drawn."""
        again, known = (str(attempt),) if attempt else (), given or {}

        def choose(dimension: Dimension) -> Scalar:
            if dimension.name in known:
                return known[dimension.name]
            return value_of(dimension, derive(self._seed, number, dimension.name, *again))

        return self._space.walk(choose)
