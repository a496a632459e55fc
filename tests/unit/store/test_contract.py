"""The artefact store's contract on a folder and in memory."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path

import pytest

from modelpress.store import open_store
from modelpress.store.testing import ArtifactStoreContract, Opener

_numbers = itertools.count()


class TestFolder(ArtifactStoreContract):
    """A folder by its plain path, with characters that mean something in URLs."""

    @pytest.fixture
    def opener(self, tmp_path: Path) -> Opener:
        return functools.partial(open_store, str(tmp_path / "a store #1 100%" / "not there yet"))

    @pytest.fixture
    def refused(self, tmp_path: Path) -> Opener:
        (tmp_path / "file").touch()
        return functools.partial(open_store, str(tmp_path / "file"))


class TestFileUri(ArtifactStoreContract):
    """A folder by its file:// URI."""

    @pytest.fixture
    def opener(self, tmp_path: Path) -> Opener:
        return functools.partial(open_store, (tmp_path / "with space").as_uri())


class TestMemory(ArtifactStoreContract):
    """Memory, with a prefix."""

    shared_by_processes = False
    bounded_memory = False

    @pytest.fixture
    def opener(self) -> Opener:
        return functools.partial(open_store, f"memory://contract-{next(_numbers)}/some/prefix")
