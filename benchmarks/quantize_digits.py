"""A digits CNN with few bits: eight bits behind a training, and four bits behind and along one, over several seeds.

The net is examples/digits, trained as the example trains it. Each way starts from the same weights; ranges come from
256 training images without labels; what trains does so for the same number of epochs, at a rate that falls along a
cosine, as the dense one was trained. Scores are those of 540 digits
that nobody trained on; reported are mean and standard error, also of the differences in pairs, and bytes of the
weights' file.

Usage: python benchmarks/quantize_digits.py [--seeds 3] [--epochs 8]
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


def scores(seed: int, epochs: int) -> dict[str, dict[str, float]]:
    """Score and bytes of each way."""
    import digits
    import torch

    import modelpress as mp

    torch.manual_seed(seed)
    subject = digits.create()
    images = digits.load_data()[0][:256].split(64)
    found: dict[str, dict[str, float]] = {}
    for name, block in ways(epochs).items():
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


def main() -> int:
    """Runs all seeds and writes the table; 1 if int8 loses more than .5 points, or qat does not beat static at four."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    options = parser.parse_args()
    runs: list[dict[str, dict[str, float]]] = []
    for seed in range(options.seeds):
        runs.append(scores(seed, options.epochs))
        print(
            f"seed {seed}: " + ", ".join(f"{name} {each['default']:.4f}" for name, each in runs[-1].items()), flush=True
        )
    rows = {name: mean_and_error([run[name]["default"] for run in runs]) for name in runs[0]}
    sizes = {name: runs[0][name]["sizeBytes"] for name in runs[0]}
    for name, (mean, error) in rows.items():
        print(f"{name:14} {mean:.4f} +- {error:.4f}  {sizes[name]:9,.0f} bytes")
    lost = mean_and_error([run["float"]["default"] - run["int8 static"]["default"] for run in runs])
    gained = mean_and_error([run["int4 qat"]["default"] - run["int4 static"]["default"] for run in runs])
    print(f"lost by int8 {lost[0]:.4f} +- {lost[1]:.4f}; gained by qat at four bits {gained[0]:.4f} +- {gained[1]:.4f}")
    report = {
        "benchmark": "quantize_digits",
        "machine": {"python": platform.python_version(), "cpu": platform.machine()},
        "seeds": options.seeds,
        "epochs": options.epochs,
        "scores": {name: [run[name]["default"] for run in runs] for name in rows},
        "meanAndStandardError": rows,
        "sizeBytes": sizes,
        "lostByInt8": lost,
        "gainedByQat": gained,
    }
    (HERE / "results" / "quantize_digits.json").write_text(json.dumps(report, indent=2) + "\n")
    return 0 if lost[0] <= 0.005 and gained[0] > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
