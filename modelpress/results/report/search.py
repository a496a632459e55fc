"""How the search went: which parameters mattered, and how far it had come after each trial."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from modelpress.search.attainment import Attainment
from modelpress.search.importance import FEWEST

from .findings import Findings

WIDTH, HEIGHT = 860, 120
LEFT, RIGHT, TOP, BOTTOM = 74, 18, 8, 30
MOST = 20  # parameters that are listed


def search_section(found: Findings) -> str:
    """Both as HTML; "" while nothing can be said."""
    if len(found.ranked) < 2:
        return ""
    return _curve(found.attained, max(found.ranked), len(found.frame.objectives)) + _listed(found.importances)


def sureness(found: Findings) -> str:
    """How sure the best score is, and which trials it may as well have been, as HTML."""
    if (said := found.sureness()) is None:
        return ""
    text, peers, rest = said
    listed = ", ".join(f'<a href="#t{number}">{number}</a>' for number in peers)
    return f"<p>{escape(text)}{listed}{escape(rest)}</p>"


def sentences(found: Findings) -> list[str]:
    """The same and what does not compare, for a terminal."""
    out = list[str]()
    if len(found.ranked) >= FEWEST:  # of fewer it says nothing
        if found.attained.numbers:
            last = found.attained.numbers[-1]
            out.append(f"The search gained last with trial {last}, of {max(found.ranked) + 1}.")
        if found.importances:
            listed = ", ".join(f"{name} {100 * share:.0f} %" for name, share in list(found.importances.items())[:5])
            out.append(f"What sets the best tenth apart: {listed}.")
    if (said := found.sureness()) is not None:
        text, peers, rest = said
        out.append(f"{text}{', '.join(map(str, peers))}{rest}")
    for number, why in list(found.apart.items())[:5]:
        out.append(f"Trial {number} is not comparable with the best: {why}.")
    if len(found.apart) > 5:
        out.append(f"Nor are {len(found.apart) - 5} others; trials.csv says why.")
    return out


def _curve(attained: Attainment, last: int, objectives: int) -> str:
    steps = attained.thinned()
    if len(steps.numbers) < 2 or last < 1:
        return ""
    across = (WIDTH - LEFT - RIGHT) / last
    up = HEIGHT - TOP - BOTTOM
    points, before = [], 0.0
    for number, share in zip(steps.numbers, steps.shares, strict=True):
        x = LEFT + number * across
        points += [(x, HEIGHT - BOTTOM - up * before), (x, HEIGHT - BOTTOM - up * share)]
        before = share
    points.append((LEFT + last * across, HEIGHT - BOTTOM - up * before))
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    what = "hypervolume of the front" if objectives > 1 else "the best value"
    text = (
        f"How far the search was after each trial: {what}, from the worst values that trials have (0) to the best (1). "
        f"It ended at {before:.3f}, and gained last with trial {attained.numbers[-1]}."
    )
    return (
        f"<h2>Search</h2><p>{escape(text)}</p>"
        f'<svg id="attained" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(what)} by trial">'
        f'<path class="front" d="M{line}"/>'
        f'<text class="axis" x="{LEFT - 6}" y="{TOP + 8}" text-anchor="end">1</text>'
        f'<text class="axis" x="{LEFT - 6}" y="{HEIGHT - BOTTOM}" text-anchor="end">0</text>'
        f'<text class="axis" x="{WIDTH - RIGHT}" y="{HEIGHT - 10}" text-anchor="end">trial {last}</text></svg>'
    )


def _listed(found: Mapping[str, float]) -> str:
    if not found:
        return ""
    rows = "".join(
        f"<li><code>{escape(name)}</code> {100 * share:.0f} %</li>" for name, share in list(found.items())[:MOST]
    )
    more = f" The {len(found) - MOST} least are left out." if len(found) > MOST else ""
    return (
        "<h2>Parameters</h2><p>What sets the best tenth of the trials apart (PED-ANOVA): a parameter with a great "
        f"share was worth searching; it does not say which value is good.{more}</p>"
        f'<ol id="importances">{rows}</ol>'
    )
