"""Units, and reasons why some stay, in few bytes: a decoder has half a million channels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np
import torch


class UnitList(Sequence[int]):
    """Units by position, which cannot be changed: four bytes for each, and none where each is one more than the last.

    Equal to another that has the same units in the same order.
    """

    __slots__ = ("_units",)
    _units: Any  # a range, or an array of int32

    def __init__(self, units: Any = ()) -> None:
        """`units`: a range, an array of whole numbers or an iterable of them; an array of int32 is taken as it is."""
        if isinstance(units, UnitList):
            self._units = units._units
            return
        if not isinstance(units, range | np.ndarray):
            units = np.fromiter(units, dtype=np.int32)
        if isinstance(units, np.ndarray) and (len(units) == 0 or bool((np.diff(units) == 1).all())):
            units = range(int(units[0]), int(units[0]) + len(units)) if len(units) else range(0)
        if isinstance(units, np.ndarray):
            units = units.astype(np.int32, copy=False)
            units.flags.writeable = False
        self._units = units

    @property
    def array(self) -> Any:
        """The units as int32 (size,), not to be written to."""
        units = self._units
        return np.arange(units.start, units.stop, dtype=np.int32) if isinstance(units, range) else units

    @property
    def vector(self) -> torch.Tensor:
        """The units as int64 (size,), made anew."""
        return torch.from_numpy(self.array.astype(np.int64))

    def to_plain(self) -> Any:
        """JSON-ready: what `UnitList.from_plain` takes."""
        units = self._units
        return {"start": units.start, "stop": units.stop} if isinstance(units, range) else units.tolist()

    @classmethod
    def from_plain(cls, plain: Any) -> UnitList:
        """What `to_plain` gave, or a list of units."""
        return cls(range(plain["start"], plain["stop"]) if isinstance(plain, Mapping) else plain)

    def __len__(self) -> int:
        return len(self._units)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> UnitList: ...
    def __getitem__(self, index: Any) -> Any:
        if not isinstance(index, slice):
            return int(self._units[index])
        return UnitList(self._units[index] if isinstance(self._units, np.ndarray) else self.array[index])

    def __iter__(self) -> Iterator[int]:
        return iter(self._units if isinstance(self._units, range) else self._units.tolist())

    def __contains__(self, unit: object) -> bool:
        return unit in self._units

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, UnitList):
            return NotImplemented
        mine, others = self._units, other._units
        if isinstance(mine, range) or isinstance(others, range):
            return type(mine) is type(others) and bool(mine == others)
        return np.array_equal(mine, others)

    def __hash__(self) -> int:
        return hash(self._units if isinstance(self._units, range) else self._units.tobytes())

    def __repr__(self) -> str:
        return f"UnitList({list(self)})"


class Reasons(Mapping[int, str]):
    """By unit why it stays, in the order of the units; a byte or two for each unit, and each text once."""

    __slots__ = ("_texts", "_which")

    def __init__(self, given: Iterable[tuple[str, Any]] = ()) -> None:
        """`given`: texts, each with an array or a sequence of units; of two for one unit the first holds."""
        pairs = [(text, np.asarray(units, dtype=np.int32)) for text, units in given]
        numbers = {text: number for number, text in enumerate(dict.fromkeys(text for text, _ in pairs), 1)}
        self._texts = ("", *numbers)
        size = 1 + max((int(units.max()) for _, units in pairs if len(units)), default=-1)
        self._which: Any = np.zeros(size, dtype=np.min_scalar_type(len(numbers)))  # by unit its text, 0: none
        for text, units in reversed(pairs):
            self._which[units] = numbers[text]

    def to_plain(self) -> dict[str, Any]:
        """JSON-ready: what `Reasons.from_plain` takes."""
        return {text: units.to_plain() for text, units in self.by_text().items()}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Reasons:
        """What `to_plain` gave."""
        return cls((text, UnitList.from_plain(units).array) for text, units in plain.items())

    @property
    def units(self) -> UnitList:
        """The units that have one."""
        return UnitList(np.flatnonzero(self._which))

    def by_text(self) -> dict[str, UnitList]:
        """The units of each text, in the order of the first of them."""
        numbers, first = np.unique(self._which, return_index=True)
        order = [number for number in numbers[first.argsort(kind="stable")].tolist() if number]
        return {self._texts[number]: UnitList(np.flatnonzero(self._which == number)) for number in order}

    def __getitem__(self, unit: int) -> str:
        if not 0 <= unit < len(self._which) or not self._which[unit]:
            raise KeyError(unit)
        return self._texts[int(self._which[unit])]

    def __iter__(self) -> Iterator[int]:
        return iter(np.flatnonzero(self._which).tolist())

    def __len__(self) -> int:
        return int(np.count_nonzero(self._which))

    def __repr__(self) -> str:
        return f"Reasons({dict(self)})"
