"""From the API server's bytes to objects, one at a time, whatever is in them.

The API server takes JSON that is nested ten thousand levels deep; Python's decoder gives up at about a thousand. A
listing is taken apart as it comes, so that no more than one of its objects is ever there as a whole, and so that what
is wrong with one concerns no other.
"""

from __future__ import annotations

import re

from modelpress.deepjson import DecodeError, decode, skip

from .resources import RawObject

_ITEMS = re.compile(rb'"items"\s*:\s*(\[|null)')
_SPACE = b" \t\r\n,"
_OPEN, _CLOSE = b"{[", b"}]"


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
        while (at := skip(buffer, self._at, flat=True)) < len(buffer):
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
