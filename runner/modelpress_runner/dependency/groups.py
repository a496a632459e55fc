"""Which channels depend on each other: what the dependency analysis of a model comes down to.

A *unit* is a set of channels, on several axes of several modules, that can only be removed together: with output
channel 3 of a convolution go channel 3 of its BatchNorm and input channel 3 of the convolution that follows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from modelpress_runner.dependency.unit_lists import Reasons, UnitList
from modelpress_runner.edits.axes import SIDES
from modelpress_runner.edits.bypass import Bypass


@dataclass(frozen=True)
class DependentAxis:
    """Axis of a module (edits.axes.SIDES, or "dimN" of a plain parameter). `units[i]` is the unit of its channel i.

    A producer makes its output channels (convolution, linear layer); others only hand on what they get (norms,
    depthwise convolutions).
    """

    module: str
    axis: str
    producer: bool
    units: UnitList

    @property
    def vector(self) -> torch.Tensor:
        """The units as int64 (size,)."""
        return self.units.vector


@dataclass(frozen=True)
class DependentNumber:
    """A number that a module has as an attribute and gives as a size: how many positions there are of these units."""

    module: str
    name: str
    units: UnitList


@dataclass(frozen=True)
class DependentNorm:
    """A norm by a mean of squares over these units, one for each position: see edits.rescale.Rescale."""

    module: str
    parameter: str
    epsilon: str | None
    offset: int
    units: UnitList


@dataclass(frozen=True)
class DependencyGroup:
    """Units with the same producers: the candidates of one ranking, because their layers shrink together."""

    producers: tuple[str, ...]
    followers: tuple[str, ...]
    units: UnitList
    holders: tuple[str, ...] = ()  # modules with plain parameters that shrink along

    @property
    def vector(self) -> torch.Tensor:
        """The units as int64 (size,)."""
        return self.units.vector


class _Lists:
    """A list of names for each unit; equal ones are kept once, as a name behind another list."""

    def __init__(self, units: int) -> None:
        self.of: Any = np.zeros(units, dtype=np.int32)  # by unit its list; 0: the empty one
        self._behind: dict[tuple[int, str], int] = {}
        self._lists: list[tuple[int, str]] = [(0, "")]

    def add(self, units: Any, name: str) -> None:
        """Puts a name behind the lists of an array of units, once."""
        before, which = np.unique(self.of[units], return_inverse=True)
        after = np.empty_like(before)
        for place, number in enumerate(before.tolist()):
            key = (number, name)
            if key not in self._behind:
                self._behind[key] = len(self._lists)
                self._lists.append(key)
            after[place] = self._behind[key]
        self.of[units] = after[which]

    def names(self, number: int) -> tuple[str, ...]:
        """A list by its number."""
        out = []
        while number:
            number, name = self._lists[number]
            out.append(name)
        return tuple(reversed(out))

    def all(self, units: Any) -> set[str]:
        """The names in the lists of an array of units."""
        return {name for number in np.unique(self.of[units]).tolist() for name in self.names(number)}


@dataclass(frozen=True)
class ChannelDependencies:
    """All axes of a model that the dummy input reaches, and the units that must not be removed, with the reason.

    Units are `frozen` because the analysis says so, and `refuted` because a proof has failed with them.
    """

    axes: tuple[DependentAxis, ...]
    frozen: Reasons = field(default_factory=Reasons)
    refuted: Reasons = field(default_factory=Reasons)
    notes: tuple[str, ...] = ()  # what a user should know of the model
    numbers: tuple[DependentNumber, ...] = ()
    norms: tuple[DependentNorm, ...] = ()
    layers: tuple[Bypass, ...] = ()  # residual blocks that can go whole, each by its edit; check_without tells whether
    approximate: Mapping[str, UnitList] = field(default_factory=dict)  # LayerNorms, with the units they may lose

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "axes": [
                {"module": a.module, "axis": a.axis, "producer": a.producer, "units": a.units.to_plain()}
                for a in self.axes
            ],
            "frozen": self.frozen.to_plain(),
            "notes": list(self.notes),
            "numbers": [{"module": n.module, "name": n.name, "units": n.units.to_plain()} for n in self.numbers],
            "approximate": {name: units.to_plain() for name, units in self.approximate.items()},
            "layers": [layer.to_plain() for layer in self.layers],
            "norms": [{**vars(norm), "units": norm.units.to_plain()} for norm in self.norms],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ChannelDependencies:
        """What `to_dict` gave."""
        units = UnitList.from_plain
        return cls(
            tuple(DependentAxis(a["module"], a["axis"], a["producer"], units(a["units"])) for a in data["axes"]),
            Reasons.from_plain(data["frozen"]),
            notes=tuple(data["notes"]),
            numbers=tuple(DependentNumber(n["module"], n["name"], units(n["units"])) for n in data["numbers"]),
            norms=tuple(DependentNorm(**{**n, "units": units(n["units"])}) for n in data["norms"]),
            layers=tuple(Bypass.from_plain(layer) for layer in data["layers"]),
            approximate={name: units(some) for name, some in data["approximate"].items()},
        )

    @cached_property
    def unit_count(self) -> int:
        """One more than the largest unit."""
        return 1 + max((int(axis.units.array.max()) for axis in self.axes if len(axis.units)), default=-1)

    @cached_property
    def stays(self) -> torch.Tensor:
        """Bool, one for each unit: those that are frozen or refuted."""
        vector = torch.zeros(self.unit_count, dtype=torch.bool)
        for reasons in (self.frozen, self.refuted):
            vector[reasons.units.vector] = True
        return vector

    def output(self, module: str) -> DependentAxis | None:
        """The output axis of `module`; None if the dummy input does not reach it."""
        return self._outputs.get(module)

    @cached_property
    def groups(self) -> list[DependencyGroup]:
        """The dependency groups of the units that may be removed, in order of their first producer."""
        producers, followers, holders = (_Lists(self.unit_count) for _ in range(3))
        for axis in self.axes:
            if axis.axis not in SIDES:
                holders.add(axis.units.array, axis.module.rpartition(".")[0])
            elif axis.axis == "out":
                (producers if axis.producer else followers).add(axis.units.array, axis.module)
        made = np.where(self.stays.numpy(), 0, producers.of)
        members = np.argsort(made, kind="stable").astype(np.int32)  # units of one list beside each other, in order
        numbers, begins = np.unique(made[members], return_index=True)
        order = {axis.module: number for number, axis in enumerate(self.axes)}
        out = []
        for names, units in sorted(
            (
                (producers.names(number), units)
                for number, units in zip(numbers.tolist(), np.split(members, begins[1:]), strict=True)
                if number
            ),
            key=lambda item: [order[name] for name in item[0]],
        ):
            along = sorted(followers.all(units), key=order.__getitem__)
            out.append(DependencyGroup(names, tuple(along), UnitList(units), tuple(sorted(holders.all(units)))))
        return out

    def kept(self, removed: torch.Tensor) -> list[tuple[DependentAxis, torch.Tensor]]:
        """Every axis that loses something, with its bool vector of kept channels. `removed`: bool, one per unit."""
        out = []
        for axis in self.axes:
            gone = removed[axis.vector]
            if gone.any():
                out.append((axis, ~gone))
        return out

    def changed(self, removed: torch.Tensor) -> list[tuple[DependentNumber, int]]:
        """Every number that changes, with its new value. `removed` as in `kept`."""
        out = []
        for number in self.numbers:
            gone = int(removed[number.units.vector].sum())
            if gone:
                out.append((number, len(number.units) - gone))
        return out

    def approximated(self, removed: torch.Tensor) -> list[str]:
        """The LayerNorms that would take their statistics over fewer channels. `removed` as in `kept`."""
        return [name for name, units in self.approximate.items() if removed[units.vector].any()]

    def rescaled(self, removed: torch.Tensor) -> list[tuple[DependentNorm, int]]:
        """Every norm that loses channels, with how many are left. `removed` as in `kept`."""
        left = [(norm, len(norm.units) - int(removed[norm.units.vector].sum())) for norm in self.norms]
        return [(norm, count) for norm, count in left if count < len(norm.units)]

    @cached_property
    def _outputs(self) -> dict[str, DependentAxis]:
        return {axis.module: axis for axis in self.axes if axis.axis == "out"}
