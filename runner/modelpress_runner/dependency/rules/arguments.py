"""Arguments of operations by name."""

from __future__ import annotations

from typing import Any


def argument(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], name: str, default: Any) -> Any:
    """The argument `name` of a call, else what the operation takes for it, else `default`."""
    if name in kwargs:
        return kwargs[name]
    for number, argument in enumerate(func._schema.arguments):
        if argument.name == name:
            if number < len(args):
                return args[number]
            return argument.default_value if argument.has_default_value() else default
    return default
