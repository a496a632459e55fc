"""What a machine must have to be a node, said before anything is built."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import packages
import pytest


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that has it all, as far as `check` looks: root, namespaces, cgroups of version 1 and a large disk."""
    cgroups = tmp_path / "cgroup"
    (cgroups / "memory").mkdir(parents=True)
    (cgroups / "memory" / "cgroup.procs").touch()
    monkeypatch.setattr(packages, "CGROUPS", cgroups)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(subprocess, "run", answer(0))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**12))
    return tmp_path


def answer(code: int, says: str = "") -> Callable[..., Any]:
    """A process that ends with a code."""
    return lambda command, **options: subprocess.CompletedProcess(command, code, "", says)


def test_nothing_is_said_of_a_machine_that_will_do(machine: Path) -> None:
    """It leaves no cgroup behind, and makes the folder of the images."""
    packages.check(machine / "cache")
    assert (machine / "cache").is_dir()
    assert [path.name for path in (machine / "cgroup" / "memory").iterdir()] == ["cgroup.procs"]


def test_an_ordinary_user_is_refused(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without root there are no namespaces and no mounts."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(packages.MissingError, match="needs root"):
        packages.check(machine)


def test_a_container_without_rights_is_refused(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's own words are in the message."""
    monkeypatch.setattr(subprocess, "run", answer(1, "unshare failed: Operation not permitted\n"))
    with pytest.raises(packages.MissingError, match=r"\(unshare failed: Operation not permitted\); run this as root"):
        packages.check(machine)


def test_a_machine_without_cgroups_is_refused(machine: Path) -> None:
    """The kubelet could limit nothing."""
    (machine / "cgroup" / "memory" / "cgroup.procs").unlink()
    with pytest.raises(packages.MissingError, match="no cgroups are mounted"):
        packages.check(machine)


def test_a_small_disk_is_refused_unless_the_images_are_there(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cold it needs room for all images, later for a few layers."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=9 * 10**9))
    with pytest.raises(packages.MissingError, match="has 9 GB free and 26 GB are needed"):
        packages.check(machine / "cache")
    (machine / "cache" / "images-1" / "containerd").mkdir(parents=True)
    packages.check(machine / "cache")
