"""The search space of a sweep: dimensions, their values, the conditions under which they are sampled, and the recipe
that values give."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

from . import json_pointer
from .v1alpha1 import Categorical, CompressionSweepSpec, FloatRange, IntRange, Parameter
from .v1alpha1.base import Scalar

# To so many digits are continuous values rounded: the last bits of log and exp differ between C libraries.
SIGNIFICANT_DIGITS = 12


class SpaceError(ValueError):
    """A search space that cannot be searched; the message names the field, what is wrong and what to do."""


class PlacementError(ValueError):
    """Values that cannot be put into a template; the message names the pointer, what is wrong and what is there."""


@dataclass(frozen=True)
class Dimension:
    """One parameter of a search space. Its values are numbered 0 to size-1 unless it is continuous.

    The values of a choice are the names of its alternatives.
    """

    name: str
    domain: Categorical | FloatRange | IntRange
    # (name of an earlier parameter, its values): all must hold for this one to be sampled
    when: tuple[tuple[str, tuple[Scalar, ...]], ...] = ()

    @classmethod
    def of(cls, parameter: Parameter, name: str | None = None) -> Dimension:
        """The dimension of a parameter; of an expanded one under the name given."""
        domain: Categorical | FloatRange | IntRange | None = parameter.categorical or parameter.int or parameter.float
        if parameter.choice is not None:
            domain = Categorical(values=[item.name for item in parameter.choice.values])
        assert domain is not None  # exactly one, by the type
        when = tuple((other, tuple(values)) for other, values in (parameter.when or {}).items())
        return cls(name or parameter.name, domain, when)

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

    @property
    def continuous(self) -> bool:
        """Whether there are endlessly many values."""
        return self.size is None

    @property
    def greatest(self) -> Scalar:
        """The last value; of a continuum its upper end."""
        if self.size is not None:
            return self.at(self.size - 1)
        assert isinstance(self.domain, FloatRange)
        return self.domain.max

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

    Args:
        parameters: as users write them.
        template: the spec that they are put into, as JSON; only expanded parameters and `place` need one.

    Raises:
        SpaceError: a name stands twice, a condition names no earlier parameter, or there is nothing to expand.
    """

    def __init__(self, parameters: Sequence[Parameter], template: Mapping[str, Any] | None = None) -> None:
        dimensions: list[Dimension] = []
        names: set[str] = set()
        self._parameters = tuple(parameters)
        self._template = template if template is not None else {}
        self._layers: dict[str, tuple[str, ...]] = {}  # of expanded parameters
        for position, parameter in enumerate(parameters):
            where = f"spec.searchSpace[{position}]"
            for other in parameter.when or {}:
                if other not in names:
                    raise SpaceError(
                        f"{where}.when.{other}: there is no earlier parameter of that name; "
                        "name one that stands before this one"
                    )
            own = [parameter.name]
            if parameter.expand:
                self._layers[parameter.name] = layers_of(self._template, parameter)
                if not self._layers[parameter.name]:
                    raise SpaceError(f"{where}.expand: the entry that the pointers lead into has no opNames")
                own = [f"{parameter.name}.{layer}" for layer in self._layers[parameter.name]]
            for name in own:
                if name in names:
                    raise SpaceError(f"{where}.name: {name!r} stands twice; give each parameter its own name")
                dimensions.append(Dimension.of(parameter, name))
                names.add(name)
        self.dimensions = tuple(dimensions)

    @classmethod
    def of(cls, spec: CompressionSweepSpec) -> Space:
        """The search space of a sweep; see above for what is raised."""
        return cls(spec.search_space, spec.template.spec.to_dict())

    @property
    def conditional(self) -> bool:
        """Whether some parameter is sampled only under a condition."""
        return any(dimension.when for dimension in self.dimensions)

    def of_parameter(self, parameter: Parameter) -> list[Dimension]:
        """A parameter's dimensions: one, or one for each layer."""
        layers = self._layers.get(parameter.name)
        names = {parameter.name} if layers is None else {f"{parameter.name}.{layer}" for layer in layers}
        return [dimension for dimension in self.dimensions if dimension.name in names]

    def walk(self, choose: Callable[[Dimension], Scalar]) -> dict[str, Scalar]:
        """One point: `choose` is asked, in order, for every dimension that is active given the values before it."""
        chosen: dict[str, Scalar] = {}
        for dimension in self.dimensions:
            if active(dimension, chosen):
                chosen[dimension.name] = choose(dimension)
        return chosen

    def restricted(self, values: Mapping[str, Scalar]) -> dict[str, Scalar]:
        """Those of the values whose dimensions are active."""
        chosen: dict[str, Scalar] = {}
        for dimension in self.dimensions:
            if dimension.name in values and active(dimension, chosen):
                chosen[dimension.name] = values[dimension.name]
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

    def place(self, values: Mapping[str, Any]) -> Any:
        """The template with values put in, in the order of the search space; absent ones leave what is there.

        A choice puts in the part that its value names. Expanded parameters come last: their entry of a configList
        becomes one entry for each layer, at its place.

        Raises:
            PlacementError: a pointer leads nowhere.
        """
        document: Any = self._template
        expanded: dict[str, dict[str, dict[str, Scalar]]] = {}  # entry -> layer -> key -> value
        for position, parameter in enumerate(self._parameters):
            if parameter.expand:
                for layer in self._layers[parameter.name]:
                    value: Any = values.get(f"{parameter.name}.{layer}")
                    for path in parameter.paths if value is not None else ():
                        entry, key = entry_of(path)
                        expanded.setdefault(entry, {}).setdefault(layer, {})[key] = value
            elif parameter.name in values:
                value = placed(parameter, values[parameter.name])
                for index, path in enumerate(parameter.paths):
                    with _located(position, index):
                        document = json_pointer.set(document, path, value)
        # From the last entry of a list to the first, so that the places of those before stay what they are.
        for entry in sorted(expanded, key=_place_in_list, reverse=True):
            document = _split(document, entry, expanded[entry])
        return document


def same(left: Scalar, right: Scalar) -> bool:
    """Equality in which 1 and 1.0 are equal (JSON knows one kind of number) but 1 and true are not."""
    return isinstance(left, bool) == isinstance(right, bool) and left == right


def placed(parameter: Parameter, value: Scalar) -> Any:
    """What a value of a parameter puts into a recipe: itself, or the part that it names."""
    if parameter.choice is None:
        return value
    return next(copy.deepcopy(item.value) for item in parameter.choice.values if item.name == value)


def layers_of(template: Any, parameter: Parameter) -> tuple[str, ...]:
    """The opNames of the configList entry that all pointers of an expanded parameter lead into; () where there are
    none, or not the same ones everywhere."""
    found: set[tuple[str, ...]] = set()
    for path in parameter.paths:
        try:
            entry = json_pointer.get(template, entry_of(path)[0])
        except json_pointer.PointerError:
            return ()
        names = entry.get("opNames") if isinstance(entry, dict) else None
        found.add(tuple(dict.fromkeys(names)) if isinstance(names, list) else ())
    return found.pop() if len(found) == 1 else ()


def entry_of(path: str) -> tuple[str, str]:
    """The pointer to the object that a pointer leads into, and the key there."""
    *above, key = json_pointer.parse(path)
    return json_pointer.build(above), key


def _place_in_list(entry: str) -> tuple[str, int]:
    above, _, index = entry.rpartition("/")
    return above, int(index) if index.isdigit() else -1


def _split(document: Any, entry: str, layers: Mapping[str, Mapping[str, Scalar]]) -> Any:
    above, _, index = entry.rpartition("/")
    entries, place = list(json_pointer.get(document, above)), int(index)
    whole = entries[place]
    names = dict.fromkeys(whole["opNames"])
    entries[place : place + 1] = [{**whole, "opNames": [name], **layers.get(name, {})} for name in names]
    return json_pointer.set(document, above, entries)


@contextlib.contextmanager
def _located(position: int, index: int) -> Iterator[None]:
    try:
        yield
    except json_pointer.PointerError as error:
        known = f"; known there: {', '.join(error.known[:20])}" if error.known else ""
        raise PlacementError(f"spec.searchSpace[{position}].paths[{index}]: {error}{known}") from error


def active(dimension: Dimension, chosen: Mapping[str, Scalar]) -> bool:
    """Whether every parameter that `when` names was sampled and has one of the listed values."""
    return all(name in chosen and any(same(chosen[name], value) for value in values) for name, values in dimension.when)


def _exact(number: float) -> Fraction:
    """The decimal that is written for a number: 0.1 is 1/10, not the binary fraction next to it."""
    return Fraction(repr(number))
