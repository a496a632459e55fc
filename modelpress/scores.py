"""Scores on the way, as runners collect them and statuses hold them: few points, evenly spread."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from modelpress.api.v1alpha1 import DEFAULT_METRIC

MAX_POINTS = 64  # of a status and of a message
MAX_METRICS = 16  # beside the score, of one point


class ScoreHistory:
    """The scores so far, by step: at most 64 of them go out, evenly spread, the first and the last among them.

    Steps are optimizer steps of the recipe, until the user's code reports scores by a count of its own: from then on
    that alone counts, and what was there before is dropped, for the two cannot be compared.
    """

    def __init__(self) -> None:
        self._points: dict[int, tuple[float, dict[str, float]]] = {}
        self._own = False

    def add(
        self, step: int, value: float | None, metrics: Mapping[str, float] | None = None, *, own: bool = False
    ) -> None:
        """Take a score; of one step the last counts. `own`: the step is a count of the user's code."""
        if value is None or not math.isfinite(value) or step < 0 or (self._own and not own):
            return
        if own and not self._own:
            self._own, self._points = True, {}
        others = sorted((name, float(number)) for name, number in (metrics or {}).items() if name != DEFAULT_METRIC)
        finite = [(name, number) for name, number in others if math.isfinite(number)]
        self._points[int(step)] = float(value), dict(finite[:MAX_METRICS])
        if len(self._points) > 16 * MAX_POINTS:  # memory stays bounded, however long the run
            self._points = dict(_spread(sorted(self._points.items()), 8 * MAX_POINTS))

    def points(self) -> list[dict[str, Any]]:
        """{"step", "value"} and, where there are more metrics, "metrics" of each, ascending by step."""
        found = _spread(sorted(self._points.items()), MAX_POINTS)
        return [
            {"step": step, "value": value, **({"metrics": metrics} if metrics else {})}
            for step, (value, metrics) in found
        ]


def _spread(points: Iterable[tuple[int, Any]], most: int) -> list[tuple[int, Any]]:
    points = list(points)
    if len(points) <= most:
        return points
    last = len(points) - 1
    return [points[round(index * last / (most - 1))] for index in range(most)]
