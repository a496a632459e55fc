"""JSON Pointer (RFC 6901) on plain data: dicts, lists and scalars. Nothing is ever changed in place."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_INDEX = re.compile(r"0|[1-9][0-9]*")


class PointerError(ValueError):
    """A pointer that is malformed or leads nowhere.

    Attributes:
        parent: pointer to the deepest existing value on the way.
        known: keys or indices that exist there.
        token: the reference that does not.
    """

    def __init__(self, message: str, *, parent: str = "", known: Sequence[str] = (), token: str = "") -> None:
        super().__init__(message)
        self.parent, self.known, self.token = parent, tuple(known), token


def parse(pointer: str) -> list[str]:
    """The reference tokens of a pointer: '/a~1b/0' -> ['a/b', '0'].

    Raises:
        PointerError: it neither is empty nor begins with '/', or has a '~' that is not '~0' or '~1'.
    """
    if pointer == "":
        return []
    if not pointer.startswith("/"):
        raise PointerError(f"'{pointer}' is no JSON Pointer: it does not begin with '/'")
    if re.search(r"~(?![01])", pointer):
        raise PointerError(f"'{pointer}' is no JSON Pointer: write '~' as ~0 and a '/' in a key as ~1")
    return [token.replace("~1", "/").replace("~0", "~") for token in pointer[1:].split("/")]


def build(tokens: Sequence[str | int]) -> str:
    """The inverse of parse; indices may be integers."""
    return "".join("/" + str(token).replace("~", "~0").replace("/", "~1") for token in tokens)


def get(document: Any, pointer: str) -> Any:
    """The value that the pointer leads to.

    Raises:
        PointerError: there is none.
    """
    value = document
    tokens = parse(pointer)
    for depth, token in enumerate(tokens):
        value = value[_reference(value, token, tokens[:depth])]
    return value


def set(document: Any, pointer: str, value: Any) -> Any:  # named as in the calls: json_pointer.set
    """A copy of the document with `value` at the pointer; a missing last key of a mapping is added.

    What is not on the way is shared with the document.

    Raises:
        PointerError: the parent does not exist, or is a list without that index.
    """
    tokens = parse(pointer)
    return _set(document, tokens, 0, value)


def _set(document: Any, tokens: list[str], depth: int, value: Any) -> Any:
    if depth == len(tokens):
        return value
    token = tokens[depth]
    last = depth == len(tokens) - 1
    if last and isinstance(document, dict):
        return {**document, token: value}
    reference = _reference(document, token, tokens[:depth])
    changed = _set(document[reference], tokens, depth + 1, value)
    if isinstance(document, dict):
        return {**document, reference: changed}
    return [changed if index == reference else item for index, item in enumerate(document)]


def _reference(value: Any, token: str, way: Sequence[str]) -> Any:
    parent = build(way)
    where = parent or "the document"
    if isinstance(value, dict):
        if token in value:
            return token
        raise PointerError(f"{where} has no '{token}'", parent=parent, known=list(value), token=token)
    if isinstance(value, list):
        known = [str(index) for index in range(len(value))]
        if not _INDEX.fullmatch(token):
            raise PointerError(f"{where} is a list, and '{token}' is no index", parent=parent, known=known, token=token)
        if int(token) >= len(value):
            count = f"{len(value)} entries" if len(value) != 1 else "1 entry"
            raise PointerError(f"{where} has {count}, from 0, and no {token}", parent=parent, known=known, token=token)
        return int(token)
    raise PointerError(f"{where} is a single value, with no '{token}' in it", parent=parent, token=token)
