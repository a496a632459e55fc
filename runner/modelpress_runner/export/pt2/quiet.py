"""Around torch's exporter and its reader: silence, and what it works out again for every entry remembered."""

from __future__ import annotations

import contextlib
import io
import logging
import types
import typing
import warnings
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The exporter warns and logs about what this module checks itself; its errors carry all that matters."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        # It also prints the graph of a model that it cannot export.
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def remembered_types() -> Iterator[None]:
    """torch's reader works out the types of a class's fields anew for each object: half of the time that it takes."""

    known: dict[tuple[type, int], dict[str, Any]] = {}

    def get_type_hints(kind: type, globalns: dict[str, Any]) -> dict[str, Any]:
        key = kind, id(globalns)  # of a module of torch, which stays
        if key not in known:
            known[key] = typing.get_type_hints(kind, globalns=globalns)
        return known[key]

    from torch._export.serde import serialize  # seconds, which only a reader should pay

    reader: Any = serialize
    before = reader.typing
    reader.typing = types.SimpleNamespace(**{**vars(typing), "get_type_hints": get_type_hints})
    try:
        yield
    finally:
        reader.typing = before
