"""Figures that runs from the same dense model share, in the store beside it."""

from __future__ import annotations

import json
from typing import Any

from modelpress.plainjson import json_of
from modelpress.store.base import ArtifactStore
from modelpress.store.errors import ObjectMissingError

_LIMIT = 64 * 1024 * 1024  # bytes of a table


class StoreTables:
    """`methods.context.Tables` in the folder of a dense model; a table that is damaged is worked out again.

    Args:
        store: where.
        folder: of the dense model, whose name says what the tables depend on besides their own.
    """

    def __init__(self, store: ArtifactStore, folder: str) -> None:
        self._store, self._folder = store, folder

    def get(self, name: str) -> dict[str, Any] | None:
        """As Tables.get."""
        try:
            found = json_of(self._store.get_bytes(self._path(name), _LIMIT))
        except (ObjectMissingError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def put(self, name: str, table: dict[str, Any]) -> None:
        """As Tables.put."""
        self._store.put_bytes(self._path(name), json.dumps(table, allow_nan=False).encode())

    def _path(self, name: str) -> str:
        return f"{self._folder}/tables/{name}.json"
