"""The checks for machines with a GPU: their table, and all of them, small, on the CPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gpu_check import rows
from gpu_check.checks import all_checks
from gpu_check.memory import Peaks


def fails() -> str:
    raise ValueError("two\nlines")


def cannot() -> str:
    raise rows.NotHere("there is no GPU")


def test_every_check_has_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    """What fails, and what cannot be made, is named with its reason; the others run all the same."""
    found = rows.run_all({"one": lambda: "fine", "two": fails, "three": cannot, "four": lambda: "fine too"}, 60)
    assert [(row.name, row.state, row.detail) for row in found] == [
        ("one", "ok", "fine"),
        ("two", "failed", "ValueError: two"),
        ("three", "not here", "because there is no GPU"),
        ("four", "ok", "fine too"),
    ]
    lines = rows.table(found)
    assert lines[-1] == "2 ok, 1 failed, 1 not here"
    assert len(lines) == 4 + 3
    assert "Traceback" in capsys.readouterr().err


def test_a_check_for_which_no_time_is_left_has_failed() -> None:
    """By the clock that is given: the second one begins at the limit."""
    times = iter([0.0, 0.0, 5.0, 5.0])
    found = rows.run_all({"one": lambda: "", "two": lambda: ""}, 5.0, clock=lambda: next(times))
    assert [(row.state, row.detail) for row in found] == [("ok", ""), ("failed", "no time was left for it")]


def test_a_check_that_hangs_ends_the_process_with_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    """All checks are in it: those that are over, the one under way, and those to come."""
    import threading

    ended = threading.Event()
    codes: list[int] = []

    def end(code: int) -> None:
        codes.append(code)
        ended.set()

    def hangs() -> str:
        assert ended.wait(60)
        return ""

    checks: dict[str, Callable[[], str]] = {"one": lambda: "", "two": hangs, "three": lambda: ""}
    rows.run_all(checks, 0.2, end=end)
    assert codes == [1]
    said = capsys.readouterr().out
    assert "the limit of 0 s was over" in said
    assert "1 ok, 2 failed, 0 not here" in said


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_peaks_are_those_of_each_phase() -> None:
    """64 MiB that are there for a moment count for the phase they were in; one within another counts for itself."""
    size = 64 * 2**20
    with Peaks("cpu") as peaks:
        with peaks.phase("outer"):
            with peaks.phase("inner"):
                held = torch.ones(size, dtype=torch.uint8)
                del held
            assert torch.ones(8).sum() == 8
        with peaks.phase("later"):
            pass
    assert list(peaks.peaks) == ["outer", "inner", "later"]
    # What the process had before may shrink meanwhile: unused pages go back to the system.
    assert 0.9 * size <= peaks.peaks["inner"] < 2 * size
    assert peaks.peaks["later"] < size / 2


def test_the_machine_is_checked() -> None:
    """The first row names it."""
    assert f"torch {torch.__version__}" in all_checks("cpu", "tiny")["machine"]()


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in all_checks("cpu", "tiny") if name != "machine"])
def test_each_check_passes_small_on_the_cpu(name: str) -> None:
    """But for what only a device can show, and what is not installed."""
    if name == "scores stay on the device":
        with pytest.raises(rows.NotHere, match="needs a GPU"):
            all_checks("cpu", "tiny")[name]()
        return
    if "Lightning" in name:
        assert importlib.util.find_spec("lightning") is not None
    assert all_checks("cpu", "tiny")[name]()
