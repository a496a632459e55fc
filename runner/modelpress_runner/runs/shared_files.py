"""Files that trials of one sweep leave for each other, in the store below its root."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from modelpress.store import layout
from modelpress.store.base import ArtifactStore
from modelpress.store.errors import ObjectMissingError


class StoredFiles:
    """`methods.context.SharedFiles` below the root of a sweep.

    Args:
        store: where.
        root: of the sweep.
    """

    def __init__(self, store: ArtifactStore, root: str) -> None:
        self._store, self._root = store, root

    def read(self, folder: str) -> Iterator[Path]:
        """As SharedFiles.read; what goes away meanwhile is passed over."""
        for found in self._store.list(layout.shared_files_prefix(self._root, folder)):
            with tempfile.TemporaryDirectory(prefix="modelpress-") as local:
                path = Path(local) / "file"
                try:
                    self._store.get_file(found.path, path, found.size)
                except ObjectMissingError:
                    continue
                yield path

    def add(self, folder: str, name: str, path: Path) -> None:
        """As SharedFiles.add."""
        target = f"{layout.shared_files_prefix(self._root, folder)}/{name}"
        if not self._store.exists(target):
            self._store.put_file(target, path)
