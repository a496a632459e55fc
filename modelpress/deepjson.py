"""From an API server's bytes to a value, however deep: what lies below a level is read as null.

The API server takes JSON that is nested ten thousand levels deep; Python's decoder gives up at about a thousand.
"""

from __future__ import annotations

import json
import re
from typing import Any

# Deeper than anything that is understood (modelpress.api.depth), and far from where decoders give up.
MAX_LEVELS = 128
# Without possessive quantifiers, which Python before 3.11.5 matches wrongly around alternatives; and in bounded pieces,
# for of each repetition the matcher keeps some hundred bytes.
_MOST = rb"{0,1000}"
_TEXT = rb'[^"\\]*(?:\\.[^"\\]*)' + _MOST
_STRING = rb'"' + _TEXT + rb'"'
_OTHER = rb'[^"{}\[\]]*'
_PLAIN = _OTHER + rb"(?:" + _STRING + _OTHER + rb")" + _MOST
_RUN = re.compile(_PLAIN, re.DOTALL)
# With flat objects and lists in it a typical object takes a few dozen steps.
_FLAT_RUN = re.compile(
    _OTHER + rb"(?:(?:" + _STRING + rb"|\{" + _PLAIN + rb"\}|\[" + _PLAIN + rb"\])" + _OTHER + rb")" + _MOST, re.DOTALL
)
_TEXT_RUN = re.compile(_TEXT, re.DOTALL)
_OPEN, _CLOSE, _QUOTE = b"{[", b"}]", ord('"')


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


def skip(text: bytes, position: int, flat: bool = False) -> int:
    """The place of the next bracket, of a string that does not end, or the end of the text.

    With `flat` objects and lists without others in them are skipped too, where that is cheap.
    """
    run = _FLAT_RUN if flat else _RUN
    while position < len(text):
        end = run.match(text, position).end()  # type: ignore[union-attr]
        if end == position:
            closed = _string_end(text, position) if text[position] == _QUOTE else None
            if closed is None:
                break
            end = closed
        position = end
    return position


def _string_end(text: bytes, position: int) -> int | None:
    """The place behind the string that begins here; None if it does not end."""
    position += 1
    while (end := _TEXT_RUN.match(text, position).end()) > position:  # type: ignore[union-attr]
        position = end
    return position + 1 if text[position : position + 1] == b'"' else None


def _shallow(text: bytes) -> bytes:
    """The text with null for every object and list that lies deeper than MAX_LEVELS."""
    kept: list[bytes] = []
    position = start = level = 0
    while (position := skip(text, position)) < len(text):
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
