"""What a controller reads of a process that runs."""

from __future__ import annotations

import json
from pathlib import Path

from modelpress.local.progress import ProgressReader


def line(step: int, value: float | None, **more: object) -> str:
    """As a runner writes it."""
    return (
        json.dumps({"t": 0.0, "stage": "finetune", "step": step, "total": 9, "value": value, "message": "", **more})
        + "\n"
    )


def test_a_file_is_followed_line_by_line(tmp_path: Path) -> None:
    """A half-written line waits for its end; what is no line of a runner's is passed over; scores are by step."""
    path = tmp_path / "progress.jsonl"
    reader = ProgressReader(path)
    assert reader.look() is False
    first, second = line(1, None), line(2, 0.5, metrics={"macs": 7})
    path.write_text(first + second[:10])
    assert reader.look() is True
    assert reader.latest is not None
    assert (reader.latest.step, reader.scores.points()) == (1, [])
    assert reader.look() is False
    path.write_text(first + second + "no json\n[1]\n" + line(3, 0.75))
    assert reader.look() is True
    assert reader.scores.points() == [{"step": 2, "value": 0.5, "metrics": {"macs": 7.0}}, {"step": 3, "value": 0.75}]
    with path.open("a") as file:
        file.write(line(4, 0.9, at=1))
    assert reader.look() is True
    assert reader.scores.points() == [{"step": 1, "value": 0.9}]  # the code's own count is the only one from then on


def test_a_file_without_lines_is_read_once(tmp_path: Path) -> None:
    """A megabyte without an end of line is skipped, not read again and again."""
    path = tmp_path / "progress.jsonl"
    path.write_bytes(b"x" * (1024 * 1024 + 5) + b"\n" + line(1, 0.5).encode())
    reader = ProgressReader(path)
    assert reader.look() is False
    assert reader.look() is True
    assert reader.scores.points() == [{"step": 1, "value": 0.5}]
