"""Numbers as JSON and the API server have them."""

from __future__ import annotations

from typing import Any

MAX_INTEGER_BITS = 1023  # what is larger is infinite as a float, and the API server takes numbers so


def to_json_numbers(value: Any) -> Any:
    """The data as it looks after a way through JSON: a float without a fraction is an integer."""
    if isinstance(value, float) and value.is_integer() and abs(value) <= 2**53:
        return int(value)
    if isinstance(value, dict):
        return {key: to_json_numbers(item) for key, item in value.items()}
    return [to_json_numbers(item) for item in value] if isinstance(value, list) else value
