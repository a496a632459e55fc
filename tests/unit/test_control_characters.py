"""What strangers write into messages is shown, never sent to a terminal, in every view and error."""

from __future__ import annotations

import datetime as dt
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from modelpress.cli.cluster import tables
from modelpress.cli.exits import report
from modelpress.control_characters import escape_control_characters
from modelpress.local.errors import UsageError
from modelpress.local.process import last_lines
from modelpress.reconcile.conditions import cut
from modelpress.store.errors import scrub
from modelpress_operator.progress.message import parse

NOW = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)
# Sets the title, clears the screen, plants a link, turns the direction, hides, writes C1 controls, rewinds the line.
HOSTILE = (
    "\x1b]0;owned\x07 \x1b[2J\x1b[31m \x1b]8;;http://evil.example\x1b\\here\x1b]8;;\x1b\\ \u202egpj.exe\u202c "
    "\u2066x\u2069 \u200b\ufeff\u2028\x9b31m\x00\x08\x7f [bold red]markup[/] ok"
)


def acting(text: str) -> list[str]:
    """The characters that would do more than be read."""
    return [
        each
        for each in text
        if each not in "\n\t\u200c\u200d" and unicodedata.category(each) in ("Cc", "Cf", "Zl", "Zp", "Cs")
    ]


@given(st.text())
def test_nothing_that_acts_is_left(text: str) -> None:
    """Whatever the text; what can be read stays as it is, and a second time changes nothing."""
    out = escape_control_characters(text)
    assert acting(out) == []
    assert escape_control_characters(out) == out
    if not acting(text):
        assert out == text


def test_what_acts_is_written_as_python_writes_it() -> None:
    """So that a person sees what was there."""
    assert escape_control_characters("a\x1b[2J\u202eb\x9b\n\tc") == "a\\x1b[2J\\u202eb\\x9b\n\tc"
    assert escape_control_characters("Größe ✓ 模型 \N{FAMILY}") == "Größe ✓ 模型 \N{FAMILY}"


def hostile_objects() -> list[dict[str, Any]]:
    """A job and a sweep whose every text is hostile."""
    when = "2026-11-21T09:00:00Z"
    conditions = [
        {"type": type_, "status": status, "reason": HOSTILE, "message": HOSTILE, "lastTransitionTime": when}
        for type_, status in (("Failed", "True"), ("Portable", "False"), ("Compressed", "False"), ("Ready", "False"))
    ]
    numbers = {"default": 0.5, HOSTILE: 1.0}
    status: dict[str, Any] = {
        "phase": HOSTILE,
        "conditions": conditions,
        "attempts": [{"number": 1, "outcome": HOSTILE, "reason": HOSTILE, "message": HOSTILE}],
        "metrics": {"baseline": numbers, "compressed": numbers},
        "progress": {"stage": HOSTILE, "step": 1, "total": 2},
    }
    meta = {"name": HOSTILE, "namespace": HOSTILE, "creationTimestamp": when}
    meta |= {
        "labels": {"modelpress.dev/trial": "1"},
        "annotations": {"modelpress.dev/parameters": json.dumps({HOSTILE: HOSTILE})},
    }
    job = {"kind": "CompressionJob", "metadata": meta, "spec": {}, "status": status}
    best = {"number": 1, "metrics": numbers}
    sweep = {
        **job,
        "kind": "CompressionSweep",
        "spec": {"objectives": [{"metric": HOSTILE}]},
        "status": {**status, "best": best},
    }
    return [job, sweep]


def test_every_view_of_a_cluster_shows_it() -> None:
    """The overview, one job, one sweep with its trials: on a terminal with colours."""
    stream = io.StringIO()
    out = Console(file=stream, width=400, force_terminal=True, color_system=None, highlight=False)
    job, sweep = hostile_objects()
    out.print(tables.overview([job, sweep], NOW, everywhere=True))
    tables.print_object(out, job, [], NOW)
    tables.print_object(out, sweep, [job], NOW)
    text = stream.getvalue()
    for ours in ("\x1b[1m", "\x1b[0m", "\x1b[33m", "\x1b[1;32m"):  # bold and yellow are rich's own
        text = text.replace(ours, "")
    assert acting(text) == []
    assert text.count("\\u202egpj.exe") >= 8
    assert "[bold red]markup[/]" in text


def test_errors_statuses_logs_and_servers_answers_show_it(capsys: pytest.CaptureFixture[str], tmp_path: Any) -> None:
    """What reaches a person by any other way."""
    report(UsageError(HOSTILE))
    assert acting(capsys.readouterr().err) == []
    for text in (
        cut(HOSTILE),
        scrub(HOSTILE),
        parse(json.dumps({"stage": HOSTILE, "step": 1}).encode()).status("T")["progress"]["stage"],
    ):
        assert acting(text) == []
        assert "\\u202e" in text
    (tmp_path / "log").write_text(HOSTILE.replace("\u2028", ""), encoding="utf-8")
    assert [acting(line) for line in last_lines(tmp_path / "log")] == [[]]


def test_a_long_stage_still_fits_a_status() -> None:
    """Shown, a text grows; a status takes 1,024 characters."""
    assert len(parse(json.dumps({"stage": "\x1b" * 1024, "step": 1}).encode()).status("T")["progress"]["stage"]) == 1024


PROGRAM = (
    "import sys; sys.argv[1:] = {arguments!r}; from modelpress.cli import main, interrupt; "
    "print('up', flush=True); main()"
)


def test_an_early_ctrl_c_ends_quietly() -> None:
    """At twenty random moments of loading and of a command's beginning: 130, and not a word of Python's."""
    chance, ended = random.Random(0), []
    for number in range(20):
        arguments = [["--version"], ["validate", "no-such-file.yaml"], ["status"]][number % 3]
        program = subprocess.Popen(
            [sys.executable, "-c", PROGRAM.format(arguments=arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "KUBECONFIG": "/nowhere"},
        )
        assert program.stdout is not None
        assert program.stdout.readline() == "up\n"
        time.sleep(chance.uniform(0.05, 0.8))
        program.send_signal(signal.SIGINT)
        _, said = program.communicate(timeout=60)
        assert "Traceback" not in said, said
        assert "KeyboardInterrupt" not in said, said
        # It may have ended before; while Python takes itself down the signal is the system's again: a shell says 130.
        assert program.returncode in (130, -signal.SIGINT, 0, 2, 1), program.returncode
        ended.append(program.returncode)
        if program.returncode == 130:
            assert said == ""
    assert 130 in ended
