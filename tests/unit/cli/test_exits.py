"""Exceptions become a sentence and an exit code; the traceback is kept for whoever asks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from modelpress.api.errors import Problem, SpecError
from modelpress.cli.exits import Exit, report
from modelpress.local.errors import LockedError, StateError, UsageError


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (
            SpecError([Problem("spec.seed", "is wrong", "set it right")]),
            2,
            "modelpress: spec.seed: is wrong; set it right",
        ),
        (UsageError("--store: no"), 2, "modelpress: --store: no"),
        (LockedError("process 1 is here"), 2, "modelpress: process 1 is here"),
        (StateError("the disk is full"), 1, "modelpress: the disk is full"),
    ],
)
def test_foreseen_errors_are_their_own_sentence(
    capsys: pytest.CaptureFixture[str], error: Exception, code: int, said: str
) -> None:
    """What a user can cause is told as it is, with its exit code."""
    assert report(error) == code
    assert capsys.readouterr().err == f"{said}\n"


def test_several_problems_are_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    """So that an editor can jump to each."""
    report(SpecError(Problem(path, "is wrong", "fix it", "a.yaml", 3) for path in ("spec.a", "spec.b")))
    assert capsys.readouterr().err == "a.yaml:3: spec.a: is wrong; fix it\na.yaml:3: spec.b: is wrong; fix it\n"


def unforeseen() -> Exception:
    """An error with a traceback."""
    try:
        raise ZeroDivisionError("nobody thought of this")
    except ZeroDivisionError as error:
        return error


def test_an_unforeseen_error_keeps_its_traceback_in_a_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user sees one sentence, and where the rest is."""
    monkeypatch.delenv("MODELPRESS_DEBUG", raising=False)
    assert report(unforeseen()) == Exit.FAILED
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert "ZeroDivisionError: nobody thought of this" in said
    log = Path(re.search(r"the traceback is in (\S+)", said)[1])
    assert "Traceback (most recent call last)" in log.read_text()
    log.unlink()


def test_debugging_shows_the_traceback(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """MODELPRESS_DEBUG=1 prints it."""
    monkeypatch.setenv("MODELPRESS_DEBUG", "1")
    assert report(unforeseen()) == Exit.FAILED
    assert "Traceback (most recent call last)" in capsys.readouterr().err
