"""JSON from files and servers that nobody vouches for: one reader, whose only failure is a ValueError."""

from __future__ import annotations

import json
from typing import Any

DEPTH = 64


def json_of(text: str | bytes, depth: int = DEPTH, *, strict: bool = False) -> Any:
    """The value that a JSON text stands for.

    Args:
        text: UTF-8 where it is bytes.
        depth: how many lists and mappings may lie in each other.
        strict: also refuse NaN, Infinity and mappings that have a key twice, which readers understand differently.

    Raises:
        ValueError: it is not JSON, is nested deeper, or takes more memory than there is; one sentence without a stop.
    """
    try:
        if strict:
            value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
        else:
            value = json.loads(text)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {depth} levels") from None
    except MemoryError:
        raise ValueError("it takes more memory than there is") from None
    if _deeper(value, depth):
        raise ValueError(f"it is nested deeper than {depth} levels")
    return value


_HOLD = frozenset({dict, list})


def _deeper(value: Any, depth: int) -> bool:
    level = [value] if type(value) in _HOLD else []
    for _ in range(depth):
        inner = (held.values() if type(held) is dict else held for held in level)
        # Long lists of numbers are gone over by one call.
        level = [
            each for held in inner if not _HOLD.isdisjoint(map(type, held)) for each in held if type(each) in _HOLD
        ]
        if not level:
            return False
    return True


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:64]!r} is there twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")
