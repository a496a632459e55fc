"""What is left of a digits CNN's accuracy behind pruning: each method, paired with a bare torch-pruning script.

For each seed a dense network is trained, cut down by each method to the same share of every convolution's channels, and
trained for three epochs; all in the same process, with the same batches in the same order. Shares .3125, .5 and .75
take whole channels of every width, so that all round alike, and are -52 %, -74 % and -93 % of MACs. Beside them:
`reconstruct: leastSquares` in front of the three epochs, over the training images without labels; widths that a budget
of the same MACs solves, channels drawn at random, and the pruned network from scratch. At -93 % further a whole recipe:
gradual pruning with training between rounds, then fine-tuning, 40 epochs in all.

Reported for each: accuracy (mean and standard error over the seeds), MACs, and the mean difference to the best of
torch-pruning's with its standard error. That best is chosen by the same accuracies and so looks better than it is.
"paired" therefore has each side's best as somebody would choose it: for each seed the method of the highest mean over
the other seeds, counted on this one; and the difference of both sides.

Usage: python benchmarks/prune_digits.py [--seeds 0 1 2] [--shares .3125 .5 .75] [--names l1 ...] [--output FILE]
It goes on from the rows that are in the file already.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

import modelpress as mp
from modelpress_runner.measure.static import static_metrics

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "examples" / "digits"))
import digits  # noqa: E402

SHARES = {0.3125: "-52 %", 0.5: "-74 %", 0.75: "-93 %"}
OURS = ("l1", "l2", "group_norm", "fpgm", "taylor", "random")
RECOVERED = ("group_norm", "l1")
BUDGETED = ("group_norm", "taylor")
THEIRS = ("l1", "l2", "taylor", "random")
EPOCHS, SCORED = 3, 10
RECIPE = {"rounds": 10, "finetune": 30}


def nothing(*_: Any, **__: Any) -> None:
    """Nobody reads the progress."""


def fresh(state: dict[str, torch.Tensor]) -> mp.Subject:
    """The dense network and how it trains."""
    subject = digits.create(train=False)
    subject.model.load_state_dict(state)
    return subject


def ours(state: dict[str, torch.Tensor], seed: int, stages: list[dict[str, Any]]) -> Any:
    """What mp.compress makes of it."""
    subject = fresh(state)
    return mp.compress(
        subject.model,
        stages=stages,
        evaluator=subject.evaluator,
        dummy_input=DATA[2][:1],
        calibration_data=list(DATA[0].split(digits.BATCH)),
        seed=seed,
        report=nothing,
    ).model


def theirs(state: dict[str, torch.Tensor], seed: int, share: float, by: str) -> Any:
    """What a script with torch-pruning makes of it."""
    import torch_pruning as tp

    torch.manual_seed(seed)
    model: Any = fresh(state).model
    importance: Any = {
        "l1": lambda: tp.importance.GroupMagnitudeImportance(p=1),
        "l2": lambda: tp.importance.GroupMagnitudeImportance(p=2),
        "taylor": lambda: tp.importance.GroupTaylorImportance(),
        "random": lambda: tp.importance.RandomImportance(),
    }[by]()
    pruner = tp.pruner.BasePruner(
        model, DATA[2][:1], importance=importance, pruning_ratio=share, ignored_layers=[model.fc]
    )
    if by == "taylor":
        model.train()
        for index in torch.randperm(len(DATA[0])).split(digits.BATCH)[:SCORED]:
            F.cross_entropy(model(DATA[0][index]), DATA[1][index]).backward()
    pruner.step()
    model.zero_grad()
    return model


def train(model: Any, epochs: int, seed: int, falling: bool = False) -> float:
    """The same training for everything, at a constant rate or one that falls to zero; the accuracy behind it."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    steps = max(1, epochs * math.ceil(len(DATA[0]) / digits.BATCH))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps) if falling else None
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        model.train()
        for index in torch.randperm(len(DATA[0]), generator=generator).split(digits.BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(DATA[0][index]), DATA[1][index]).backward()
            optimizer.step()
            if schedule is not None:
                schedule.step()
    return digits.accuracy(model, DATA[2], DATA[3])


def from_scratch(model: Any, seed: int) -> Any:
    """The same shape with weights that nobody trained."""
    torch.manual_seed(seed)
    model = copy.deepcopy(model)
    for part in model.modules():
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    return model


def macs(model: Any) -> int:
    """Of one image."""
    return int(static_metrics(model, DATA[2][:1])["macs"])


def prune(algorithm: str, share: float, **more: Any) -> dict[str, Any]:
    """A stage."""
    entries = [{"op_types": ["Conv2d"], "sparsity": share}]
    return {"prune": {"algorithm": algorithm, "config_list": entries, **more}}


def budgeted(algorithm: str, ratio: float) -> dict[str, Any]:
    """A stage that solves widths for so many of the MACs."""
    block = {"algorithm": algorithm, "config_list": [{"op_types": ["Conv2d"]}]}
    return {"prune": {**block, "budget": {"metric": "macs", "max_ratio": ratio}}}


def recipe(share: float) -> list[dict[str, Any]]:
    """Gradual pruning and fine-tuning."""
    schedule = {"type": "agp", "rounds": RECIPE["rounds"], "train": {"epochs": 1}}
    return [prune("taylor", share, schedule=schedule), {"finetune": {"epochs": RECIPE["finetune"]}}]


def cases(state: dict[str, torch.Tensor], seed: int, share: float) -> dict[str, Callable[[], tuple[Any, int]]]:
    """By name what makes a pruned network, and how many epochs it trains afterwards."""
    whole = macs(fresh(state).model)
    same = macs(theirs(state, seed, share, "l1"))
    out: dict[str, Callable[[], tuple[Any, int]]] = {}
    for by in THEIRS:
        out[f"torch-pruning {by}"] = lambda by=by: (theirs(state, seed, share, by), EPOCHS)
    for algorithm in OURS:
        out[f"modelpress {algorithm}"] = lambda a=algorithm: (ours(state, seed, [prune(a, share)]), EPOCHS)
    for algorithm in RECOVERED:
        out[f"modelpress {algorithm}, leastSquares"] = lambda a=algorithm: (
            ours(state, seed, [prune(a, share, reconstruct="leastSquares")]),
            EPOCHS,
        )
    for algorithm in BUDGETED:
        out[f"modelpress {algorithm}, budget"] = lambda a=algorithm: (
            ours(state, seed, [budgeted(a, same / whole)]),
            EPOCHS,
        )
    out["from scratch"] = lambda: (from_scratch(theirs(state, seed, share, "l1"), seed), EPOCHS)
    if share == max(SHARES):
        out["modelpress recipe of 40 epochs"] = lambda: (ours(state, seed, recipe(share)), 0)
        out["torch-pruning l1, 40 epochs"] = lambda: (theirs(state, seed, share, "l1"), 40)
        out["from scratch, 40 epochs"] = lambda: (from_scratch(theirs(state, seed, share, "l1"), seed), 40)
    return out


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each target and name: means over the seeds, and the difference to torch-pruning's best on average."""
    out = []
    for share, target in SHARES.items():
        by_name: dict[str, dict[int, float]] = {}
        for row in rows:
            if row["share"] == share:
                by_name.setdefault(row["name"], {})[row["seed"]] = row["accuracy"]
        rivals = [name for name in by_name if name.startswith("torch-pruning") and "epochs" not in name]
        if not rivals:
            continue
        best = max(rivals, key=lambda name: statistics.mean(by_name[name].values()))
        for name, found in by_name.items():
            against = [found[seed] - by_name[best][seed] for seed in found if seed in by_name[best]]
            out.append(
                {
                    "target": target,
                    "name": name,
                    "accuracy": statistics.mean(found.values()),
                    "standardError": error(list(found.values())),
                    "macs": statistics.mean(r["macs"] for r in rows if (r["share"], r["name"]) == (share, name)),
                    "against": best,
                    "difference": statistics.mean(against),
                    "differenceError": error(against),
                }
            )
    return out


def paired(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each target: what both sides' best score behind EPOCHS, each chosen on the seeds that are not counted."""
    out = []
    for share, target in SHARES.items():
        sides = []
        for side in ("modelpress", "torch-pruning"):
            by_name: dict[str, dict[int, float]] = {}
            for row in rows:
                if row["share"] == share and row["name"].startswith(side) and "epochs" not in row["name"]:
                    by_name.setdefault(row["name"], {})[row["seed"]] = row["accuracy"]
            seeds = sorted(set.intersection(*map(set, by_name.values()))) if by_name else []
            if len(seeds) < 2:
                break
            chosen = {
                seed: max(by_name, key=lambda name: sum(by_name[name][other] for other in seeds if other != seed))
                for seed in seeds
            }
            sides.append({seed: (by_name[name][seed], name) for seed, name in chosen.items()})
        if len(sides) < 2:
            continue
        both = [(sides[0][seed], sides[1][seed]) for seed in sides[0] if seed in sides[1]]
        differences = [mine[0] - other[0] for mine, other in both]
        out.append(
            {
                "target": target,
                "seeds": len(both),
                "modelpress": statistics.mean(mine[0] for mine, _ in both),
                "torchPruning": statistics.mean(other[0] for _, other in both),
                "difference": statistics.mean(differences),
                "differenceError": error(differences),
                "chosen": sorted({mine[1] for mine, _ in both} | {other[1] for _, other in both}),
            }
        )
    return out


def error(values: list[float]) -> float:
    """Of the mean."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def main() -> None:
    """Runs everything and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--shares", type=float, nargs="+", choices=list(SHARES), default=list(SHARES))
    parser.add_argument("--names", nargs="+", help="only cases in whose names one of these stands")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "prune_digits.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    known = json.loads(options.output.read_text()) if options.output.exists() else {"rows": [], "dense": {}}
    rows: list[dict[str, Any]] = known["rows"]
    dense: dict[str, float] = known["dense"]
    for seed in options.seeds:
        torch.manual_seed(seed)
        model = digits.create().model
        state, dense[str(seed)] = model.state_dict(), digits.accuracy(model, DATA[2], DATA[3])
        print(f"seed {seed}: dense {dense[str(seed)]:.4f}, {macs(model)} MACs", flush=True)
        for share in options.shares:
            for name, make in cases(state, seed, share).items():
                done = any((row["seed"], row["share"], row["name"]) == (seed, share, name) for row in rows)
                if done or not (options.names is None or any(part in name for part in options.names)):
                    continue
                start = time.perf_counter()
                found, epochs = make()
                accuracy = train(found, epochs, seed)
                row = {"seed": seed, "share": share, "name": name, "accuracy": accuracy, "macs": macs(found)}
                rows.append(row)
                seconds = time.perf_counter() - start
                print(f"{SHARES[share]} {name}: {accuracy:.4f}, {row['macs']}, {seconds:.1f} s", flush=True)
                report = {
                    "dense": dense,
                    "epochs": EPOCHS,
                    "recipe": RECIPE,
                    "paired": paired(rows),
                    "summary": summary(rows),
                    "rows": rows,
                    "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "threads": 1},
                }
                options.output.write_text(json.dumps(report, indent=2) + "\n")
    report = {"paired": paired(rows), "summary": summary(rows)}
    for line in report["paired"]:
        print(json.dumps(line))
    for line in report["summary"]:
        print(
            f"{line['target']} {line['name']}: {line['accuracy']:.4f} +- {line['standardError']:.4f}, "
            f"{line['macs']:.0f} MACs, {line['difference']:+.4f} +- {line['differenceError']:.4f} to {line['against']}"
        )


DATA = digits.load_data()

if __name__ == "__main__":
    main()
