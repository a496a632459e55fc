"""Sensitivity as curves: an SVG that any browser shows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from modelpress.results.report.scale import Scale

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 900, 70, 330, 24, 46
HEIGHT, LINE = 460, 16  # of a legend of few layers; of one of its lines
# Okabe and Ito's colours, told apart by most eyes; then again, dashed otherwise.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("", "6 3", "2 3", "8 3 2 3")
_LONGEST = 44  # of a legend's text


def curves(rows: Sequence[Mapping[str, Any]]) -> str:
    """The score by sparsity, a line for each layer (or layers that lose channels together), the dense score across.

    Args:
        rows: as `modelpress analyze sensitivity` has them: layers, sparsity, score; the dense model has no layers.
    """
    dense = next((float(row["score"]) for row in rows if not row["layers"]), math.nan)
    lines: dict[tuple[str, ...], list[tuple[float, float]]] = {}
    for row in rows:
        if row["layers"] and math.isfinite(row["score"]):
            lines.setdefault(tuple(row["layers"]), []).append((float(row["sparsity"]), float(row["score"])))
    scores = [score for points in lines.values() for _, score in points]
    scores += [dense] if math.isfinite(dense) else []
    height = max(HEIGHT, TOP + BOTTOM + LINE * len(lines))
    bottom, right = height - BOTTOM, WIDTH - RIGHT
    x = Scale.over([0.0, *(share for points in lines.values() for share, _ in points)], LEFT, right)
    y = Scale.over(scores or [0.0], bottom, TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'font-family="sans-serif" font-size="12" role="img" aria-label="score by sparsity of each layer alone">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
    ]
    for tick in x.ticks(7):
        parts.append(f'<path d="M{x.at(tick):.1f} {TOP}V{bottom}" stroke="#ddd"/>')
        parts.append(f'<text x="{x.at(tick):.1f}" y="{bottom + 18}" text-anchor="middle">{tick:g}</text>')
    for tick in y.ticks(6):
        parts.append(f'<path d="M{LEFT} {y.at(tick):.1f}H{right}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y.at(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    if math.isfinite(dense):
        parts.append(f'<path d="M{LEFT} {y.at(dense):.1f}H{right}" stroke="#555" stroke-dasharray="3 3"/>')
        parts.append(f'<text x="{right - 4}" y="{y.at(dense) - 5:.1f}" text-anchor="end" fill="#555">dense</text>')
    for number, (names, points) in enumerate(lines.items()):
        dash = DASHES[number // len(COLOURS) % len(DASHES)]
        stroke = f'fill="none" stroke="{COLOURS[number % len(COLOURS)]}" stroke-width="2" stroke-dasharray="{dash}"'
        known = [(0.0, dense), *sorted(points)] if math.isfinite(dense) else sorted(points)
        path = "L".join(f"{x.at(share):.1f} {y.at(score):.1f}" for share, score in known)
        text, at = ", ".join(names), TOP + LINE * number + 10
        shown = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
        parts.append(f'<path d="M{path}" {stroke}><title>{escape(text)}</title></path>')
        parts.append(f'<path d="M{right + 16} {at - 4}h24" {stroke}/>')
        parts.append(f'<text x="{right + 46}" y="{at}">{escape(shown)}<title>{escape(text)}</title></text>')
    parts.append(f'<text x="{(LEFT + right) / 2:.0f}" y="{height - 8}" text-anchor="middle">sparsity</text>')
    parts.append(
        f'<text transform="translate(16 {(TOP + bottom) / 2:.0f}) rotate(-90)" text-anchor="middle">score</text></svg>'
    )
    return "\n".join(parts) + "\n"
