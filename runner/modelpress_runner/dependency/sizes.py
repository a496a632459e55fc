"""Whole numbers that a model's code reads from attributes and asks for as sizes, and how they follow what is cut.

A number in the copy that is analysed knows which attributes it came of, through sums and products too. Where it is the
size of a dimension that channels run along, the attribute has to count what is left of them. What attributes then say
of any other size must still be true; where it is not, the channels stay.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from modelpress_runner.dependency.planes import Kept, Plane, resolved
from modelpress_runner.dependency.units import Units

# A module and its attribute, "config.num_heads" for one of an object that it holds; of a size that was read from the
# shape of a tensor its number.
Name = tuple[str, str] | int
Formula = Callable[[Mapping[Name, int]], int]

_MOST = 256  # readings of the attributes that a few sizes are computed from


class NamedSize(int):
    """A whole number that knows how it is computed from attributes of modules."""

    names: tuple[Name, ...]
    computed: Formula | None = None  # None: it is the first of them itself

    @classmethod
    def of(cls, value: int, module: str, name: str) -> NamedSize:
        """The number as the attribute has it."""
        return cls._made(value, ((module, name),))

    @classmethod
    def _made(cls, value: int, names: tuple[Name, ...]) -> NamedSize:
        size = cls(value)
        size.names = names
        return size

    @classmethod
    def read(cls, value: int, number: int) -> NamedSize:
        """The size of a dimension, which follows what is cut by itself."""
        return cls._made(value, (number,))

    def formula(self, values: Mapping[Name, int]) -> int:
        """The number where attributes and shapes have these values."""
        return values[self.names[0]] if self.computed is None else self.computed(values)

    @property
    def source(self) -> int | None:
        """The number of the shape that it was read from, if it is that size itself."""
        return self.names[0] if self.computed is None and isinstance(self.names[0], int) else None

    @property
    def attributes(self) -> list[tuple[str, str]]:
        """The attributes that it is computed from."""
        return [name for name in self.names if isinstance(name, tuple)]

    def _with(self, operation: Callable[[int, int], int], other: Any, swapped: bool = False) -> Any:
        if type(other) not in (int, NamedSize, FixedSize):
            return NotImplemented
        first, second = (other, self) if swapped else (self, other)
        names = dict.fromkeys((*_names(first), *_names(second)))
        f, g = _formula(first), _formula(second)
        size = NamedSize._made(operation(int(first), int(second)), tuple(names))
        size.computed = lambda values: operation(f(values), g(values))
        return size

    def __add__(self, other: Any) -> Any:
        return self._with(operator.add, other)

    def __radd__(self, other: Any) -> Any:
        return self._with(operator.add, other, True)

    def __sub__(self, other: Any) -> Any:
        return self._with(operator.sub, other)

    def __rsub__(self, other: Any) -> Any:
        return self._with(operator.sub, other, True)

    def __mul__(self, other: Any) -> Any:
        return self._with(operator.mul, other)

    def __rmul__(self, other: Any) -> Any:
        return self._with(operator.mul, other, True)

    def __floordiv__(self, other: Any) -> Any:
        return self._with(operator.floordiv, other)

    def __rfloordiv__(self, other: Any) -> Any:
        return self._with(operator.floordiv, other, True)


class FixedSize(int):
    """The size of a dimension without channels: what is asked to be as long cannot change either.

    What is computed from it is a number like any other; computed with a NamedSize, one that knows its attributes.
    """

    def __add__(self, other: Any) -> Any:
        return operator.add(int(self), other)

    def __sub__(self, other: Any) -> Any:
        return operator.sub(int(self), other)

    def __mul__(self, other: Any) -> Any:
        return operator.mul(int(self), other)

    def __floordiv__(self, other: Any) -> Any:
        return operator.floordiv(int(self), other)


def is_attribute(value: Any) -> bool:
    """Whether it is a number that is computed from attributes."""
    return isinstance(value, NamedSize) and bool(value.attributes)


def _names(value: int) -> tuple[Name, ...]:
    return value.names if isinstance(value, NamedSize) else ()


def _formula(value: int) -> Formula:
    return value.formula if isinstance(value, NamedSize) else lambda values: value


@dataclass(frozen=True)
class Use:
    """A number that was asked for as the size of a dimension, or as that of a part of it.

    Attributes:
        size: the number.
        dim: along which `labels` are those of its positions; None: it has no channels.
        where: the operation and the line.
    """

    size: NamedSize
    dim: int
    labels: Kept | None
    where: str


Asked = tuple[Use, list[int]]  # with the roots at its positions; 0: none


def follow(
    uses: Sequence[Use], attributes: Mapping[Name, int], shapes: Sequence[tuple[int, Kept]], units: Units
) -> dict[tuple[str, str], list[int]]:
    """Attributes that change with what is cut: for each as many roots of units as it says; position i goes with its.

    Units whose removal would make a size wrong are frozen.

    Args:
        uses: of sizes that are computed from attributes.
        attributes: their values.
        shapes: a dimension, and the labels along it, for each size that was read from a tensor.
        units: what is joined and frozen.
    """
    values: dict[Name, int] = {**attributes, **{n: kept.shape[dim] for n, (dim, kept) in enumerate(shapes)}}
    asked = [(use, _vector(use, units)) for use in uses]
    found: dict[tuple[str, str], list[int]] = {}
    for some in _together(asked):
        options: dict[Name, list[list[int] | None]] = {}
        for use, vector in some:
            for name in use.size.names:
                if isinstance(name, int):
                    dim, kept = shapes[name]
                    options[name] = [_along(kept, dim, units, kept.shape[dim])]
                    continue
                known = options.setdefault(name, [None])
                counted = _counted(use.size, name, values, vector)
                if counted is not None and counted not in known:
                    known.append(counted)
        if math.prod(map(len, options.values())) > _MOST:
            options = {name: known[-1:] for name, known in options.items()}
        # Of all that the attributes may count, what lets the most go.
        tried = [dict(zip(options, each, strict=True)) for each in itertools.product(*options.values())]
        best = min(tried, key=lambda each: len(_wrong(some, each, values)))
        for root, use in _wrong(some, best, values).items():
            told = " and ".join(f"'{module}.{name}'" if module else f"'{name}'" for module, name in use.size.attributes)
            units.freeze(
                torch.tensor([root]), f"{use.where} computes a size from {told or 'shapes'} that would not follow"
            )
        found |= {name: vector for name, vector in best.items() if vector is not None and isinstance(name, tuple)}
    return found


def _together(asked: Sequence[Asked]) -> list[list[Asked]]:
    """Parts that have no attribute in common."""
    parts: list[tuple[set[Name], list[Asked]]] = []
    for use, vector in asked:
        names, some = set(use.size.names), [(use, vector)]
        for part in [part for part in parts if part[0] & names]:
            parts.remove(part)
            names |= part[0]
            some = [*part[1], *some]
        parts.append((names, some))
    return [some for _, some in parts]


def _wrong(
    some: Sequence[Asked], counted: Mapping[Name, list[int] | None], values: Mapping[Name, int]
) -> dict[int, Use]:
    """The units whose removal would make a size wrong, each with such a size."""
    out: dict[int, Use] = {}
    for use, vector in some:
        lists = {name: counted[name] or [] for name in use.size.names}
        for root in {root for each in lists.values() for root in each} | set(vector):
            smaller = {name: values[name] - each.count(root) for name, each in lists.items()}
            if root and not _fits(use.size, smaller, len(vector) - vector.count(root)):
                out.setdefault(root, use)
    return out


def _vector(use: Use, units: Units) -> list[int]:
    """The root at each position; 0: none."""
    return [0] * int(use.size) if use.labels is None else _along(use.labels, use.dim, units, int(use.size))


def _along(kept: Kept, dim: int, units: Units, size: int) -> list[int]:
    now = resolved([Plane(kept.labels())], units)
    if now and now[0].varying == [dim]:
        return [int(root) for root in now[0].labels.flatten().tolist()]
    return [0] * size


def _counted(size: NamedSize, name: Name, values: Mapping[Name, int], vector: list[int]) -> list[int] | None:
    """What the attribute counts, if it counts blocks of positions, or places that all blocks have, of one unit each."""
    count, length = values[name], len(vector)
    if count < 1 or length % count or 0 in vector:
        return None
    step = length // count
    if not _fits(size, {**values, name: count - 1}, length - step):
        return None
    blocks = [vector[i * step : (i + 1) * step] for i in range(count)]
    if all(len(set(block)) == 1 for block in blocks):
        return [block[0] for block in blocks]
    places = [vector[i::count] for i in range(count)]
    return [place[0] for place in places] if all(len(set(place)) == 1 for place in places) else None


def _fits(size: NamedSize, values: Mapping[Name, int], expected: int) -> bool:
    try:
        return size.formula(values) == expected
    except ZeroDivisionError:
        return False
