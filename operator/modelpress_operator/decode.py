"""From the API server's bytes to objects, one at a time, whatever is in them.

The API server takes JSON that is nested ten thousand levels deep; Python's decoder gives up at about a thousand. A
listing is taken apart as it comes, so that no more than one of its objects is ever there as a whole, and so that what
is wrong with one concerns no other.
"""

from __future__ import annotations

import json
import re
from typing import Any

from .resources import RawObject

# Deeper than anything that is understood (modelpress.api.depth), and far from where decoders give up.
MAX_LEVELS = 128
_STRING = rb'"(?:[^"\\]++|\\.)*+"'
# All up to the next bracket. With flat objects and lists in it a typical object takes a few dozen steps.
_PLAIN = rb'(?:[^"{}\[\]]++|' + _STRING + rb")*+"
_RUN = re.compile(_PLAIN, re.DOTALL)
_FAST_RUN = re.compile(
    rb'(?:[^"{}\[\]]++|' + _STRING + rb"|\{" + _PLAIN + rb"\}|\[" + _PLAIN + rb"\])*+",
    re.DOTALL,
)
_ITEMS = re.compile(rb'"items"\s*+:\s*+(\[|null)')
_SPACE = b" \t\r\n,"
_OPEN, _CLOSE = b"{[", b"}]"


class DecodeError(ValueError):
    """This is no JSON."""


def decode(text: bytes) -> Any:
    """The value in a JSON text; what lies deeper than MAX_LEVELS is null where decoding all of it fails.

    Raises:
        DecodeError: it is none.
    """
    try:
        return json.loads(text)
    except RecursionError:
        pass
    except ValueError as error:
        raise DecodeError(str(error)) from None
    try:
        return json.loads(_shallow(text))
    except ValueError as error:
        raise DecodeError(str(error)) from None


def _shallow(text: bytes) -> bytes:
    """The text with null for every object and list that lies deeper than MAX_LEVELS."""
    kept: list[bytes] = []
    position = start = level = 0
    while (position := _RUN.match(text, position).end()) < len(text):  # type: ignore[union-attr]
        mark = text[position]
        if mark in _OPEN:
            level += 1
            if level == MAX_LEVELS + 1:
                kept += [text[start:position], b"null"]
        elif mark in _CLOSE:
            if level == MAX_LEVELS + 1:
                start = position + 1
            level -= 1
        else:
            raise DecodeError("a text does not end")
        position += 1
    if level > 0:
        raise DecodeError("it does not end")
    return b"".join([*kept, text[start:]])


class Listing:
    """Takes the answer to a list request apart while it comes."""

    def __init__(self) -> None:
        self._buffer = b""
        self._start = self._at = self._level = 0  # of the item in progress: where it begins, and how far it was read
        self._head: list[bytes] = []
        self._inside = self._over = False

    def feed(self, data: bytes) -> list[bytes]:
        """The texts of the objects that are complete with this piece.

        Raises:
            DecodeError: this is no listing.
        """
        self._buffer += data
        if not self._inside and not self._over:
            begun = _ITEMS.search(self._buffer)
            if begun is None:
                return []
            self._head.append(self._buffer[: begun.start()] + b'"items":[')
            self._start = self._at = begun.end()
            if begun[1] == b"[":
                self._inside = True
            else:
                self._finish()
        found: list[bytes] = []
        while self._inside and (item := self._next()) is not None:
            found.append(item)
        self._buffer = self._buffer[self._start :]
        self._at -= self._start
        self._start = 0
        return found

    def rest(self) -> RawObject:
        """The listing without its objects, once all was fed.

        Raises:
            DecodeError: this is no listing.
        """
        if not self._over:
            if self._inside:
                raise DecodeError("the listing does not end")
            return _mapping(self._buffer)  # one without objects
        return _mapping(b"".join([*self._head, self._buffer]))

    def _finish(self) -> None:
        self._head.append(b"]")
        self._inside, self._over = False, True

    def _next(self) -> bytes | None:
        """The text of the next object; None if more must come first, or if there is none."""
        buffer = self._buffer
        if self._level == 0:
            while self._start < len(buffer) and buffer[self._start] in _SPACE:
                self._start += 1
            self._at = self._start
            if self._start == len(buffer):
                return None
            if buffer[self._start] == b"]"[0]:
                self._start += 1
                self._finish()
                return None
            if buffer[self._start] != b"{"[0]:
                raise DecodeError("an item of the listing is no object")
            self._level, self._at = 1, self._at + 1
        while (at := _FAST_RUN.match(buffer, self._at).end()) < len(buffer):  # type: ignore[union-attr]
            self._at = at
            if buffer[at] in _OPEN:
                self._level += 1
            elif buffer[at] in _CLOSE:
                self._level -= 1
            else:
                return None  # a text whose end is still to come
            self._at += 1
            if self._level == 0:
                item = buffer[self._start : self._at]
                self._start = self._at
                return item
        return None


def _mapping(text: bytes) -> RawObject:
    value = decode(text)
    if not isinstance(value, dict):
        raise DecodeError("it is no object")
    return value
