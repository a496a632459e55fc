"""The search space of a sweep: dimensions, their values, and the conditions under which they are sampled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from modelpress.api.search_space_values import same
from modelpress.api.v1alpha1 import Categorical, FloatRange, IntRange, Parameter
from modelpress.api.v1alpha1.base import Scalar

# To so many digits are continuous values rounded: the last bits of log and exp differ between C libraries.
SIGNIFICANT_DIGITS = 12


class SpaceError(ValueError):
    """A search space that cannot be searched; the message names the field, what is wrong and what to do."""


@dataclass(frozen=True)
class Dimension:
    """One parameter of a search space. Its values are numbered 0 to size-1 unless it is continuous."""

    name: str
    domain: Categorical | FloatRange | IntRange
    # (name of an earlier parameter, its values): all must hold for this one to be sampled
    when: tuple[tuple[str, tuple[Scalar, ...]], ...] = ()

    @cached_property
    def size(self) -> int | None:
        """How many values there are; None: a continuum."""
        domain = self.domain
        if isinstance(domain, Categorical):
            return len(domain.values)
        if isinstance(domain, IntRange):
            return (domain.max - domain.min) // (domain.step or 1) + 1
        if domain.min == domain.max:
            return 1
        if domain.step is None:
            return None
        return int((_exact(domain.max) - _exact(domain.min)) // _exact(domain.step)) + 1

    @property
    def log(self) -> bool:
        """Whether values are spread evenly by their logarithm."""
        return not isinstance(self.domain, Categorical) and self.domain.log

    def at(self, index: int) -> Scalar:
        """Value number `index`; on a stepped grid the float nearest to the decimal min + index * step.

        Raises:
            IndexError: there is no such value, or the dimension is continuous.
        """
        if self.size is None or not 0 <= index < self.size:
            raise IndexError(f"{self.name} has {self.size or 'no numbered'} values; there is no number {index}")
        domain = self.domain
        if isinstance(domain, Categorical):
            return domain.values[index]
        if isinstance(domain, IntRange):
            return domain.min + index * (domain.step or 1)
        if domain.step is None:
            return domain.min
        return float(_exact(domain.min) + index * _exact(domain.step))

    def index_of(self, value: Scalar) -> int:
        """The number of a value; the inverse of at.

        Raises:
            ValueError: it is none of the values, or the dimension is continuous.
        """
        domain = self.domain
        index = -1
        if isinstance(domain, Categorical):
            index = next((i for i, item in enumerate(domain.values) if same(item, value)), -1)
        elif self.size is not None and isinstance(value, int | float) and not isinstance(value, bool):
            step = domain.step or 1
            index = round((_exact(value) - _exact(domain.min)) / _exact(step))
        if self.size is None or not 0 <= index < self.size or not same(self.at(index), value):
            raise ValueError(f"{value!r} is none of the values of {self.name}")
        return index

    def tidy(self, value: float) -> float:
        """A value of a continuous dimension, rounded to 12 significant digits and kept inside [min, max]."""
        assert isinstance(self.domain, FloatRange)
        return min(max(float(f"{value:.{SIGNIFICANT_DIGITS}g}"), self.domain.min), self.domain.max)

    def contains(self, value: Scalar) -> bool:
        """Whether the value is one of this dimension's."""
        if self.size is not None:
            try:
                self.index_of(value)
            except ValueError:
                return False
            return True
        assert isinstance(self.domain, FloatRange)
        return (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and self.domain.min <= value <= self.domain.max
        )


class Space:
    """Dimensions in order, some of them conditional on earlier ones.

    Raises:
        SpaceError: a name stands twice, or a condition names no earlier parameter.
    """

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        dimensions: list[Dimension] = []
        names: set[str] = set()
        for position, parameter in enumerate(parameters):
            where = f"spec.searchSpace[{position}]"
            if parameter.name in names:
                raise SpaceError(f"{where}.name: {parameter.name!r} stands twice; give each parameter its own name")
            for other in parameter.when or {}:
                if other not in names:
                    raise SpaceError(
                        f"{where}.when.{other}: there is no earlier parameter of that name; "
                        "name one that stands before this one"
                    )
            domain = parameter.categorical or parameter.int or parameter.float
            assert domain is not None  # exactly one, by the type
            when = tuple((other, tuple(values)) for other, values in (parameter.when or {}).items())
            dimensions.append(Dimension(parameter.name, domain, when))
            names.add(parameter.name)
        self.dimensions = tuple(dimensions)

    @property
    def conditional(self) -> bool:
        """Whether some parameter is sampled only under a condition."""
        return any(dimension.when for dimension in self.dimensions)

    def walk(self, choose: Callable[[Dimension], Scalar]) -> dict[str, Scalar]:
        """One point: `choose` is asked, in order, for every dimension that is active given the values before it."""
        chosen: dict[str, Scalar] = {}
        for dimension in self.dimensions:
            if active(dimension, chosen):
                chosen[dimension.name] = choose(dimension)
        return chosen

    def holds(self, parameters: Mapping[str, Scalar]) -> bool:
        """Whether this is a point of the space: exactly the active parameters, each with one of its values."""
        try:
            return self.walk(lambda dimension: parameters[dimension.name]) == parameters and all(
                dimension.contains(parameters[dimension.name])
                for dimension in self.dimensions
                if dimension.name in parameters
            )
        except KeyError:
            return False


def active(dimension: Dimension, chosen: Mapping[str, Scalar]) -> bool:
    """Whether every parameter that `when` names was sampled and has one of the listed values."""
    return all(name in chosen and any(same(chosen[name], value) for value in values) for name, values in dimension.when)


def _exact(number: float) -> Fraction:
    """The decimal that is written for a number: 0.1 is 1/10, not the binary fraction next to it."""
    return Fraction(repr(number))
