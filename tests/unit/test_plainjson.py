"""The one reader of JSON that nobody vouches for."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpress.plainjson import json_of

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=20,
)


@given(VALUES)
def test_what_json_writes_comes_back(value: Any) -> None:
    """Plain values are read as they were written, strict or not, from text or bytes."""
    text = json.dumps(value)
    assert json_of(text) == json_of(text.encode()) == json_of(text, strict=True) == value


@pytest.mark.parametrize("text", ["[" * 65 + "]" * 65, "[" * 10**6, '{"a":' * 10**5, "1" * 5000, "{", "", b"\xff"])
def test_everything_else_is_a_value_error(text: Any) -> None:
    """Depth, long numbers, damage and foreign bytes."""
    with pytest.raises(ValueError, match=r"."):
        json_of(text)


def test_depth_is_counted() -> None:
    """As deep as allowed is read, one more is not."""
    assert json_of("[[[]]]", 3) == [[[]]]
    with pytest.raises(ValueError, match="nested deeper than 2 levels"):
        json_of("[[[]]]", 2)


@pytest.mark.parametrize("text", ['{"a": 1, "a": 1}', '{"a": NaN}', "[Infinity]"])
def test_strict_reading_refuses_what_readers_take_differently(text: str) -> None:
    """Keys that stand twice, and numbers that are none."""
    json_of(text)
    with pytest.raises(ValueError, match=r"twice|no JSON number"):
        json_of(text, strict=True)
