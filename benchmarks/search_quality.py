"""How well sweeps search, and what early stopping saves: simulated on a table of recipes that was measured once.

The table (results/digits_table.json, by --measure): a digits CNN of width 16, pruned by 2 methods at 7 sparsities and
fine-tuned with 2 learning rates; the accuracy after each of 9 epochs, and the MACs. A recipe is one of these with a
number of epochs: 252.

Search: each algorithm has 40 trials on 20 seeds, one after the other, for accuracy and MACs, with at most 2 % of the
accuracy lost. Reported: the hypervolume of the feasible front (as a share of the table's own), beside bare Optuna's
samplers and chance, with its standard error; the trials that it takes to reach 95 % of what the table holds; the
share of feasible trials. cmaes searches for the fewest MACs alone. What costs little has `--many` seeds: two samplers
that differ by a hundredth look alike on 20. Early stopping: the 28 recipes with 9 epochs in a random order, four at a
time: the share of the epochs that is saved, and how much worse the best is than without; on this table and on another
(results/digits_table_held_out.json), by which rules for several objectives were chosen, and on a third
(results/digits_table_unseen.json), which was measured when all was chosen. Numbers: three ordered parameters without
steps, over the same recipes in proportion between those that were measured. Two rungs: of 20 recipes,
drawn at random, the best 5 after no or one epoch go on for 9; how often the one that is best in the end is among them.

Usage: python benchmarks/search_quality.py [--measure] [--seeds 20] [--many 100] [--few 5] [--trials 40] [--output FILE]
"""

from __future__ import annotations

import argparse
import bisect
import copy
import functools
import itertools
import json
import math
import statistics
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from modelpress.api.v1alpha1 import (
    CompressionJob,
    CompressionJobStatus,
    CompressionSweepSpec,
    EarlyStopping,
    JobMeta,
    MetricsPair,
)
from modelpress.search.hypervolume import hypervolume
from modelpress.search.outcomes import TrialOutcome
from modelpress.search.screening import ordered, spearman
from modelpress.search.stopping import Curve, stopped_early
from modelpress.search.strategy import SearchStrategy
from modelpress.trials import PARAMETERS_ANNOTATION, TRIAL_LABEL, History

HERE = Path(__file__).resolve().parent
TABLE = HERE / "results" / "digits_table.json"
# Recipes of another net, with another method and other learning rates.
HELD_OUT = HERE / "results" / "digits_table_held_out.json"
ALGORITHMS, RATES, EPOCHS = ("l1", "random"), (1e-3, 3e-3), 9
SPARSITIES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
OTHERS: dict[str, Any] = {
    "width": 8,
    "algorithms": ("l2", "fpgm"),
    "rates": (5e-4, 5e-3),
    "sparsities": (0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85),
    "seed": 1,
}
# Seen by nobody who chose anything: measured when all was chosen.
UNSEEN = HERE / "results" / "digits_table_unseen.json"
LATER: dict[str, Any] = {
    "width": 12,
    "algorithms": ("l1", "fpgm"),
    "rates": (7e-4, 2e-3),
    "sparsities": (0.2, 0.35, 0.5, 0.6, 0.7, 0.8, 0.88),
    "seed": 2,
}
LOSS = 0.02
GOALS = ("maximize", "minimize")


# The table ------------------------------------------------------------------------------------------------------------


def measure(
    width: int = 16,
    algorithms: Sequence[str] = ALGORITHMS,
    rates: Sequence[float] = RATES,
    sparsities: Sequence[float] = SPARSITIES,
    seed: int = 0,
) -> dict[str, Any]:
    """Train every recipe once."""
    sys.path.insert(0, str(HERE.parent / "examples" / "digits"))
    import digits
    import torch

    import modelpress as mp

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    subject = digits.create(width=width)
    train_x, train_y, test_x, test_y = digits.load_data()
    rows = []
    baseline: dict[str, float] = {}
    for algorithm, sparsity in itertools.product(algorithms, sparsities):
        entries = [{"op_types": ["Conv2d"], "sparsity": sparsity}, {"op_names": ["fc"], "exclude": True}]
        stage = {"prune": {"algorithm": algorithm, "config_list": entries}}
        fresh = digits.create(width=width, train=False)
        fresh.model.load_state_dict(subject.model.state_dict())
        result = mp.compress(fresh.model, stages=[stage], evaluator=fresh.evaluator, dummy_input=test_x[:1], seed=seed)
        baseline = {name: result.metrics["baseline"][name] for name in ("default", "macs")}
        for rate in rates:
            pruned = copy.deepcopy(result.model)
            optimizer = torch.optim.AdamW(pruned.parameters(), lr=rate)
            generator = torch.Generator().manual_seed(seed)
            curve = [digits.accuracy(pruned, test_x, test_y)]
            for _ in range(EPOCHS):
                pruned.train()
                for index in torch.randperm(len(train_x), generator=generator).split(64):
                    optimizer.zero_grad()
                    torch.nn.functional.cross_entropy(pruned(train_x[index]), train_y[index]).backward()
                    optimizer.step()
                curve.append(digits.accuracy(pruned, test_x, test_y))
            macs = result.metrics["compressed"]["macs"]
            rows.append({"algorithm": algorithm, "sparsity": sparsity, "lr": rate, "macs": macs, "curve": curve})
            print(algorithm, sparsity, rate, macs, [round(value, 3) for value in curve], flush=True)
    return {"baseline": baseline, "rows": rows}


class Table:
    """Looks up what a recipe gives."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.baseline = data["baseline"]
        self.rows = {(row["algorithm"], row["sparsity"], row["lr"]): row for row in data["rows"]}

    def metrics(self, point: dict[str, Any]) -> dict[str, float]:
        """Accuracy and MACs of a recipe."""
        row = self.rows[point["algorithm"], point["sparsity"], point["lr"]]
        return {"default": row["curve"][point["epochs"]], "macs": row["macs"]}

    def feasible(self, metrics: dict[str, float]) -> bool:
        """Whether the accuracy is kept."""
        return metrics["default"] >= (1 - LOSS) * self.baseline["default"]

    def volume(self, found: list[dict[str, float]]) -> float:
        """Of the feasible ones, in shares of the dense model; against the bound and the dense model's MACs."""
        dense = self.baseline
        points = [(m["default"] / dense["default"], m["macs"] / dense["macs"]) for m in found if self.feasible(m)]
        return hypervolume(points, (1 - LOSS - 1e-3, 1.0), GOALS)

    def between(self, sparsity: float, rate: float, epochs: int, algorithm: str = "l1") -> dict[str, float]:
        """Accuracy, MACs and their merit at any sparsity and learning rate, in proportion between the recipes there
        are: a table of numbers, without steps. merit: the accuracy less 0.2 of the share of MACs."""
        sparsities = sorted({key[1] for key in self.rows})
        rates = sorted({key[2] for key in self.rows})
        upper = min(max(bisect.bisect_left(sparsities, sparsity), 1), len(sparsities) - 1)
        low, high = sparsities[upper - 1], sparsities[upper]
        across = (sparsity - low) / (high - low)
        along = math.log(rate / rates[0]) / math.log(rates[1] / rates[0])
        found = {"default": 0.0, "macs": 0.0}
        for s, weight in ((low, 1 - across), (high, across)):
            for r, share in ((rates[0], 1 - along), (rates[1], along)):
                row = self.rows[algorithm, s, r]
                found["default"] += weight * share * row["curve"][epochs]
                found["macs"] += weight * share * row["macs"]
        return {**found, "merit": found["default"] - 0.2 * found["macs"] / self.baseline["macs"]}

    def all(self) -> list[dict[str, Any]]:
        """Every recipe."""
        return [
            {"algorithm": a, "sparsity": s, "lr": r, "epochs": e}
            for (a, s, r), e in itertools.product(self.rows, range(1, EPOCHS + 1))
        ]


# Search ---------------------------------------------------------------------------------------------------------------


def sweep(algorithm: str, seed: int, objectives: tuple[str, ...]) -> CompressionSweepSpec:
    """The search as a sweep."""
    entries = [{"opTypes": ["Conv2d"], "sparsity": 0.5}]
    template = {
        "model": {"entrypoint": "digits:create", "args": {"lr": 0.001}},
        "stages": [{"prune": {"algorithm": "l1", "configList": entries}}, {"finetune": {"epochs": 1}}],
    }
    space = [
        {"name": "algorithm", "paths": ["/stages/0/prune/algorithm"], "categorical": {"values": list(ALGORITHMS)}},
        {
            "name": "sparsity",
            "paths": ["/stages/0/prune/configList/0/sparsity"],
            "float": {"min": SPARSITIES[0], "max": SPARSITIES[-1], "step": 0.1},
        },
        {"name": "lr", "paths": ["/model/args/lr"], "categorical": {"values": list(RATES)}},
        {"name": "epochs", "paths": ["/stages/1/finetune/epochs"], "int": {"min": 1, "max": EPOCHS}},
    ]
    return CompressionSweepSpec.model_validate(
        {
            "template": {"spec": template},
            "searchSpace": space,
            "objectives": [{"metric": metric} for metric in objectives],
            "constraints": [{"metric": "default", "maxRelativeLoss": LOSS}],
            "algorithm": {"name": algorithm, "seed": seed},
            "maxTrials": 1000,
        }
    )


def ours(table: Table, algorithm: str, seed: int, trials: int, objectives: tuple[str, ...]) -> list[dict[str, float]]:
    """What a sweep of ours measures, trial by trial."""
    return searched(table, sweep(algorithm, seed, objectives), trials, table.metrics)


def searched(
    table: Table, spec: CompressionSweepSpec, trials: int, metrics: Callable[[dict[str, Any]], dict[str, float]]
) -> list[dict[str, float]]:
    """What a sweep measures, one trial after the other."""
    strategy, jobs, found = SearchStrategy(spec, torch=True), dict[int, CompressionJob](), []
    for number in range(trials):
        suggestion = strategy.suggest(number, History(tuple(jobs)), jobs)
        if suggestion.spec is None:
            break
        found.append(metrics(dict(suggestion.parameters)))
        meta = {
            "name": f"s-{number:05d}",
            "labels": {TRIAL_LABEL: str(number)},
            "annotations": {PARAMETERS_ANNOTATION: json.dumps(dict(suggestion.parameters))},
        }
        pair = MetricsPair(baseline=table.baseline, compressed=found[-1])
        status = CompressionJobStatus(phase="Succeeded", metrics=pair)
        jobs[number] = CompressionJob(metadata=JobMeta.model_validate(meta), spec=suggestion.spec, status=status)
    return found


def bare(
    table: Table, make: Callable[[int], Any], seed: int, trials: int, objectives: tuple[str, ...]
) -> list[dict[str, float]]:
    """What Optuna measures by itself."""

    def measured(trial: Any) -> dict[str, float]:
        return table.metrics(
            {
                "algorithm": trial.suggest_categorical("algorithm", ALGORITHMS),
                "sparsity": SPARSITIES[trial.suggest_int("sparsity", 0, len(SPARSITIES) - 1)],
                "lr": trial.suggest_categorical("lr", RATES),
                "epochs": trial.suggest_int("epochs", 1, EPOCHS),
            }
        )

    return studied(table, make(seed), trials, objectives, True, measured)


def studied(
    table: Table,
    sampler: Any,
    trials: int,
    objectives: tuple[str, ...],
    constrained: bool,
    measured: Callable[[Any], dict[str, float]],
) -> list[dict[str, float]]:
    """What a study of Optuna's measures with this sampler, by a function that gives the metrics of a trial."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    directions = ["minimize" if metric == "macs" else "maximize" for metric in objectives]
    study = optuna.create_study(directions=directions, sampler=sampler)
    found = []
    for _ in range(trials):
        trial = study.ask()
        metrics = measured(trial)
        if constrained:
            trial.set_constraint("loss", (1 - LOSS) * table.baseline["default"] - metrics["default"])
        study.tell(trial, [metrics[metric] for metric in objectives])
        found.append(metrics)
    return found


def judged(table: Table, runs: list[list[dict[str, float]]], whole: float) -> dict[str, Any]:
    """Figures of an algorithm's runs with two objectives."""
    volumes = [table.volume(found) / whole for found in runs]
    reached = [
        next((n for n in range(1, len(found) + 1) if table.volume(found[:n]) >= 0.95 * whole), None) for found in runs
    ]
    return {
        "hypervolume": round(statistics.mean(volumes), 4),
        "deviation": round(statistics.stdev(volumes), 4) if len(volumes) > 1 else 0.0,
        "error": error(volumes),
        "seeds": len(runs),
        "trials to 95 %": reached,
        "feasible": round(statistics.mean(table.feasible(m) for found in runs for m in found), 3),
    }


def error(values: Sequence[float]) -> float:
    """The standard error of a mean."""
    return round(statistics.stdev(values) / len(values) ** 0.5, 4) if len(values) > 1 else 0.0


def least(table: Table, runs: list[list[dict[str, float]]]) -> dict[str, Any]:
    """Figures of runs for the fewest MACs alone: those of the best feasible recipe, in shares of the dense model."""
    best = [min((m["macs"] for m in found if table.feasible(m)), default=float("inf")) for found in runs]
    shares = [round(value / table.baseline["macs"], 4) for value in best]
    return {
        "best": shares,
        "mean": round(statistics.mean(shares), 4),
        "error": error(shares),
        "seeds": len(runs),
        "feasible": round(statistics.mean(table.feasible(m) for found in runs for m in found), 3),
    }


def searches(table: Table, seeds: int, many: int, trials: int) -> dict[str, Any]:
    """All algorithms, ours and Optuna's."""
    from optuna import samplers

    warnings.simplefilter("ignore")
    two, one = ("default", "macs"), ("macs",)
    whole = table.volume([table.metrics(point) for point in table.all()])
    makers: dict[str, Callable[[int], Any]] = {
        "optuna random": lambda seed: samplers.RandomSampler(seed=seed),
        "optuna qmc": lambda seed: samplers.QMCSampler(seed=seed, warn_independent_sampling=False),
        "optuna tpe": lambda seed: samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True),
        "optuna nsga2": lambda seed: samplers.NSGAIISampler(seed=seed, population_size=16),
    }
    out: dict[str, Any] = {"accuracy and macs": {}, "macs alone": {}}
    for name in ("random", "qmc", "tpe", "nsga2"):
        count = many if name in ("random", "qmc") else seeds
        runs = [ours(table, name, seed, trials, two) for seed in range(count)]
        out["accuracy and macs"][name] = judged(table, runs, whole)
    for name, make in makers.items():
        runs = [bare(table, make, seed, trials, two) for seed in range(seeds)]
        out["accuracy and macs"][name] = judged(table, runs, whole)
    for name in ("random", "tpe", "nsga2", "cmaes"):
        count = many if name in ("random", "cmaes") else seeds
        runs = [ours(table, name, seed, trials, one) for seed in range(count)]
        out["macs alone"][name] = least(table, runs)
    try:
        import cmaes  # noqa: F401

        makers["optuna cmaes"] = lambda seed: samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
    except ImportError:
        print("Optuna's CMA-ES needs the package cmaes; it is left out")
    for name in ("optuna random", "optuna tpe", *(["optuna cmaes"] if "optuna cmaes" in makers else [])):
        runs = [bare(table, makers[name], seed, trials, one) for seed in range(seeds)]
        out["macs alone"][name] = least(table, runs)
    feasible = [m["macs"] for point in table.all() if table.feasible(m := table.metrics(point))]
    out["macs alone"]["the table's best"] = round(min(feasible) / table.baseline["macs"], 4)
    return out


# Numbers alone ----------------------------------------------------------------------------------------------------


NUMBERS: list[dict[str, Any]] = [
    {
        "name": "sparsity",
        "paths": ["/stages/0/prune/configList/0/sparsity"],
        "float": {"min": SPARSITIES[0], "max": SPARSITIES[-1]},
    },
    {"name": "lr", "paths": ["/model/args/lr"], "float": {"min": RATES[0], "max": RATES[1], "log": True}},
    {"name": "epochs", "paths": ["/stages/1/finetune/epochs"], "int": {"min": 1, "max": EPOCHS}},
]


def among_numbers(
    table: Table, algorithm: str, seed: int, trials: int, objectives: tuple[str, ...], constrained: bool
) -> list[dict[str, float]]:
    """What a sweep of ours over three ordered parameters measures."""
    document = sweep("random", seed, objectives).to_dict()
    document |= {"searchSpace": NUMBERS, "algorithm": {"name": algorithm, "seed": seed}, "constraints": None}
    document["objectives"] = [
        {"metric": metric, "goal": "minimize" if metric == "macs" else "maximize"} for metric in objectives
    ]
    if constrained:
        document["constraints"] = [{"metric": "default", "maxRelativeLoss": LOSS}]
    if algorithm == "gp":
        document["maxTrials"] = 500
    spec = CompressionSweepSpec.model_validate(document)
    return searched(table, spec, trials, lambda p: table.between(p["sparsity"], p["lr"], p["epochs"]))


def bare_numbers(
    table: Table, make: Callable[[int], Any], seed: int, trials: int, objectives: tuple[str, ...], constrained: bool
) -> list[dict[str, float]]:
    """What Optuna measures by itself."""

    def measured(trial: Any) -> dict[str, float]:
        return table.between(
            trial.suggest_float("sparsity", SPARSITIES[0], SPARSITIES[-1]),
            trial.suggest_float("lr", RATES[0], RATES[1], log=True),
            trial.suggest_int("epochs", 1, EPOCHS),
        )

    return studied(table, make(seed), trials, objectives, constrained, measured)


def numbers(table: Table, seeds: int, few: int, trials: int) -> dict[str, Any]:
    """All samplers on ordered parameters: hypervolume of accuracy and MACs, and the best merit, with standard errors.

    The whole is what a fine grid holds. gp has `few` seeds, for each of its trials is a fit.
    """
    from optuna import samplers

    warnings.simplefilter("ignore")
    fine = [
        table.between(SPARSITIES[0] + (SPARSITIES[-1] - SPARSITIES[0]) * a / 60, RATES[0] * 3 ** (b / 8), epochs)
        for a, b, epochs in itertools.product(range(61), range(9), range(1, EPOCHS + 1))
    ]
    whole, best, least_ = table.volume(fine), max(m["merit"] for m in fine), min(m["merit"] for m in fine)
    makers: dict[str, Callable[[int], Any]] = {
        "random": lambda seed: samplers.RandomSampler(seed=seed),
        "qmc": lambda seed: samplers.QMCSampler(seed=seed, scramble=True, warn_independent_sampling=False),
        "tpe": lambda seed: samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True),
        "nsga2": lambda seed: samplers.NSGAIISampler(seed=seed, population_size=16),
        "gp": lambda seed: samplers.GPSampler(seed=seed, warn_independent_sampling=False),
        "cmaes": lambda seed: samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False),
    }
    out: dict[str, Any] = {"accuracy and macs": {}, "merit": {}}
    for name, make in makers.items():
        count = few if name == "gp" else seeds
        if count < 2:
            continue
        for whose, run in (("", among_numbers), ("optuna ", bare_numbers)):
            given: Any = make if whose else name
            try:
                if name != "cmaes":
                    runs = [run(table, given, seed, trials, ("default", "macs"), True) for seed in range(count)]
                    out["accuracy and macs"][whose + name] = judged(table, runs, whole)
                runs = [run(table, given, seed, trials, ("merit",), False) for seed in range(count)]
            except ImportError as error:
                print(f"{whose}{name} is left out: {error}")
                continue
            out["merit"][whose + name] = merits(runs, least_, best)
            print(whose + name, {key: value.get(whose + name) for key, value in out.items()}, flush=True)
    return out


def merits(runs: list[list[dict[str, float]]], least_: float, best: float) -> dict[str, Any]:
    """The best merit of each run, from the worst that there is (0) to the best (1)."""
    curves = [list(itertools.accumulate((m["merit"] for m in found), max)) for found in runs]
    shares = [[(value - least_) / (best - least_) for value in curve] for curve in curves]
    reached = [next((n for n, share in enumerate(curve, 1) if share >= 0.99), None) for curve in shares]
    return {
        "best": round(statistics.mean(curve[-1] for curve in shares), 4),
        "error": error([curve[-1] for curve in shares]),
        "seeds": len(runs),
        "reached 99 %": sum(n is not None for n in reached),
        "trials to 99 %, median": statistics.median(n if n is not None else len(curves[0]) + 1 for n in reached),
    }


# Early stopping -------------------------------------------------------------------------------------------------------


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
    import random

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


# Two rungs ------------------------------------------------------------------------------------------------------------

RECIPES, TOP = 20, 5


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
        "hypervolume kept": table.volume(kept) / table.volume(whole),
        "correlation": spearman(before, after),
    }


def main() -> None:
    """Measures, or simulates and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--many", type=int, default=100)
    parser.add_argument("--few", type=int, default=5)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "search_quality.json")
    options = parser.parse_args()
    if options.measure:
        TABLE.write_text(json.dumps(measure(), indent=1) + "\n")
        HELD_OUT.write_text(json.dumps(measure(**OTHERS), indent=1) + "\n")
        UNSEEN.write_text(json.dumps(measure(**LATER), indent=1) + "\n")
        return
    table = Table(json.loads(TABLE.read_text()))
    found = {
        "search": searches(table, options.seeds, options.many, options.trials),
        "numbers": numbers(table, options.many, options.few, options.trials),
        "early stopping": stops(table, options.seeds),
        "early stopping, held out": stops(Table(json.loads(HELD_OUT.read_text())), options.seeds),
        "early stopping, unseen": stops(Table(json.loads(UNSEEN.read_text())), options.seeds),
        "two rungs": rungs(table, options.seeds),
        "two rungs, held out": rungs(Table(json.loads(HELD_OUT.read_text())), options.seeds),
    }
    options.output.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
