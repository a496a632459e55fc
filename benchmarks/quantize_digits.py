"""A digits CNN with few bits: eight bits behind a training, and four bits behind and along one, over several seeds.

The net is examples/digits, trained as the example trains it. Each way starts from the same weights; ranges come from
256 training images without labels; what trains does so for the same number of epochs, at a rate that falls along a
cosine, as the dense one was trained. Scores are those of 540 digits
that nobody trained on; reported are mean and standard error, also of the differences in pairs, and bytes of the
weights' file.

Usage: python benchmarks/quantize_digits.py [--seeds 3] [--epochs 8] [--only "int4 static; int4 qat"]
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "examples" / "digits"))
ALL = [{"opTypes": ["default"]}]


def ways(epochs: int) -> dict[str, dict[str, Any]]:
    """The blocks that are compared, by name."""
    four = {"configList": ALL, "quantBits": 4}
    return {
        "int8 static": {"algorithm": "ptq_static", "configList": ALL},
        "int8 dynamic": {"algorithm": "ptq_dynamic", "configList": ALL},
        "int8 weights": {"algorithm": "weight_only", "configList": ALL},
        "int4 weights": {"algorithm": "weight_only", **four},
        "int4 static": {"algorithm": "ptq_static", **four},
        "int4 qat": {"algorithm": "qat", "epochs": epochs, **four},
        "int4 lsq": {"algorithm": "lsq", "epochs": epochs, **four},
        "int4 static, by tensor": {"algorithm": "ptq_static", "granularity": "tensor", **four},
        "int4 qat, by tensor": {"algorithm": "qat", "granularity": "tensor", "epochs": epochs, **four},
    }


def evaluator_for(model: Any, epochs: int) -> Any:
    """The example's training, by the step along a cosine."""
    import digits
    import torch
    import torch.nn.functional as F

    import modelpress as mp

    train_x, train_y, test_x, test_y = digits.load_data()
    steps = epochs * -(-len(train_x) // digits.BATCH)

    def train(model: Any, optimizer: Any, step: Any, scheduler: Any, max_steps: Any, max_epochs: Any) -> None:
        for _ in range(max_epochs):
            for index in torch.randperm(len(train_x)).split(digits.BATCH):
                optimizer.zero_grad()
                step((train_x[index], train_y[index]), model).backward()
                optimizer.step()
                scheduler.step()

    optimizer = mp.trace(torch.optim.AdamW)(model.parameters(), lr=1e-3)
    return mp.TorchEvaluator(
        train,
        optimizer,
        lambda batch, model: F.cross_entropy(model(batch[0]), batch[1]),
        mp.trace(torch.optim.lr_scheduler.CosineAnnealingLR)(optimizer, steps),
        dummy_input=test_x[:1],
        evaluating_func=lambda model: digits.accuracy(model, test_x, test_y),
    )


def scores(seed: int, epochs: int, names: list[str]) -> dict[str, dict[str, float]]:
    """Score and bytes of the ways called `names`."""
    import digits
    import torch

    import modelpress as mp

    torch.manual_seed(seed)
    subject = digits.create()
    images = digits.load_data()[0][:256].split(64)
    found: dict[str, dict[str, float]] = {}
    for name in names:
        block = ways(epochs)[name]
        result = mp.compress(
            subject.model,
            [{"quantize": block}],
            evaluator_for(subject.model, epochs),
            calibration_data=list(images),
            seed=seed,
            target={"format": "eager"},
        )
        for key, metrics in (("float", result.metrics["baseline"]), (name, result.metrics["compressed"])):
            found[key] = {metric: metrics[metric] for metric in ("default", "sizeBytes")}
    return found


def mean_and_error(values: list[float]) -> list[float]:
    """Mean and standard error."""
    return [statistics.mean(values), statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0]


def less(one: list[float], other: list[float]) -> list[float]:
    """Mean and standard error of the differences in pairs."""
    return mean_and_error([a - b for a, b in zip(one, other, strict=True)])


def main() -> int:
    """Runs all seeds and writes the table; 1 if int8 loses more than .5 points, or qat does not beat static at four."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--only", help="ways with '; ' between them; figures of others stay, if seeds are the same")
    options = parser.parse_args()
    target = HERE / "results" / "quantize_digits.json"
    names = options.only.split("; ") if options.only else list(ways(options.epochs))
    if unknown := [name for name in names if name not in ways(options.epochs)]:
        parser.error(f"no way {unknown[0]}; there are {'; '.join(ways(options.epochs))}")
    found: dict[str, list[float]] = {}
    sizes: dict[str, float] = {}
    if options.only:
        known = json.loads(target.read_text())
        if (known["seeds"], known["epochs"]) != (options.seeds, options.epochs):
            parser.error(f"{target.name} is of {known['seeds']} seeds and {known['epochs']} epochs; ask for as many")
        found, sizes = known["scores"], known["sizeBytes"]
    runs: list[dict[str, dict[str, float]]] = []
    for seed in range(options.seeds):
        runs.append(scores(seed, options.epochs, names))
        print(
            f"seed {seed}: " + ", ".join(f"{name} {each['default']:.4f}" for name, each in runs[-1].items()), flush=True
        )
    found |= {name: [run[name]["default"] for run in runs] for name in runs[0]}
    sizes |= {name: runs[0][name]["sizeBytes"] for name in runs[0]}
    rows = {name: mean_and_error(values) for name, values in found.items()}
    for name, (mean, error) in rows.items():
        print(f"{name:14} {mean:.4f} +- {error:.4f}  {sizes[name]:9,.0f} bytes")
    lost = less(found["float"], found["int8 static"])
    gained = {
        suffix or "by channel": less(found[f"int4 qat{suffix}"], found[f"int4 static{suffix}"])
        for suffix in ("", ", by tensor")
    }
    print(f"lost by int8 {lost[0]:.4f} +- {lost[1]:.4f}")
    for scales, (mean, error) in gained.items():
        print(f"gained by qat at four bits, {scales.removeprefix(', ')}: {mean:.4f} +- {error:.4f}")
    report = {
        "benchmark": "quantize_digits",
        "machine": {"python": platform.python_version(), "cpu": platform.machine()},
        "seeds": options.seeds,
        "epochs": options.epochs,
        "scores": found,
        "meanAndStandardError": rows,
        "sizeBytes": sizes,
        "lostByInt8": lost,
        "gainedByQat": {scales.removeprefix(", "): pair for scales, pair in gained.items()},
    }
    target.write_text(json.dumps(report, indent=2) + "\n")
    return 0 if lost[0] <= 0.005 and all(mean > 0 for mean, _ in gained.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
