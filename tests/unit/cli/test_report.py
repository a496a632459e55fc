"""`modelpress report`, as a user calls it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from modelpress.store import manifest, open_store
from modelpress.store.manifest import FileEntry, Manifest, RunMetrics

SWEEP = "runs/default/digits-01234567"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in which a sweep left two trials."""
    store = open_store(str(tmp_path / SWEEP))
    for number in range(2):
        prefix = f"trials/{number:05d}"
        store.put_bytes(f"{prefix}/1-aaaaaaaa/model.pt2", b"x")
        entry = FileEntry(path="1-aaaaaaaa/model.pt2", sha256=hashlib.sha256(b"x").hexdigest(), bytes=1)
        metrics = RunMetrics(baseline={"default": 0.9}, compressed={"default": 0.9 - number / 10, "macs": 100.0})
        made = Manifest(attempt=1, files=[entry], metrics=metrics, spec_digest="d")
        manifest.commit(store, prefix, made)
    return tmp_path


def call(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `modelpress report ...` to its end."""
    return subprocess.run(
        (sys.executable, "-m", "modelpress.cli", "report", *words),
        cwd=folder,
        env={**os.environ, "NO_COLOR": "1"},
        text=True,
        capture_output=True,
        timeout=60,
        check=False,
    )


def test_it_writes_into_the_sweeps_folder(folder: Path) -> None:
    """The path of the report and the number of trials are printed."""
    done = call(folder, SWEEP)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{folder / SWEEP}/report.html: 2 trials\n", "")
    assert b"<title>digits</title>" in (folder / SWEEP / "report.html").read_bytes()


def test_objectives_and_output_are_honoured(folder: Path) -> None:
    """--output takes the page, --objective decides what is plotted, and which way is better."""
    done = call(folder, SWEEP, "--objective", "default:minimize", "--output", "page.html")
    assert done.returncode == 0, done.stderr
    page = (folder / "page.html").read_text()
    assert "Best: trial 1" in page
    assert not (folder / SWEEP / "report.html").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nothing",), "there is no folder nothing; name a sweep's folder"),
        (("runs",), "runs is no sweep's folder; name one of those below it"),
        (("s4://bucket/x",), "s4"),
        ((SWEEP, "--objective", "macs:less"), "--objective: 'macs:less' is no objective; give a metric"),
        ((SWEEP, "--objective", "mac"), "no trial has the metric 'mac'; did you mean macs?"),
        ((SWEEP, "--objective", "f1:maximize"), "no trial has the metric 'f1'; give one of default, macs"),
        ((SWEEP, "--output", "no/page.html"), "--output: cannot write no/page.html"),
        ((SWEEP, "--region", "eu"), "region is for s3:// stores only"),
    ],
)
def test_what_cannot_be_is_told_in_a_sentence(folder: Path, words: tuple[str, ...], said: str) -> None:
    """Exit code 2, one line, no traceback."""
    done = call(folder, *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
