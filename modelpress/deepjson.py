"""From an API server's bytes to a value, however deep: what lies below a level is read as null.

The API server takes JSON that is nested ten thousand levels deep; Python's decoder gives up at about a thousand.
"""

from __future__ import annotations

import json
import re
from typing import Any

# Deeper than anything that is understood (modelpress.api.depth), and far from where decoders give up.
MAX_LEVELS = 128
_STRING = rb'"(?:[^"\\]++|\\.)*+"'
# All up to the next bracket. With flat objects and lists in it a typical object takes a few dozen steps.
_PLAIN = rb'(?:[^"{}\[\]]++|' + _STRING + rb")*+"
RUN = re.compile(_PLAIN, re.DOTALL)
FAST_RUN = re.compile(
    rb'(?:[^"{}\[\]]++|' + _STRING + rb"|\{" + _PLAIN + rb"\}|\[" + _PLAIN + rb"\])*+",
    re.DOTALL,
)
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
    while (position := RUN.match(text, position).end()) < len(text):  # type: ignore[union-attr]
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
