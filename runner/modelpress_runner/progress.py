"""Progress of a run: one event per chunk or stage, for people and, as JSON lines, for the shell."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger("modelpress")


@dataclass(frozen=True)
class Event:
    """Something happened in `stage`: `step` of `total` chunks of the whole recipe are done, `value` is a new score."""

    stage: str
    step: int
    total: int
    message: str
    value: float | None = None


Report = Callable[[Event], None]


def silent(event: Event) -> None:
    """Reports nothing."""


class ProgressFile:
    """Appends events to a file that the shell reads while it grows; each line is written at once.

    A line: {"t": unix seconds, "stage": str, "step": int, "total": int, "value": number or null, "message": str}.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def __call__(self, event: Event) -> None:
        score = "" if event.value is None else f", score {event.value:.6g}"
        log.info("[%d/%d] %s: %s%s", event.step, event.total, event.stage, event.message, score)
        if self._path is None:
            return
        line = {
            "t": time.time(),
            "stage": event.stage,
            "step": event.step,
            "total": event.total,
            "value": event.value,
            "message": event.message,
        }
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
