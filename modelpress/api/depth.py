"""How deeply a specification may be nested: one limit, one sentence, wherever it comes from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from .errors import Location, Problem, format_location

MAX_DEPTH = 64  # keys and indices from an object's root to any value in it


def too_deep(path: str) -> Problem:
    """The problem of a value that lies deeper, or in itself."""
    return Problem(path, f"nested deeper than {MAX_DEPTH} levels, or containing itself", "write it flatter")


def depth_problem(value: Any, location: Location = ()) -> Problem | None:
    """The problem of JSON data that is nested too deeply below `location`; None if it is not.

    However deep it is: it is walked level by level.
    """
    level = [value]
    for _ in range(MAX_DEPTH - len(location) + 1):
        level = [item for outer in level if isinstance(outer, dict | list) for item in _items(outer)]
        if not level:
            return None
    return too_deep(format_location(_first_way(value, location)))


def _items(outer: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return outer.values() if isinstance(outer, dict) else outer


def _first_way(value: Any, location: Location) -> Location:
    """The way to the first value that lies too deep, in the order of the document."""
    way, below = list(location), [_steps(value)]
    while below:
        step = next(below[-1], None)
        if step is None:
            below.pop()
            continue
        del way[len(location) + len(below) - 1 :]
        way.append(step[0])
        if len(way) > MAX_DEPTH:
            return tuple(way)
        below.append(_steps(step[1]))
    raise AssertionError("called only for what is too deep")


def _steps(value: Any) -> Iterator[tuple[str | int, Any]]:
    if isinstance(value, dict):
        return iter(value.items())
    return iter(enumerate(value)) if isinstance(value, list) else iter(())
