"""What early stopping and two rungs save and lose, simulated on recorded curves.

Early stopping: the 28 recipes of a table with 9 epochs in a random order, four at a time: the share of the epochs that
is saved, and how much worse the best is than without. Two rungs: of 20 recipes, drawn at random, the best 5 after no or
one epoch go on for 9; how often the one that is best in the end is among them.
"""

from __future__ import annotations

import functools
import random
import statistics
from collections.abc import Sequence
from typing import Any

from search_tables import EPOCHS, Table

from modelpress.api.v1alpha1 import EarlyStopping
from modelpress.search.outcomes import TrialOutcome
from modelpress.search.screening import ordered, spearman
from modelpress.search.stopping import Curve, stopped_early

RECIPES, TOP = 20, 5


def stopping(table: Table, rule: dict[str, Any], objectives: tuple[str, ...], seed: int) -> dict[str, Any]:
    """All recipes with 9 epochs in a random order, four at a time, an epoch a tick."""
    trials = len(table.rows)
    goals = tuple("maximize" if metric == "default" else "minimize" for metric in objectives)
    drawn = _points(table, seed)
    rows = [table.rows[point["algorithm"], point["sparsity"], point["lr"]] for point in drawn]

    def value(number: int, epoch: int) -> tuple[float, ...]:
        return tuple(rows[number]["curve"][epoch] if m == "default" else rows[number]["macs"] for m in objectives)

    reached, running, waiting = dict.fromkeys(range(trials), 0), [], list(range(trials))
    ended: set[int] = set()
    while waiting or running:
        while waiting and len(running) < 4:
            running.append(waiting.pop(0))
        for number in running:
            reached[number] += 1
        running = [number for number in running if reached[number] < EPOCHS]
        curves = [
            Curve(n, tuple((e, value(n, e)) for e in range(1, reached[n] + 1)), running=n in running)
            for n in reached
            if reached[n] > 0
        ]
        stops = stopped_early(EarlyStopping.model_validate(rule), goals, curves)
        ended |= set(stops)
        running = [number for number in running if number not in stops]
    whole = [{"default": row["curve"][EPOCHS], "macs": row["macs"]} for row in rows]
    kept = [metrics for number, metrics in enumerate(whole) if number not in ended]
    best = max(range(trials), key=lambda number: (whole[number]["default"], -number))
    return {
        "saved": 1 - sum(reached.values()) / (trials * EPOCHS),
        "points lost": 100 * (whole[best]["default"] - max(metrics["default"] for metrics in kept)),
        "hypervolume kept": table.volume(kept) / table.volume(whole),
    }


def _points(table: Table, seed: int) -> list[dict[str, Any]]:
    points = [point for point in table.all() if point["epochs"] == EPOCHS]
    random.Random(seed).shuffle(points)
    return points


def stops(table: Table, seeds: int) -> dict[str, Any]:
    """All rules, for one and for two objectives."""
    rules = {
        "median": {"name": "median"},
        "asha": {"name": "asha"},
        "hyperband": {"name": "hyperband"},
    }
    out: dict[str, Any] = {}
    for objectives in (("default",), ("default", "macs")):
        for name, rule in rules.items():
            run = functools.partial(stopping, table, rule, objectives)
            runs = [run(seed=seed) for seed in range(seeds)]
            out[f"{name}, {' and '.join(objectives)}"] = {
                "saved": round(statistics.mean(item["saved"] for item in runs), 3),
                "points lost at most": round(max(item["points lost"] for item in runs), 3),
                "best lost": sum(item["points lost"] > 0 for item in runs),
                "hypervolume kept": round(statistics.mean(item["hypervolume kept"] for item in runs), 4),
            }
    return out


def rungs(table: Table, seeds: int) -> dict[str, Any]:
    """How often the best of the second rung is among those that go on, by what the first one runs."""
    out: dict[str, Any] = {}
    for objectives in (("default",), ("default", "macs")):
        goals = tuple("maximize" if metric == "default" else "minimize" for metric in objectives)
        for first in (0, 1):
            found = [rung(table, first, objectives, goals, seed) for seed in range(seeds)]
            correlations = [item["correlation"] for item in found]
            out[f"{' and '.join(objectives)}, after {first} epochs"] = {
                "best goes on": sum(item["best goes on"] for item in found),
                "seeds": seeds,
                "points lost": round(statistics.mean(item["points lost"] for item in found), 3),
                "hypervolume kept": round(statistics.mean(item["hypervolume kept"] for item in found), 4),
                "rank correlation": round(statistics.mean(correlations), 3),
                "epochs saved": round(1 - (RECIPES * first + TOP * (EPOCHS - first)) / (RECIPES * EPOCHS), 3),
            }
    return out


def rung(table: Table, first: int, objectives: Sequence[str], goals: Sequence[Any], seed: int) -> dict[str, Any]:
    """One sweep of RECIPES trials."""
    drawn = _points(table, seed)[:RECIPES]
    rows = [table.rows[point["algorithm"], point["sparsity"], point["lr"]] for point in drawn]

    def outcomes(epoch: int) -> list[TrialOutcome]:
        metrics = [{"default": row["curve"][epoch], "macs": row["macs"]} for row in rows]
        return [
            TrialOutcome(number, str(number), {}, given, tuple(given[name] for name in objectives), ())
            for number, given in enumerate(metrics)
        ]

    before, after = ordered(outcomes(first), goals), ordered(outcomes(EPOCHS), goals)
    whole = [item.metrics for item in outcomes(EPOCHS)]
    best = max(range(RECIPES), key=lambda number: (whole[number]["default"], -number))
    kept = [whole[number] for number in before[:TOP]]
    return {
        # Where several are best, one of them is enough.
        "best goes on": max(metrics["default"] for metrics in kept) == whole[best]["default"],
        "points lost": 100 * (whole[best]["default"] - max(metrics["default"] for metrics in kept)),
        # Nothing can be lost of a draw in which no recipe keeps the accuracy.
        "hypervolume kept": table.volume(kept) / all_ if (all_ := table.volume(whole)) > 0 else 1.0,
        "correlation": spearman(before, after),
    }
