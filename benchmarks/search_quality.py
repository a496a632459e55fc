"""How well sweeps search, and what early stopping saves: simulated on recipes that were measured once.

Search: each algorithm has 40 trials on many seeds, one after the other, for accuracy and MACs, with at most 2 % of the
accuracy lost. Reported: the hypervolume of the feasible front (as a share of the table's own), beside bare Optuna's
samplers and chance, with its standard error; the trials that it takes to reach 95 % of what the table holds; the
share of feasible trials. cmaes searches for the fewest MACs alone. Numbers: three ordered parameters without steps,
over the same recipes in proportion between those that were measured. Where a study found nothing feasible the dense
model counts. The recipes: search_tables.py. Early stopping and two rungs: search_stopping.py, on every table.

Usage: python benchmarks/search_quality.py [--seeds 100] [--many 400] [--few 5] [--trials 40] [--output FILE] [PART...]
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import math
import statistics
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from search_stopping import rungs, stops
from search_tables import ALGORITHMS, EPOCHS, HERE, LOSS, RATES, RECORDED, SPARSITIES, Table, recorded

from modelpress.api.v1alpha1 import (
    CompressionJob,
    CompressionJobStatus,
    CompressionSweepSpec,
    JobMeta,
    MetricsPair,
)
from modelpress.search.strategy import SearchStrategy
from modelpress.trials import PARAMETERS_ANNOTATION, TRIAL_LABEL, History, Suggestion

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
        jobs[number] = finished(table, number, suggestion, found[-1])
    return found


def finished(table: Table, number: int, suggestion: Suggestion, metrics: dict[str, float]) -> CompressionJob:
    """The trial of a suggestion, once it is over."""
    assert suggestion.spec is not None
    meta = {
        "name": f"s-{number:05d}",
        "labels": {TRIAL_LABEL: str(number)},
        "annotations": {PARAMETERS_ANNOTATION: json.dumps(dict(suggestion.parameters))},
    }
    status = CompressionJobStatus(phase="Succeeded", metrics=MetricsPair(baseline=table.baseline, compressed=metrics))
    return CompressionJob(metadata=JobMeta.model_validate(meta), spec=suggestion.spec, status=status)


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
    volumes, trials = [table.volume(found) / whole for found in runs], max(map(len, runs))
    reached = [
        next((n for n in range(1, len(found) + 1) if table.volume(found[:n]) >= 0.95 * whole), None) for found in runs
    ]
    return {
        "hypervolume": round(statistics.mean(volumes), 4),
        "deviation": round(statistics.stdev(volumes), 4) if len(volumes) > 1 else 0.0,
        "error": error(volumes),
        "seeds": len(runs),
        "reached 95 %": sum(n is not None for n in reached),
        "trials to 95 %, median": statistics.median(n if n is not None else trials + 1 for n in reached),
        "feasible": round(statistics.mean(table.feasible(m) for found in runs for m in found), 3),
    }


def error(values: Sequence[float]) -> float:
    """The standard error of a mean."""
    return round(statistics.stdev(values) / len(values) ** 0.5, 4) if len(values) > 1 else 0.0


def least(table: Table, runs: list[list[dict[str, float]]]) -> dict[str, Any]:
    """Figures of runs for the fewest MACs alone: those of the best feasible recipe, in shares of the dense model."""
    best = [min((m["macs"] for m in found if table.feasible(m)), default=table.baseline["macs"]) for found in runs]
    shares = [value / table.baseline["macs"] for value in best]
    return {
        "mean": round(statistics.mean(shares), 4),
        "error": error(shares),
        "seeds": len(runs),
        "feasible": round(statistics.mean(table.feasible(m) for found in runs for m in found), 3),
    }


def searches(table: Table, seeds: int, many: int, trials: int, names: Sequence[str]) -> dict[str, Any]:
    """All algorithms, ours and Optuna's."""
    whole = table.volume([table.metrics(point) for point in table.all()])
    out: dict[str, Any] = {"accuracy and macs": {}, "macs alone": {}}
    for name, make in makers(names).items():
        if name == "gp":
            continue
        count = seeds if name == "tpe" else many
        for whose, run in (("", ours), ("optuna ", bare)):
            given: Any = make if whose else name
            if name != "cmaes":
                runs = [run(table, given, seed, trials, ("default", "macs")) for seed in range(count)]
                out["accuracy and macs"][whose + name] = judged(table, runs, whole)
            runs = [run(table, given, seed, trials, ("macs",)) for seed in range(count)]
            out["macs alone"][whose + name] = least(table, runs)
            print(whose + name, {key: value.get(whose + name) for key, value in out.items()}, flush=True)
    compare(out["accuracy and macs"], "hypervolume")
    compare(out["macs alone"], "mean", sign=-1.0)
    feasible = [m["macs"] for point in table.all() if table.feasible(m := table.metrics(point))]
    out["macs alone"]["the table's best"] = round(min(feasible) / table.baseline["macs"], 4)
    return out


def makers(names: Sequence[str]) -> dict[str, Callable[[int], Any]]:
    """Optuna's samplers of these names, each by a seed."""
    from optuna import samplers

    warnings.simplefilter("ignore")
    found: dict[str, Callable[[int], Any]] = {
        "random": lambda seed: samplers.RandomSampler(seed=seed),
        "qmc": lambda seed: samplers.QMCSampler(seed=seed, scramble=True, warn_independent_sampling=False),
        "tpe": lambda seed: samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True),
        "nsga2": lambda seed: samplers.NSGAIISampler(seed=seed, population_size=16),
        "gp": lambda seed: samplers.GPSampler(seed=seed, warn_independent_sampling=False),
    }
    found["cmaes"] = lambda seed: samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
    if "cmaes" in names and importlib.util.find_spec("cmaes") is None:
        sys.exit("Optuna's CMA-ES needs the package cmaes")
    return {name: make for name, make in found.items() if name in names}


def compare(found: dict[str, Any], figure: str, sign: float = 1.0) -> None:
    """Add to each algorithm of ours by how many standard errors it is better than chance, and than Optuna's."""
    for name, item in found.items():
        for other in ("random", f"optuna {name}"):
            if name != other and not name.startswith("optuna") and other in found:
                width = math.hypot(item["error"], found[other]["error"])
                better = sign * (item[figure] - found[other][figure]) / width
                item[f"better than {other}, in standard errors"] = round(better, 1)


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


def numbers(table: Table, seeds: int, many: int, few: int, trials: int, names: Sequence[str]) -> dict[str, Any]:
    """All samplers on ordered parameters: hypervolume of accuracy and MACs, and the best merit, with standard errors.

    The whole is what a fine grid holds. gp has `few` seeds, for each of its trials is a fit.
    """
    fine = [
        table.between(SPARSITIES[0] + (SPARSITIES[-1] - SPARSITIES[0]) * a / 60, RATES[0] * 3 ** (b / 8), epochs)
        for a, b, epochs in itertools.product(range(61), range(9), range(1, EPOCHS + 1))
    ]
    whole, best, least_ = table.volume(fine), max(m["merit"] for m in fine), min(m["merit"] for m in fine)
    out: dict[str, Any] = {"accuracy and macs": {}, "merit": {}}
    for name, make in makers(names).items():
        count = {"gp": few, "tpe": seeds}.get(name, many)
        if count < 2:
            continue
        for whose, run in (("", among_numbers), ("optuna ", bare_numbers)):
            given: Any = make if whose else name
            if name != "cmaes":
                runs = [run(table, given, seed, trials, ("default", "macs"), True) for seed in range(count)]
                out["accuracy and macs"][whose + name] = judged(table, runs, whole)
            runs = [run(table, given, seed, trials, ("merit",), False) for seed in range(count)]
            out["merit"][whose + name] = merits(runs, least_, best)
            print(whose + name, {key: value.get(whose + name) for key, value in out.items()}, flush=True)
    compare(out["accuracy and macs"], "hypervolume")
    compare(out["merit"], "best")
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


SAMPLERS = ("random", "qmc", "tpe", "nsga2", "gp", "cmaes")
PARTS = ("search", "numbers", "early stopping", "two rungs")


def main() -> None:
    """Simulates, prints and keeps the parts that are not asked for as they are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=100, help="of tpe")
    parser.add_argument("--many", type=int, default=400, help="of what costs less")
    parser.add_argument("--few", type=int, default=5, help="of gp, each of whose trials is a fit")
    parser.add_argument("--orders", type=int, default=100)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--samplers", nargs="+", default=SAMPLERS, help="the part has these, and no others any more")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "search_quality.json")
    parser.add_argument("parts", nargs="*", default=PARTS, help=", ".join(PARTS))
    options = parser.parse_args()
    table = recorded("digits_table")
    found: dict[str, Any] = json.loads(options.output.read_text()) if options.output.exists() else {}
    for part in options.parts:
        if part == "search":
            found[part] = searches(table, options.seeds, options.many, options.trials, options.samplers)
        elif part == "numbers":
            found[part] = numbers(table, options.seeds, options.many, options.few, options.trials, options.samplers)
        elif part == "early stopping":
            found[part] = {name: stops(recorded(name), options.orders) for name in RECORDED}
        elif part == "two rungs":
            found[part] = {name: rungs(recorded(name), options.orders) for name in RECORDED}
        else:
            parser.error(f"{part} is none of {', '.join(PARTS)}")
        options.output.write_text(json.dumps(found, indent=1) + "\n")
        print(part, json.dumps(found[part], indent=1), flush=True)


if __name__ == "__main__":
    main()
