"""The artifact store's contract on a folder and in memory."""

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

    test_an_upload_that_breaks_off_leaves_nothing = None  # no connection; killed writers are an integration test

    @pytest.fixture
    def opener(self, tmp_path: Path) -> Opener:
        return functools.partial(open_store, str(tmp_path / "a store #1 100%" / "not there yet"))

    @pytest.fixture
    def refused(self, tmp_path: Path) -> Opener:
        (tmp_path / "file").touch()
        return functools.partial(open_store, str(tmp_path / "file"))


class TestMemory(ArtifactStoreContract):
    """Memory, with a prefix."""

    shared_by_processes = False
    bounded_memory = False
    test_put_if_absent_by_many_processes = None  # memory is one process's own, without rights or a connection
    test_refusals_are_named = None
    test_an_upload_that_breaks_off_leaves_nothing = None

    @pytest.fixture
    def opener(self) -> Opener:
        return functools.partial(open_store, f"memory://contract-{next(_numbers)}/some/prefix")
