"""What is left of a digits CNN's accuracy behind pruning: each method, paired with a bare torch-pruning script.

For each seed a dense network is trained, cut down by each method to the same share of every convolution's channels, and
trained for three epochs; all in the same process, with the same batches in the same order. Shares .3125, .5 and .75
take whole channels of every width, so that all round alike, and are -52 %, -74 % and -93 % of MACs. Beside them:
`reconstruct: leastSquares` in front of the three epochs, over the training images without labels; widths that a budget
of the same MACs solves, channels drawn at random, the pruned network from scratch, and the three epochs with the dense
network as the teacher (`distill`): the same batches in the same order at the same rate. At -93 % further a whole
recipe: gradual pruning with training between rounds, then fine-tuning, 40 epochs in all.

Reported for each: accuracy (mean and standard error over the seeds), MACs, and the mean difference to the best of
torch-pruning's with its standard error. That best is chosen by the same accuracies and so looks better than it is.
"paired" therefore has each side's best as somebody would choose it: for each seed the method of the highest mean over
the other seeds, counted on this one; and the difference of both sides.

Usage: python benchmarks/prune_digits.py [--seeds 0 1 2] [--shares .3125 .5 .75] [--names l1 ...] [--output FILE]
       python benchmarks/prune_digits.py --teachings --seeds 20 21 22 23 24
It goes on from the rows that are in the file already. The second form scores how the teacher may teach, on seeds that
no row has; TAUGHT is the one of the highest mean over seeds and shares.
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
TEACHINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "temperature 4": {"temperature": 4.0},
    "temperature 4, weights .3 and .7": {"temperature": 4.0, "loss_weights": [0.3, 0.7]},
}
TAUGHT = "defaults"


def nothing(*_: Any, **__: Any) -> None:
    """Nobody reads the progress."""


def fresh(state: dict[str, torch.Tensor]) -> mp.Subject:
    """The dense network and how it trains."""
    subject = digits.create(train=False)
    subject.model.load_state_dict(state)
    return subject


def ours(state: dict[str, torch.Tensor], seed: int, stages: list[dict[str, Any]], as_behind: bool = False) -> Any:
    """What mp.compress makes of it; `as_behind`: its stages train as `train` does, batch for batch."""
    subject = fresh(state)
    return mp.compress(
        subject.model,
        stages=stages,
        evaluator=evaluator_of(subject.model, seed) if as_behind else subject.evaluator,
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
    loop(model, optimizer, labelled, epochs, seed, schedule)
    return digits.accuracy(model, DATA[2], DATA[3])


def labelled(batch: tuple[torch.Tensor, torch.Tensor], model: Any) -> torch.Tensor:
    """The loss of the labels."""
    return F.cross_entropy(model(batch[0]), batch[1])


def loop(model: Any, optimizer: Any, loss: Callable[..., torch.Tensor], epochs: int, seed: int, schedule: Any) -> None:
    """Passes over the training images in the order that the seed gives."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        model.train()
        for index in torch.randperm(len(DATA[0]), generator=generator).split(digits.BATCH):
            optimizer.zero_grad()
            loss((DATA[0][index], DATA[1][index]), model).backward()
            optimizer.step()
            if schedule is not None:
                schedule.step()


def evaluator_of(model: Any, seed: int) -> mp.TorchEvaluator:
    """The training of `train` for stages."""

    def training_func(
        model: Any, optimizer: Any, training_step: Any, lr_scheduler: Any, max_steps: Any, max_epochs: Any
    ) -> None:
        loop(model, optimizer, training_step, max_epochs, seed, lr_scheduler)

    return mp.TorchEvaluator(
        training_func,
        mp.trace(torch.optim.AdamW)(model.parameters(), lr=1e-3),
        labelled,
        dummy_input=DATA[2][:1],
        evaluating_func=lambda model: digits.accuracy(model, DATA[2], DATA[3]),
    )


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


def taught(share: float, teaching: str) -> list[dict[str, Any]]:
    """Pruning, then EPOCHS with the dense network as the teacher."""
    return [prune("group_norm", share), {"distill": {"epochs": EPOCHS, **TEACHINGS[teaching]}}]


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
    out["modelpress group_norm, distilled"] = lambda: (ours(state, seed, taught(share, TAUGHT), as_behind=True), 0)
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


def teachings(seeds: list[int], shares: list[float]) -> dict[str, Any]:
    """The mean accuracy of each of TEACHINGS over the seeds, by target."""
    found: dict[str, dict[str, list[float]]] = {name: {SHARES[share]: [] for share in shares} for name in TEACHINGS}
    for seed in seeds:
        torch.manual_seed(seed)
        state = digits.create().model.state_dict()
        for name, by_target in found.items():
            for share in shares:
                model = ours(state, seed, taught(share, name), as_behind=True)
                by_target[SHARES[share]].append(digits.accuracy(model, DATA[2], DATA[3]))
            print(seed, name, {target: round(values[-1], 4) for target, values in by_target.items()}, flush=True)
    means = {name: {target: statistics.mean(v) for target, v in by.items()} for name, by in found.items()}
    return {
        "seeds": seeds,
        "accuracy": means,
        "mean": {name: statistics.mean(by.values()) for name, by in means.items()},
    }


def error(values: list[float]) -> float:
    """Of the mean."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def main() -> None:
    """Runs everything and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--shares", type=float, nargs="+", choices=list(SHARES), default=list(SHARES))
    parser.add_argument("--names", nargs="+", help="only cases in whose names one of these stands")
    parser.add_argument("--teachings", action="store_true", help="score how the teacher may teach, and no case")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "prune_digits.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    known = json.loads(options.output.read_text()) if options.output.exists() else {"rows": [], "dense": {}}
    rows: list[dict[str, Any]] = known["rows"]
    dense: dict[str, float] = known["dense"]
    if options.teachings:
        if taken := {row["seed"] for row in rows} & set(options.seeds):
            parser.error(f"--teachings needs seeds that no row has; {sorted(taken)} have some")
        known["teachings"] = teachings(options.seeds, options.shares)
        print(json.dumps(known["teachings"], indent=2))
        options.output.write_text(json.dumps(known, indent=2) + "\n")
        return
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
                    "taught": {"as": TAUGHT, **TEACHINGS[TAUGHT]},
                    "teachings": known.get("teachings"),
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
