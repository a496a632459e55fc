"""Numbers for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
# metric -> heading of its column
HEADINGS = {
    "macs": "MACs",
    "sizeBytes": "bytes",
    "latencyMs": "latency ms",
    "parameters": "parameters",
    "default": "score",
}
COUNTS = frozenset({"macs", "sizeBytes", "parameters", "nonzeroParameters", "peakMemoryBytes"})


def number(metric: str, value: float) -> str:
    """A metric's value: counts with a unit (1.25M), others with four significant digits."""
    if metric in COUNTS:
        for size, unit in _UNITS:
            if abs(value) >= size:
                return f"{value / size:.3g}{unit}"
        return f"{value:.0f}"
    return f"{value:.4g}"


def change(value: float, baseline: float | None) -> str:
    """Change against the dense model in percent of it: -48.2%; empty where that says nothing, as of next to nothing."""
    if baseline is None or baseline == 0:
        return ""
    percent = 100 * (value - baseline) / abs(baseline)
    if percent >= 10_000:  # a dense model's sparsity is a few weights that happen to be zero
        return ""
    return f"{percent:+.1f}%" if abs(percent) >= 0.05 else "0.0%"


def with_change(metric: str, compressed: Mapping[str, float], baseline: Mapping[str, float]) -> str:
    """`1.2M (-48.0%)`; empty where the metric was not measured."""
    if metric not in compressed:
        return ""
    value = compressed[metric]
    against = change(value, baseline.get(metric))
    return f"{number(metric, value)} ({against})" if against else number(metric, value)


def parameters(values: Mapping[str, Any]) -> str:
    """`algorithm=l1 sparsity=0.5`."""
    return " ".join(
        f"{name}={format(value, '.4g') if isinstance(value, float) else value}" for name, value in values.items()
    )


def duration(seconds: float) -> str:
    """0:05, 12:30, 1:02:03."""
    minutes, rest = divmod(int(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
