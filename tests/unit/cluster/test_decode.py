"""Taking listings and objects apart, whatever is in them."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpress.deepjson import MAX_LEVELS, DecodeError, decode, skip
from modelpress_operator.compact import MAX_SPEC_BYTES, UNREAD, transform
from modelpress_operator.decode import Listing
from modelpress_operator.resources import COMPRESSION_JOBS, COMPRESSION_SWEEPS, JOBS, RawObject

values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(), inner, max_size=4)),
    max_leaves=20,
)


def nested(depth: int, inner: str = "1") -> str:
    """Lists in lists."""
    return "[" * depth + inner + "]" * depth


def levels(value: Any) -> int:
    """How many lists are in one another."""
    count = 0
    while isinstance(value, list) and value:
        value, count = value[0], count + 1
    return count


def taken_apart(text: bytes, sizes: list[int]) -> tuple[list[Any], RawObject]:
    """The objects and the rest of a listing that comes in pieces of these sizes, the last one repeated."""
    listing, found, position = Listing(), [], 0
    pieces = iter(sizes)
    size = 1
    while position < len(text):
        size = next(pieces, size)
        found += [json.loads(item) for item in listing.feed(text[position : position + size])]
        position += size
    return found, listing.rest()


@given(
    items=st.lists(st.dictionaries(st.text(), values, max_size=4), max_size=5),
    sizes=st.lists(st.integers(1, 200), min_size=1, max_size=8),
    typed=st.booleans(),
    ascii_=st.booleans(),
    indent=st.sampled_from([None, 1]),
)
def test_a_listing_comes_apart_as_it_was(
    items: list[dict[str, Any]], sizes: list[int], typed: bool, ascii_: bool, indent: int | None
) -> None:
    """Whatever the pieces are: the objects in their order, and the rest without them."""
    meta = {"metadata": {"resourceVersion": "7", "continue": 'a"items":[{'}}
    first, last = (meta, {}) if typed else ({}, meta)
    whole = {"apiVersion": "v1", **first, "items": items, "kind": "List", **last}
    text = json.dumps(whole, ensure_ascii=ascii_, indent=indent).encode("utf-8", "surrogatepass")
    if not ascii_:
        text.decode("utf-8", "surrogatepass")
    try:
        text.decode()
    except UnicodeDecodeError:
        return  # lone surrogates: no server sends them
    found, rest = taken_apart(text, sizes)
    assert found == items
    assert rest == {**whole, "items": []}


@pytest.mark.parametrize("text", [b'{"kind":"List","items":null,"metadata":{}}', b'{"kind":"List","metadata":{}}'])
def test_a_listing_without_objects(text: bytes) -> None:
    """As typed clients write an empty one, and without the key."""
    assert taken_apart(text, [9]) == ([], json.loads(text) | ({"items": []} if b"items" in text else {}))


@pytest.mark.parametrize(
    "text", [b'{"items":[{"a":1}', b'{"items":[{"a":"x', b'{"items":[3]}', b"", b"[]", b'{"items":[]']
)
def test_half_a_listing_is_none(text: bytes) -> None:
    """An answer that was cut off is not taken for a whole one."""
    with pytest.raises(DecodeError):
        taken_apart(text, [5])


@pytest.mark.parametrize("depth", [64, 400, 1200, 9_999, 100_000])
def test_depth_is_decoded_or_cut(depth: int) -> None:
    """All of it, or null below 128 levels; never an error of the interpreter."""
    found = decode(nested(depth).encode())
    assert levels(found) in (depth, MAX_LEVELS)
    assert levels(found) >= min(depth, MAX_LEVELS)


def test_what_is_beside_the_depth_stays() -> None:
    """Only what lies too deep is cut."""
    text = f'{{"a":{nested(5000)},"b":{{"c":"]}}\\"["}},"d":[{nested(3000, "{}")},1]}}'.encode()
    found = decode(text)
    assert (found["b"], found["d"][1]) == ({"c": ']}"['}, 1)
    assert levels(found["a"]) == MAX_LEVELS - 1


@pytest.mark.parametrize("text", [b"{", b'"a', b"[1,]", b"\xff", nested(3000).encode()[:-1], b'["a' + b"[" * 3000])
def test_no_json_is_said_so(text: bytes) -> None:
    """One kind of error for all of it."""
    with pytest.raises(DecodeError):
        decode(text)


def job(args: Any, **more: Any) -> RawObject:
    """A CompressionJob whose model takes these arguments."""
    meta = {"name": "j", "namespace": "n", "uid": "u", "resourceVersion": "5", **more}
    return {"metadata": meta, "spec": {"model": {"args": args}}, "status": {"phase": "Running"}}


def deep(depth: int, inner: Any = 1) -> Any:
    """A value in so many lists."""
    for _ in range(depth):
        inner = [inner]
    return inner


def test_the_depth_that_is_read_is_that_of_files() -> None:
    """64 keys and indices from the root; one more is the sentence that api.load has, with its path."""
    assert UNREAD not in transform(COMPRESSION_JOBS, job({"a": deep(60)}))
    stub = transform(COMPRESSION_JOBS, job({"a": deep(61)}))
    assert stub[UNREAD]["reason"] == "InvalidSpec"
    path = "spec.model.args.a" + "[0]" * 61
    assert stub[UNREAD]["message"] == f"{path}: nested deeper than 64 levels, or containing itself; write it flatter"
    assert (stub["metadata"]["name"], stub["spec"], stub["status"]) == ("j", {}, {"phase": "Running"})
    assert UNREAD in transform(COMPRESSION_SWEEPS, job({"a": deep(5000)}))


def test_a_large_spec_costs_a_sentence() -> None:
    """Its size and digest are kept instead; one that a runner can be given is kept whole."""
    limit = MAX_SPEC_BYTES[COMPRESSION_JOBS]
    envelope = len(json.dumps({"model": {"args": {"a": ""}}}, separators=(",", ":")))
    assert UNREAD not in transform(COMPRESSION_JOBS, job({"a": "x" * (limit - envelope)}))
    stub = transform(COMPRESSION_JOBS, job({"a": "x" * (limit - envelope + 1)}))
    assert stub[UNREAD]["reason"] == "SpecTooLarge"
    assert f"spec: {limit + 1} bytes as JSON, more than the {limit} that are read" in stub[UNREAD]["message"]
    assert len(json.dumps(stub)) < 600
    wide = transform(COMPRESSION_JOBS, job({"a": ["ü" * 10] * 20_000}))
    assert wide[UNREAD]["reason"] == "SpecTooLarge"


def test_what_others_write_into_metadata_is_not_kept() -> None:
    """Annotations, labels and owners of others, finalizers, and ours where they are too long."""
    notes = {"example.org/x": "y" * 100_000, "modelpress.dev/history": "h", "modelpress.dev/parameters": "9" * 70_000}
    owners = [{"kind": "A", "name": "a", "uid": "1"}, {"kind": "B", "name": "b", "uid": "2", "controller": True}]
    more = {"annotations": notes, "labels": {"example.org/l": "1", "modelpress.dev/trial": "3"}}
    raw = job({}, **more, ownerReferences=owners, finalizers=["f"] * 1000)
    meta = transform(COMPRESSION_JOBS, raw)["metadata"]
    assert meta["annotations"] == {"modelpress.dev/history": "h"}
    assert meta["labels"] == {"modelpress.dev/trial": "3"}
    assert meta["ownerReferences"] == [owners[1]]
    assert "finalizers" not in meta
    assert "annotations" not in transform(JOBS, raw)["metadata"]


def test_texts_that_came_by_are_not_kept_for_ever() -> None:
    """Texts are shared among objects, and the latest are remembered: as many again cost nothing more."""

    def come_by(number: int) -> None:
        for part in range(16):
            transform(COMPRESSION_JOBS, job({"a": [f"{number}-{part}-{word}" for word in range(5000)]}))

    come_by(0)
    tracemalloc.start()
    try:
        come_by(1)
        before, _ = tracemalloc.get_traced_memory()
        come_by(2)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert before > 2**22  # 65,536 texts
    assert after - before < 2**20


def test_what_cannot_be_read_keeps_its_metadata() -> None:
    """Shapes that no API server gives are a stub with the error's type, and nobody else's trouble."""
    stub = transform(
        COMPRESSION_JOBS, {"metadata": {"name": "j", "namespace": "n", "uid": "u"}, "spec": {"a": object()}}
    )
    assert stub["metadata"] == {"name": "j", "namespace": "n", "uid": "u"}
    assert stub[UNREAD] == {"reason": "InvalidSpec", "message": "This operator cannot read the object: TypeError."}


def scanned(text: bytes, position: int) -> int:
    """What `skip` is to give without `flat`, byte by byte."""
    while position < len(text) and text[position] not in b"{}[]":
        if text[position] != ord('"'):
            position += 1
            continue
        end = position + 1
        while end < len(text) and text[end] != ord('"'):
            end += 2 if text[end] == ord("\\") else 1
        if end >= len(text):
            return position
        position = end + 1
    return position


VALUES = st.recursive(
    st.one_of(st.none(), st.integers(), st.text('a"\\{}[],:', max_size=8), st.just("\\n" * 1500)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text('a"\\{}', max_size=3), inner)),
    max_leaves=20,
)


@given(VALUES, st.integers(0, 1000), st.integers(0, 1000))
def test_what_is_skipped_ends_where_a_scan_by_bytes_ends(value: object, start: int, cut: int) -> None:
    """From any place on, within strings too, and in texts that are cut off."""
    text = json.dumps(value).encode()
    text = text[: len(text) - cut % (len(text) + 1)] if cut % 2 else text
    position = start % (len(text) + 1)
    assert skip(text, position) == scanned(text, position)


@pytest.mark.parametrize(
    "text", [b'"",' * 3000, b'"' + b"\\n" * 3000 + b'"', b'{"a":1},' * 3000], ids=["many", "escapes", "flat"]
)
def test_long_runs_are_skipped_to_their_end(text: bytes) -> None:
    """Whatever the matcher does at a time."""
    assert skip(text, 0, flat=True) == len(text)
