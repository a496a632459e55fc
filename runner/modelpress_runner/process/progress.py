"""Progress of a run: one event per score, training or stage, for people and, as JSON lines, for the controller."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

log = logging.getLogger("modelpress")


@dataclass(frozen=True)
class Event:
    """Something happened in `stage`: `step` of `total` optimizer steps of the recipe are done, `value` is a new score.

    `total` is 0 where it is not known: nobody can say how many steps an epoch of the user's has.

    What the user's own code reported has his count of steps in `at`. `metrics` has what else is known beside a score:
    all that the code reported, or the evaluator's other metrics and the counts of the model.
    """

    stage: str
    step: int
    total: int
    message: str
    value: float | None = None
    at: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)


EventCallback = Callable[[Event], None]


def silent(event: Event) -> None:
    """Reports nothing."""


class ProgressFile:
    """Appends events to a file that the controller reads while it grows; each line is written at once.

    A line: {"t": unix seconds, "stage": str, "step": int, "total": int, "value": number or null, "message": str}, with
    {"metrics": {name: number}} where more is known, and {"at": his step} of what the user's code reported. Of many such
    reports fewer and fewer are written: all of the first 1024, then every second of as many lines, every fourth, ...
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._thinning = Thinning()

    def __call__(self, event: Event) -> None:
        if event.at is not None and not self._thinning.keeps():
            return
        score = "" if event.value is None else f", score {event.value:.6g}"
        of = f"/{event.total}" if event.total else ""
        log.info("[%d%s] %s: %s%s", event.step, of, event.stage, event.message, score)
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
        if event.at is not None:
            line["at"] = event.at
        if event.metrics:
            line["metrics"] = dict(event.metrics)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


class Thinning:
    """Keeps n items, then every second of the next 2n, every fourth of the next 4n, ...: n log N lines of N."""

    def __init__(self, most: int = 1024) -> None:
        self._most, self._stride, self._seen = most, 1, 0

    def keeps(self) -> bool:
        """Whether to keep the next item."""
        kept = self._seen % self._stride == 0
        self._seen += 1
        if self._seen == self._most * self._stride:
            self._stride, self._seen = 2 * self._stride, 0
        return kept
