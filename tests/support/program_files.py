"""Files of programs taken apart, changed and put together again, and what must be said of them."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelpress_runner.errors import ArtifactError
from modelpress_runner.export.pt2.program import open_program

Entries = dict[str, bytes]


def read(path: Path) -> Entries:
    with zipfile.ZipFile(path) as archive:
        return {info.filename.removeprefix("archive/"): archive.read(info) for info in archive.infolist()}


def write(path: Path, entries: Entries) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(f"archive/{name}", data)
    return path


def edit(entries: Entries, name: str, change: Callable[[Any], None]) -> None:
    document = json.loads(entries[name])
    change(document)
    entries[name] = json.dumps(document).encode()


def node(document: Any, index: int = 0) -> Any:
    return document["graph_module"]["graph"]["nodes"][index]


def refused(path: Path, marker: Path, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        open_program(path)
    assert not marker.exists()


@pytest.fixture
def entries(exported: Path) -> Entries:
    return read(exported)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "marker"
