"""When the kept images of the end-to-end cluster are still of use."""

from __future__ import annotations

from pathlib import Path

import images
import pytest
from images import Images

DOCKERFILE = """ARG BASE=debian
FROM ${BASE} AS base
RUN one
FROM base AS operator
RUN two
FROM base AS runner
RUN three
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a Dockerfile and lock files."""
    (tmp_path / "requirements").mkdir()
    for name in ("operator", "runner"):
        (tmp_path / "requirements" / f"{name}.txt").write_text(f"{name}==1\n")
    (tmp_path / "Dockerfile").write_text(DOCKERFILE)
    monkeypatch.setattr(images, "ROOT", tmp_path)
    return tmp_path


def test_the_folder_is_the_big_layers(checkout: Path) -> None:
    """What makes the runner's layers makes another folder, and the operator's part of the Dockerfile does not."""
    cache = checkout / "cache"
    first = Images(cache).folder
    (checkout / "requirements" / "operator.txt").write_text("operator==2\n")
    (checkout / "Dockerfile").write_text(DOCKERFILE.replace("two", "2"))
    assert Images(cache).folder == first
    (checkout / "Dockerfile").write_text(DOCKERFILE.replace("three", "3"))
    second = Images(cache).folder
    (checkout / "requirements" / "runner.txt").write_text("runner==2\n")
    third = Images(cache).folder
    based = Images(cache, base="python:3.12-slim").folder
    assert len({first, second, third, based}) == 4


def test_other_recipes_and_leftovers_go(checkout: Path) -> None:
    """Only one generation of gigabytes stays, without what a killed build left in it."""
    cache = checkout / "cache"
    kept = Images(cache)
    for leftover in (cache / "images-0123", kept.folder / "tmp-x", cache / "tmp" / "buildah42"):
        leftover.mkdir(parents=True)
        (leftover / "layer").touch()
    (kept.folder / "containerd").mkdir()
    kept.clean()
    assert [path.name for path in cache.glob("images-*")] == [kept.folder.name]
    assert [path.name for path in kept.folder.iterdir()] == ["containerd"]
    assert list((cache / "tmp").iterdir()) == []
