"""Which layer of the best trial lost what: its numbers, the error of its outputs, and bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from modelpress import formatting
from modelpress.results.trials import Trial

MOST = 200  # rows; metrics.json has all
_TARGETS = ("weight", "input", "output")


def layers_of(trial: Trial) -> list[dict[str, Any]]:
    """The layers that the trial's last quantizing stage tells of, those that lose most first.

    What in the record is not as expected is left out: it may be a plug-in's.
    """
    stages = [] if trial.manifest is None else trial.manifest.metrics.stages
    for stage in reversed(stages):
        listed = stage.get("layers")
        if stage.get("method") in ("quantize", "together") and isinstance(listed, Sequence):
            found: list[dict[str, Any]] = [
                dict(each) for each in listed if isinstance(each, Mapping) and isinstance(each.get("name"), str)
            ]
            return sorted(found, key=lambda each: value if (value := _number(each.get("sqnrDb"))) is not None else 1e9)
    return []


def layers_section(trial: Trial | None) -> str:
    """A table of them as HTML; "" where there are none."""
    found = [] if trial is None else layers_of(trial)
    if trial is None or not found:
        return ""
    rows = []
    timed = any(_number(each.get("msBefore")) is not None for each in found)
    for each in found[:MOST]:
        types = "".join(f"<td>{_text(each.get(target))}</td>" for target in _TARGETS)
        error = _number(each.get("sqnrDb"))
        before, after = (_number(each.get(key)) for key in ("bytesBefore", "bytesAfter"))
        sizes = "".join(
            f'<td class="number">{"" if value is None else escape(formatting.number("sizeBytes", value))}</td>'
            for value in (before, after)
        )
        times = [_number(each.get(key)) for key in ("msBefore", "msAfter")] if timed else []
        sizes += "".join(f'<td class="number">{"" if value is None else f"{value:.3g}"}</td>' for value in times)
        shown = "" if error is None else f"{error:.1f}"
        rows.append(f'<tr><td>{_text(each["name"])}</td>{types}<td class="number">{shown}</td>{sizes}</tr>')
    more = f" Shown are {MOST} of {len(found)}; metrics.json has all." if len(found) > MOST else ""
    heads = ("layer", *_TARGETS, "SQNR (dB)", "bytes before", "after", *(("ms before", "after") if timed else ()))
    alone = " Times are those of a layer alone." if timed else ""
    return (
        f"<h2>Layers of trial {trial.number}</h2><p>Those that lose most first. SQNR: the squares of a layer's outputs "
        f"by those of the error that few bits make.{alone}{more}</p>"
        f"<table><thead><tr>{''.join(f'<th>{escape(head)}</th>' for head in heads)}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _text(value: Any) -> str:
    return escape(value[:256]) if isinstance(value, str) else ""


def _number(value: Any) -> float | None:
    fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if fits else None
