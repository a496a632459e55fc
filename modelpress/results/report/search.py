"""How the search went: which parameters mattered, and how far it had come after each trial."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from modelpress.results.comparable import alike, differences, standard_error
from modelpress.results.trials import Trial
from modelpress.search.attainment import Attainment, attainment
from modelpress.search.importance import FEWEST, importances

from .frame import Frame, candidates

WIDTH, HEIGHT = 860, 120
LEFT, RIGHT, TOP, BOTTOM = 74, 18, 8, 30
MOST = 20  # parameters that are listed


def search_section(frame: Frame, trials: Sequence[Trial]) -> str:
    """Both as HTML; "" while nothing can be said."""
    goals = [goal for _, goal in frame.objectives]
    found = candidates(frame, trials)
    if not goals or len(found) < 2:
        return ""
    parameters = {trial.number: trial.parameters for trial in trials}
    attained = attainment(found, goals)
    last = max(item.number for item in found)
    return _curve(attained, last, len(goals)) + _listed(importances(found, parameters, goals))


def sentences(frame: Frame, trials: Sequence[Trial]) -> list[str]:
    """The same and what does not compare, for a terminal."""
    goals, found, out = [goal for _, goal in frame.objectives], candidates(frame, trials), list[str]()
    if goals and len(found) >= FEWEST:  # of fewer it says nothing
        attained = attainment(found, goals)
        if attained.numbers:
            out.append(
                f"The search gained last with trial {attained.numbers[-1]}, of {max(i.number for i in found) + 1}."
            )
        shares = importances(found, {trial.number: trial.parameters for trial in trials}, goals)
        if shares:
            listed = ", ".join(f"{name} {100 * share:.0f} %" for name, share in list(shares.items())[:5])
            out.append(f"What sets the best tenth apart: {listed}.")
    best = next((trial for trial in trials if trial.number == frame.best), None)
    error = standard_error(best.compressed) if best is not None else None
    if best is not None and error is not None:
        others = alike(trials, best.number)
        also = f"; chance alone may set it apart from trials {', '.join(map(str, others[:20]))}" if others else ""
        out.append(f"The standard error of the best score is {error:.2g}{also}.")
    apart = differences(trials, frame.best)
    for number, why in list(apart.items())[:5]:
        out.append(f"Trial {number} is not comparable with the best: {why}.")
    if len(apart) > 5:
        out.append(f"Nor are {len(apart) - 5} others; trials.csv says why.")
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


def _listed(found: dict[str, float]) -> str:
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
