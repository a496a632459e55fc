"""Grid search: every combination once, in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from modelpress.api.search_space import Space, SpaceError
from modelpress.api.v1alpha1 import Goal
from modelpress.api.v1alpha1.base import Scalar
from modelpress.search.points import Points

from .base import Observation


class GridSampler:
    """Trial number n is combination number n: the first parameter varies slowest, the last fastest.

    Every integer of an int range is a value, also with log.

    Raises:
        SpaceError: a float range has no step.
    """

    independent: ClassVar[bool] = True

    def __init__(self, space: Space, goals: Sequence[Goal], seed: int) -> None:
        for position, dimension in enumerate(space.dimensions):
            if dimension.size is None:
                raise SpaceError(
                    f"spec.searchSpace[{position}].float: grid needs a step, for {dimension.name!r} has endlessly many "
                    "values; add one, or use another algorithm"
                )
        self._points = Points(space)

    def sample(self, number: int, observations: Sequence[Observation], attempt: int = 0) -> dict[str, Scalar] | None:
        """See Sampler.sample; None when `number + attempt` is not less than the number of combinations."""
        return self._points.at(number + attempt)
