"""The plot of a report: an SVG of the first two objectives, readable without scripts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from modelpress import formatting
from modelpress.api.v1alpha1 import Constraint
from modelpress.results.trials import Trial
from modelpress.search.constraints import limit

from .frame import Frame
from .scale import Scale

WIDTH, HEIGHT = 860, 460
LEFT, RIGHT, TOP, BOTTOM = 74, 18, 22, 52
TRIAL = "trial"  # the other axis of a sweep with one objective
_FAR = 1.0  # a bound farther from the points than this many times their range is told, not drawn


@dataclass(frozen=True)
class Dot:
    """A trial in the plot. `kind` is best, front, kept or missed."""

    number: int
    x: float
    y: float
    kind: str


@dataclass(frozen=True)
class Bound:
    """Where a constraint ends, on the axis of its metric. `upper`: what is greater misses it."""

    value: float
    upper: bool
    text: str


def plot(frame: Frame, trials: Sequence[Trial]) -> str:
    """An <svg>, or a sentence where no trial has both objectives."""
    axes = _axes(frame)
    if axes is None:
        return "<p>There is no objective to plot.</p>"
    x_metric, y_metric = axes
    dots = _dots(frame, trials, x_metric, y_metric)
    if not dots:
        return f"<p>No trial has a result for {escape(y_metric)} yet.</p>"
    dense = _dense(frame, trials)
    x_bounds, y_bounds = _bounds(frame, x_metric, dense), _bounds(frame, y_metric, dense)
    x_scale = _scale([dot.x for dot in dots], dense.get(x_metric), x_bounds, LEFT, WIDTH - RIGHT)
    y_scale = _scale([dot.y for dot in dots], dense.get(y_metric), y_bounds, HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg id="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(_title(x_metric, y_metric))}">',
        *_grid(x_scale, y_scale, x_metric, y_metric),
        *_drawn_bounds(x_scale, y_scale, x_bounds, y_bounds),
        *_front(frame, dots, x_scale, y_scale, x_metric),
    ]
    if x_metric in dense and y_metric in dense:
        parts.append(_mark_dense(x_scale.at(dense[x_metric]), y_scale.at(dense[y_metric])))
    order = {"missed": 0, "kept": 1, "front": 2, "best": 3}  # the best on top
    parts += [_mark(dot, x_scale, y_scale) for dot in sorted(dots, key=lambda dot: (order[dot.kind], dot.number))]
    axis_names = (
        f'<text class="axis" x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 10}" text-anchor="middle">'
        f"{escape(_axis(frame, x_metric))}</text>"
        f'<text class="axis" transform="translate(16 {(TOP + HEIGHT - BOTTOM) / 2:.0f}) rotate(-90)" '
        f'text-anchor="middle">{escape(_axis(frame, y_metric))}</text>'
    )
    return "\n".join([*parts, axis_names, "</svg>"])


def _axes(frame: Frame) -> tuple[str, str] | None:
    """Metrics of the x and y axis: what is gained upwards, what it costs to the right."""
    names = [metric for metric, _ in frame.objectives]
    if not names:
        return None
    return (names[1], names[0]) if len(names) > 1 else (TRIAL, names[0])


def _title(x_metric: str, y_metric: str) -> str:
    return f"{y_metric} by {x_metric}" if x_metric != TRIAL else f"{y_metric} of each trial"


def _axis(frame: Frame, metric: str) -> str:
    if metric == TRIAL:
        return "trial"
    better = "more is better" if frame.goal(metric) == "maximize" else "less is better"
    name = formatting.HEADINGS.get(metric, metric)
    return f"{name} ({better})" if name == metric else f"{name} [{metric}] ({better})"


def _dots(frame: Frame, trials: Sequence[Trial], x_metric: str, y_metric: str) -> list[Dot]:
    dots = []
    for trial in trials:
        x = float(trial.number) if x_metric == TRIAL else trial.compressed.get(x_metric, math.nan)
        y = trial.compressed.get(y_metric, math.nan)
        if trial.state != "Succeeded" or not (math.isfinite(x) and math.isfinite(y)):
            continue
        kind = "missed" if frame.missed(trial) else "front" if trial.number in frame.front else "kept"
        dots.append(Dot(trial.number, x, y, "best" if trial.number == frame.best else kind))
    return dots


def _dense(frame: Frame, trials: Sequence[Trial]) -> dict[str, float]:
    """The dense model's metrics: the best trial's; where it has none, the median, for each trial times it anew."""
    values: dict[str, list[float]] = {}
    best: dict[str, float] = {}
    for trial in trials:
        if trial.number == frame.best:
            best = trial.baseline
        for metric, value in trial.baseline.items():
            if math.isfinite(value):
                values.setdefault(metric, []).append(value)
    return {metric: best.get(metric, statistics.median(found)) for metric, found in values.items()}


def _bounds(frame: Frame, metric: str, dense: dict[str, float]) -> list[Bound]:
    found = []
    for constraint in frame.constraints:
        if constraint.metric != metric or (constraint.bound not in ("min", "max") and metric not in dense):
            continue
        goal = frame.goal(metric)
        value = limit(constraint, goal, dense.get(metric, 0.0))
        upper = _is_upper(constraint, goal == "minimize", dense.get(metric, 0.0) < 0)
        found.append(Bound(value, upper, sentence(constraint)))
    return found


def _is_upper(constraint: Constraint, minimized: bool, negative: bool) -> bool:
    if constraint.bound.endswith("loss"):
        return minimized
    return constraint.bound == "max" or ((constraint.bound == "max_ratio") != negative and constraint.bound != "min")


def sentence(constraint: Constraint) -> str:
    """A constraint in words: `macs at most 0.5 times the dense model's`."""
    bound = constraint.bound
    value = getattr(constraint, bound)
    said = {
        "max_relative_loss": f"loses at most {100 * value:.4g} %",
        "max_absolute_loss": f"loses at most {value:.6g}",
        "min": f"at least {value:.6g}",
        "max": f"at most {value:.6g}",
        "min_ratio": f"at least {value:.4g} times the dense model's",
        "max_ratio": f"at most {value:.4g} times the dense model's",
    }
    return f"{constraint.metric} {said[bound]}"


def _scale(values: list[float], dense: float | None, bounds: list[Bound], start: float, end: float) -> Scale:
    shown = [*values, *([dense] if dense is not None else [])]
    low, high = min(shown), max(shown)
    room = (high - low) * _FAR
    near = [bound.value for bound in bounds if low - room <= bound.value <= high + room]
    return Scale.over([*shown, *near], start, end)


# Drawing -------------------------------------------------------------------------------------------------------------


def _grid(x: Scale, y: Scale, x_metric: str, y_metric: str) -> list[str]:
    top, bottom = TOP, HEIGHT - BOTTOM
    parts = []
    for tick in x.ticks(7):
        at = f"{x.at(tick):.1f}"
        text = escape(f"{tick:.0f}" if x_metric == TRIAL else formatting.number(x_metric, tick))
        if x_metric != TRIAL or tick.is_integer():
            parts.append(f'<path class="grid" d="M{at} {top}V{bottom}"/>')
            parts.append(f'<text x="{at}" y="{bottom + 18}" text-anchor="middle">{text}</text>')
    for tick in y.ticks(6):
        height = y.at(tick)
        text = escape(formatting.number(y_metric, tick))
        parts.append(f'<path class="grid" d="M{LEFT} {height:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{height + 4:.1f}" text-anchor="end">{text}</text>')
    return parts


def _drawn_bounds(x: Scale, y: Scale, x_bounds: list[Bound], y_bounds: list[Bound]) -> list[str]:
    """The side that misses a bound is shaded."""
    parts = []
    top, bottom, left, right = float(TOP), float(HEIGHT - BOTTOM), float(LEFT), float(WIDTH - RIGHT)
    for bound in x_bounds:
        if not x.holds(bound.value):
            continue
        at = x.at(bound.value)
        low, high = (at, right) if bound.upper else (left, at)
        parts.append(_rect(low, top, high - low, bottom - top))
        parts.append(f'<path class="bound" d="M{at:.1f} {top}V{bottom}"><title>{escape(bound.text)}</title></path>')
        parts.append(f'<text class="bound" x="{at + 4:.1f}" y="{bottom - 6:.0f}">{escape(bound.text)}</text>')
    for bound in y_bounds:
        if not y.holds(bound.value):
            continue
        at = y.at(bound.value)
        low, high = (top, at) if bound.upper else (at, bottom)
        parts.append(_rect(left, low, right - left, high - low))
        parts.append(f'<path class="bound" d="M{left} {at:.1f}H{right}"><title>{escape(bound.text)}</title></path>')
        parts.append(
            f'<text class="bound" x="{right - 4}" y="{at - 5:.1f}" text-anchor="end">{escape(bound.text)}</text>'
        )
    return parts


def _rect(x: float, y: float, width: float, height: float) -> str:
    return f'<rect class="beyond" x="{x:.1f}" y="{y:.1f}" width="{max(0, width):.1f}" height="{max(0, height):.1f}"/>'


def _front(frame: Frame, dots: list[Dot], x: Scale, y: Scale, x_metric: str) -> list[str]:
    """What the front attains, as steps; of one objective, the best so far. Of more than two there is no such line."""
    if x_metric == TRIAL:
        points = _best_so_far(frame, [dot for dot in dots if dot.kind != "missed"])
    elif len(frame.objectives) == 2:
        points = sorted((dot.x, dot.y) for dot in dots if dot.number in frame.front)
    else:
        return []
    if len(points) < 2:
        return []
    first_across = x_metric == TRIAL or frame.goal(x_metric) == "minimize"
    path = f"M{x.at(points[0][0]):.1f} {y.at(points[0][1]):.1f}"
    for at_x, at_y in points[1:]:
        across, along = f"H{x.at(at_x):.1f}", f"V{y.at(at_y):.1f}"
        path += across + along if first_across else along + across
    return [f'<path class="front" d="{path}"/>']


def _best_so_far(frame: Frame, dots: list[Dot]) -> list[tuple[float, float]]:
    maximize = frame.objectives[0][1] == "maximize"
    points: list[tuple[float, float]] = []
    for dot in sorted(dots, key=lambda dot: dot.x):
        if not points or (dot.y > points[-1][1] if maximize else dot.y < points[-1][1]):
            points.append((dot.x, dot.y))
    if points and (last := max(dot.x for dot in dots)) > points[-1][0]:
        points.append((last, points[-1][1]))
    return points


def _mark(dot: Dot, x_scale: Scale, y_scale: Scale) -> str:
    x, y = x_scale.at(dot.x), y_scale.at(dot.y)
    title = f"<title>trial {dot.number}</title>"
    given = f'class="dot {dot.kind}" data-n="{dot.number}"'
    if dot.kind == "best":
        return f'<path {given} d="{_star(x, y)}">{title}</path>'
    radius = 6 if dot.kind == "front" else 4
    return f'<circle {given} cx="{x:.1f}" cy="{y:.1f}" r="{radius}">{title}</circle>'


def _mark_dense(x: float, y: float) -> str:
    return (
        f'<path class="dense" d="M{x:.1f} {y - 7:.1f}l7 7l-7 7l-7 -7z"><title>the dense model</title></path>'
        f'<text x="{x - 10:.1f}" y="{y - 9:.1f}" text-anchor="end">dense</text>'
    )


def _star(x: float, y: float, outer: float = 11.0, inner: float = 4.6) -> str:
    points = []
    for corner in range(10):
        radius, angle = (outer, inner)[corner % 2], math.pi * (corner / 5 - 0.5)
        points.append(f"{x + radius * math.cos(angle):.1f} {y + radius * math.sin(angle):.1f}")
    return f"M{'L'.join(points)}z"
