"""What a running process says of itself, read from the file that it appends to."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelpress.plainjson import json_of
from modelpress.scores import ScoreHistory

from .regular import open_regular

MAX_READ = 1024 * 1024  # bytes of one look; the next look reads on
MAX_LINE = 64 * 1024


@dataclass(frozen=True)
class RunnerProgress:
    """The last line that a runner wrote about how far it is."""

    stage: str = ""
    step: int | None = None
    total: int | None = None
    value: float | None = None
    message: str = ""

    @classmethod
    def of(cls, value: dict[str, Any]) -> RunnerProgress:
        """That in a line.

        Raises:
            ValueError, TypeError: it is none.
        """
        step, total, number = value.get("step"), value.get("total"), value.get("value")
        return cls(
            stage=str(value.get("stage") or ""),
            step=int(step) if step is not None else None,
            total=int(total) if total is not None else None,
            value=float(number) if number is not None else None,
            message=str(value.get("message") or ""),
        )


@dataclass
class ProgressReader:
    """Follows one file: the last line, and the scores so far."""

    path: Path
    latest: RunnerProgress | None = None
    scores: ScoreHistory = field(default_factory=ScoreHistory)
    _offset: int = 0

    def look(self) -> bool:
        """Read what is new; whether there was anything. A line that is not written to its end is left for later."""
        try:
            with os.fdopen(open_regular(self.path, os.O_RDONLY), "rb") as file:
                file.seek(self._offset)
                data = file.read(MAX_READ)
        except OSError:
            return False
        whole, _, _ = data.rpartition(b"\n")
        if not whole:
            # Nothing ends here: either it is still being written, or it is no line of a runner's.
            self._offset += len(data) if len(data) >= MAX_LINE else 0
            return False
        self._offset += len(whole) + 1
        for line in whole.split(b"\n"):
            with contextlib.suppress(ValueError, TypeError, AttributeError):
                self._take(json_of(line.decode("utf-8")))
        return True

    def _take(self, line: dict[str, Any]) -> None:
        self.latest = RunnerProgress.of(line)
        value, at = self.latest.value, line.get("at")
        step = self.latest.step if at is None else int(at)
        metrics = {str(name): float(number) for name, number in (line.get("metrics") or {}).items()}
        if step is not None and step <= 2**53:
            self.scores.add(step, value, metrics, own=at is not None)
