"""JSON Pointers on plain data."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelpress.api import json_pointer

# The example document and answers of RFC 6901, section 5.
RFC = {"foo": ["bar", "baz"], "": 0, "a/b": 1, "c%d": 2, "e^f": 3, "g|h": 4, "i\\j": 5, 'k"l': 6, " ": 7, "m~n": 8}
ANSWERS = {
    "": RFC,
    "/foo": ["bar", "baz"],
    "/foo/0": "bar",
    "/": 0,
    "/a~1b": 1,
    "/c%d": 2,
    "/e^f": 3,
    "/g|h": 4,
    "/i\\j": 5,
    '/k"l': 6,
    "/ ": 7,
    "/m~0n": 8,
}


@pytest.mark.parametrize("text", ANSWERS)
def test_get_answers_as_the_rfc(text: str) -> None:
    """The RFC's own examples give the RFC's values."""
    assert json_pointer.get(RFC, text) == ANSWERS[text]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("foo", "does not begin with '/'"),
        ("/m~n", "write '~' as ~0"),
        ("/foo/2", "/foo has 2 entries, from 0, and no 2"),
        ("/foo/01", "'01' is no index"),
        ("/foo/-", "'-' is no index"),
        ("/foo/-1", "'-1' is no index"),
        ("/bar", "the document has no 'bar'"),
        ("/foo/0/x", "/foo/0 is a single value, with no 'x' in it"),
    ],
)
def test_get_says_where_a_pointer_ends(text: str, message: str) -> None:
    """A pointer that leads nowhere is refused with the place where it went astray."""
    with pytest.raises(json_pointer.PointerError) as caught:
        json_pointer.get(RFC, text)
    assert message in str(caught.value)


def test_error_lists_what_is_there() -> None:
    """The error carries the existing keys and the token, so that callers can suggest near names."""
    with pytest.raises(json_pointer.PointerError) as caught:
        json_pointer.get({"a": {"width": 1, "depth": 2}}, "/a/widht")
    assert (caught.value.parent, caught.value.known, caught.value.token) == ("/a", ("width", "depth"), "widht")


def test_set_replaces_and_adds_a_last_key() -> None:
    """Existing values are replaced; a missing last key of a mapping is added; the document stays as it was."""
    document = {"stages": [{"prune": {"sparsity": 0.5}}, {}]}
    before = copy.deepcopy(document)
    assert json_pointer.set(document, "/stages/0/prune/sparsity", 0.7) == {"stages": [{"prune": {"sparsity": 0.7}}, {}]}
    assert json_pointer.set(document, "/stages/1/name", "x") == {
        "stages": [{"prune": {"sparsity": 0.5}}, {"name": "x"}]
    }
    assert json_pointer.set(document, "", 3) == 3
    assert document == before


@pytest.mark.parametrize("text", ["/stages/2", "/stages/-", "/absent/key", "/stages/0/prune/sparsity/x"])
def test_set_never_invents_parents_or_entries(text: str) -> None:
    """Lists do not grow, and a missing parent is an error."""
    with pytest.raises(json_pointer.PointerError):
        json_pointer.set({"stages": [{"prune": {"sparsity": 0.5}}, {}]}, text, 1)


documents = st.recursive(
    st.integers() | st.text(max_size=3),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text("a/~0", max_size=3), below, max_size=3),
    max_leaves=12,
)


def places(value: Any, way: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [way, *(place for key, item in items for place in places(item, (*way, key)))]


@settings(deadline=None)
@given(documents, st.data())
def test_set_then_get_gives_the_value_back(document: Any, data: st.DataObject) -> None:
    """At every place of any document set and get are inverse, and the original is untouched."""
    text = json_pointer.build(data.draw(st.sampled_from(places(document))))
    before = copy.deepcopy(document)
    changed = json_pointer.set(document, text, "new")
    assert json_pointer.get(changed, text) == "new"
    assert json_pointer.set(changed, text, json_pointer.get(document, text)) == before
    assert document == before
