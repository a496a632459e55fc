"""What each stage of a recipe did to a model, as rows: where the score was lost, and what brought it back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from modelpress import formatting
from modelpress.api.v1alpha1 import DEFAULT_METRIC

COLUMNS = ("stage", "score", "parameters", "MACs", "bytes", "latency ms", "steps", "time")
_METRICS = ("parameters", "macs", "sizeBytes", "latencyMs")


def stage_rows(baseline: Mapping[str, float], stages: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """One row of texts per stage, in COLUMNS, under one of the dense model; none where there is but one stage.

    Args:
        baseline: metrics of the dense model.
        stages: records of the stages as a manifest has them; what in them is not as expected is left blank.
    """
    if len(stages) < 2:
        return []
    rows = [_row("dense", {**baseline, "score": baseline}, "", "")]
    for number, stage in enumerate(stages):
        name = stage.get("name")
        said = name if isinstance(name, str) else str(number)
        seconds, steps = _number(stage.get("seconds")), _number(stage.get("steps"))
        taken = "from another trial" if stage.get("cached") is True else "" if seconds is None else _time(seconds)
        rows.append(_row(said, stage, f"{steps:.0f}" if steps else "", taken))
    return rows


def _row(name: str, values: Mapping[str, Any], steps: str, time: str) -> tuple[str, ...]:
    scores = values.get("score")
    score = _number(scores.get(DEFAULT_METRIC)) if isinstance(scores, Mapping) else None
    counted = [(metric, _number(values.get(metric))) for metric in _METRICS]
    counts = ["" if value is None else formatting.number(metric, value) for metric, value in counted]
    return (name, "" if score is None else formatting.number(DEFAULT_METRIC, score), *counts, steps, time)


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else formatting.duration(seconds)


def _number(value: Any) -> float | None:
    fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if fits else None
