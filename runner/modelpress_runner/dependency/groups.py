"""Which channels depend on each other: what the dependency analysis of a model comes down to.

A *unit* is a set of channels, on several axes of several modules, that can only be removed together: with output
channel 3 of a convolution go channel 3 of its BatchNorm and input channel 3 of the convolution that follows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

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
    units: tuple[int, ...]

    @cached_property
    def vector(self) -> torch.Tensor:
        """The units as int64 (size,)."""
        return torch.tensor(self.units, dtype=torch.long)


@dataclass(frozen=True)
class DependentNumber:
    """A number that a module has as an attribute and gives as a size: how many positions there are of these units."""

    module: str
    name: str
    units: tuple[int, ...]


@dataclass(frozen=True)
class DependentNorm:
    """A norm by a mean of squares over these units, one for each position: see edits.rescale.Rescale."""

    module: str
    parameter: str
    epsilon: str | None
    offset: int
    units: tuple[int, ...]


@dataclass(frozen=True)
class DependencyGroup:
    """Units with the same producers: the candidates of one ranking, because their layers shrink together."""

    producers: tuple[str, ...]
    followers: tuple[str, ...]
    units: tuple[int, ...]
    holders: tuple[str, ...] = ()  # modules with plain parameters that shrink along

    @cached_property
    def vector(self) -> torch.Tensor:
        """The units as int64 (size,)."""
        return torch.tensor(self.units, dtype=torch.long)


@dataclass(frozen=True)
class ChannelDependencies:
    """All axes of a model that the dummy input reaches, and the units that must not be removed, with the reason.

    Units are `frozen` because the analysis says so, and `refuted` because a proof has failed with them.
    """

    axes: tuple[DependentAxis, ...]
    frozen: dict[int, str] = field(default_factory=dict)
    refuted: dict[int, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # what a user should know of the model
    numbers: tuple[DependentNumber, ...] = ()
    norms: tuple[DependentNorm, ...] = ()
    layers: tuple[Bypass, ...] = ()  # residual blocks that can go whole, each by its edit; check_without tells whether
    approximate: dict[str, tuple[int, ...]] = field(default_factory=dict)  # LayerNorms, with the units they may lose

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        reasons: dict[str, list[int]] = defaultdict(list)
        for unit, reason in self.frozen.items():
            reasons[reason].append(unit)
        return {
            "axes": [
                {"module": a.module, "axis": a.axis, "producer": a.producer, "units": list(a.units)} for a in self.axes
            ],
            "frozen": dict(reasons),
            "notes": list(self.notes),
            "numbers": [{"module": n.module, "name": n.name, "units": list(n.units)} for n in self.numbers],
            "approximate": {name: list(units) for name, units in self.approximate.items()},
            "layers": [layer.to_plain() for layer in self.layers],
            "norms": [{**vars(norm), "units": list(norm.units)} for norm in self.norms],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ChannelDependencies:
        """What `to_dict` gave."""
        axes = tuple(DependentAxis(a["module"], a["axis"], a["producer"], tuple(a["units"])) for a in data["axes"])
        frozen = {unit: reason for reason, units in data["frozen"].items() for unit in units}
        numbers = tuple(DependentNumber(n["module"], n["name"], tuple(n["units"])) for n in data["numbers"])
        norms = tuple(DependentNorm(**{**n, "units": tuple(n["units"])}) for n in data["norms"])
        layers = tuple(Bypass.from_plain(layer) for layer in data["layers"])
        approximate = {name: tuple(units) for name, units in data["approximate"].items()}
        notes = tuple(data["notes"])
        return cls(axes, frozen, notes=notes, numbers=numbers, norms=norms, layers=layers, approximate=approximate)

    @cached_property
    def unit_count(self) -> int:
        """One more than the largest unit."""
        return 1 + max((max(axis.units) for axis in self.axes), default=-1)

    @cached_property
    def stays(self) -> torch.Tensor:
        """Bool, one for each unit: those that are frozen or refuted."""
        vector = torch.zeros(self.unit_count, dtype=torch.bool)
        vector[[*self.frozen, *self.refuted]] = True
        return vector

    def output(self, module: str) -> DependentAxis | None:
        """The output axis of `module`; None if the dummy input does not reach it."""
        return self._outputs.get(module)

    @cached_property
    def groups(self) -> list[DependencyGroup]:
        """The dependency groups of the units that may be removed, in order of their first producer."""
        concerned = [axis for axis in self.axes if axis.axis == "out" or axis.axis not in SIDES]
        members: dict[tuple[str, ...], torch.Tensor] = {}
        for units in self._alike([axis for axis in concerned if axis.axis == "out" and axis.producer]):
            inside = torch.zeros(self.unit_count, dtype=torch.bool)
            inside[units[:1]] = True
            makers = [a for a in concerned if a.axis == "out" and a.producer and inside[a.vector].any()]
            if makers:
                members[tuple(axis.module for axis in makers)] = units
        order = {axis.module: number for number, axis in enumerate(self.axes)}
        out = []
        for names, units in sorted(members.items(), key=lambda item: [order[name] for name in item[0]]):
            inside = torch.zeros(self.unit_count, dtype=torch.bool)
            inside[units] = True
            along, holders = set(), set()
            for axis in concerned:
                if not (axis.axis == "out" and axis.producer) and inside[axis.vector].any():
                    if axis.axis == "out":
                        along.add(axis.module)
                    else:
                        holders.add(axis.module.rpartition(".")[0])
            followers = tuple(sorted(along, key=order.__getitem__))
            out.append(DependencyGroup(names, followers, tuple(units.tolist()), tuple(sorted(holders))))
        return out

    def _alike(self, axes: Sequence[DependentAxis]) -> list[torch.Tensor]:
        """The units that may be removed, ascending, in sets of those that lie on the same of these axes."""
        label = torch.zeros(self.unit_count, dtype=torch.long)
        for number, axis in enumerate(axes):
            on = torch.zeros_like(label)
            on[axis.vector] = 1
            label = label.mul_(2).add_(on)
            if number % 40 == 39:  # before the bits run out
                label = torch.unique(label, return_inverse=True)[1]
        label[self.stays] = -1
        ascending, where = torch.sort(label, stable=True)
        sets = torch.split(where, torch.unique_consecutive(ascending, return_counts=True)[1].tolist())
        return [units for units in sets if label[units[0]] >= 0]

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
            gone = int(removed[list(number.units)].sum())
            if gone:
                out.append((number, len(number.units) - gone))
        return out

    def approximated(self, removed: torch.Tensor) -> list[str]:
        """The LayerNorms that would take their statistics over fewer channels. `removed` as in `kept`."""
        return [name for name, units in self.approximate.items() if removed[list(units)].any()]

    def rescaled(self, removed: torch.Tensor) -> list[tuple[DependentNorm, int]]:
        """Every norm that loses channels, with how many are left. `removed` as in `kept`."""
        left = [(norm, len(norm.units) - int(removed[list(norm.units)].sum())) for norm in self.norms]
        return [(norm, count) for norm, count in left if count < len(norm.units)]

    @cached_property
    def _outputs(self) -> dict[str, DependentAxis]:
        return {axis.module: axis for axis in self.axes if axis.axis == "out"}
