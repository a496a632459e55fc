"""The same prune-and-finetune work as a bare torch-pruning script and through mp.compress, paired in one run.

Both sides start from the same dense digits CNN, remove half of the channels of every convolution by L1 norm, train the
same number of epochs and score after each. Pairs alternate their order, each side in a fresh process. Reported: ratio
of wall times (median of the pairs' ratios, with the extremes), and accuracy, MACs and parameters side by side.

Usage: python benchmarks/prune_finetune.py [--pairs 5] [--epochs 15]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
DIGITS = HERE.parent / "examples" / "digits"
SPARSITY = 0.5


def prepare(path: Path) -> None:
    """Trains the dense model once and writes its weights."""
    import digits
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file(digits.create().model.state_dict(), path)


def bare(dense: Path, epochs: int, seed: int) -> dict[str, float]:
    """What a user would write by hand with torch-pruning."""
    import digits
    import torch
    import torch.nn.functional as F
    import torch_pruning as tp
    from safetensors.torch import load_file

    train_x, train_y, test_x, test_y = digits.load_data()
    model = digits.DigitsNet()
    model.load_state_dict(load_file(dense))
    torch.manual_seed(seed)

    start = time.perf_counter()
    pruner = tp.pruner.BasePruner(
        model,
        test_x[:1],
        importance=tp.importance.GroupMagnitudeImportance(p=1),
        pruning_ratio=SPARSITY,
        ignored_layers=[model.fc],
    )
    pruner.step()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(epochs):
        model.train()
        order = torch.randperm(len(train_x))
        for begin in range(0, len(order), digits.BATCH):
            index = order[begin : begin + digits.BATCH]
            optimizer.zero_grad()
            F.cross_entropy(model(train_x[index]), train_y[index]).backward()
            optimizer.step()
        score = digits.accuracy(model, test_x, test_y)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "accuracy": score, **_counts(model, test_x)}


def through_modelpress(dense: Path, epochs: int, seed: int) -> dict[str, float]:
    """The same through mp.compress: with its proof, its checkpoints in memory and its masks."""
    import digits
    import torch_pruning  # noqa: F401
    from safetensors.torch import load_file

    import modelpress as mp
    import modelpress_runner.compress  # noqa: F401  both sides have their imports behind them when the clock starts

    _, _, test_x, test_y = digits.load_data()
    subject = digits.create(train=False)
    subject.model.load_state_dict(load_file(dense))

    start = time.perf_counter()
    result = mp.compress(
        subject.model,
        stages=[
            {"prune": {"algorithm": "l1", "config_list": [{"op_types": ["Conv2d"], "sparsity": SPARSITY}]}},
            {"finetune": {"epochs": epochs}},
        ],
        evaluator=subject.evaluator,
        dummy_input=test_x[:1],
        seed=seed,
    )
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "accuracy": digits.accuracy(result.model, test_x, test_y),
        **_counts(result.model, test_x),
    }


def _counts(model: object, images: object) -> dict[str, float]:
    from modelpress.api.v1alpha1 import Target
    from modelpress_runner.measure import static_metrics

    metrics = static_metrics(model, images[:1], Target())
    return {"macs": metrics["macs"], "parameters": metrics["parameters"]}


SIDES = {"bare": bare, "modelpress": through_modelpress}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--dense", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sys.path.insert(0, str(DIGITS))
    if options.side:
        import torch

        torch.set_num_threads(1)
        print(json.dumps(SIDES[options.side](options.dense, options.epochs, options.seed)))
        return

    with tempfile.TemporaryDirectory() as folder:
        dense = Path(folder) / "dense.safetensors"
        prepare(dense)
        pairs = []
        for seed in range(options.pairs):
            order = list(SIDES) if seed % 2 == 0 else list(SIDES)[::-1]
            runs = {side: _run(side, dense, options.epochs, seed) for side in order}
            pairs.append(runs)
            print(
                f"pair {seed + 1}/{options.pairs}: " + "; ".join(_line(side, runs[side]) for side in SIDES), flush=True
            )
    ratios = [pair["modelpress"]["seconds"] / pair["bare"]["seconds"] for pair in pairs]
    report = {
        "benchmark": "prune_finetune",
        "epochs": options.epochs,
        "machine": {"python": platform.python_version(), "cpu": platform.machine(), "threads": 1},
        "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        "pairs": pairs,
    }
    target = HERE / "results" / "prune_finetune.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(report, indent=2) + "\n")
    print(f"\nwall time, modelpress / bare script: {report['ratio']['median']:.3f}", end=" ")
    print(f"(pairs from {min(ratios):.3f} to {max(ratios):.3f})")
    for name in ("accuracy", "macs", "parameters"):
        sides = (f"{side} {statistics.mean(pair[side][name] for pair in pairs):.6g}" for side in SIDES)
        print(f"{name}, mean: " + ", ".join(sides))
    print(f"written to {target.relative_to(HERE.parent)}")


def _run(side: str, dense: Path, epochs: int, seed: int) -> dict[str, float]:
    command = [
        sys.executable,
        __file__,
        "--side",
        side,
        "--dense",
        str(dense),
        "--epochs",
        str(epochs),
        "--seed",
        str(seed),
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _line(side: str, run: dict[str, float]) -> str:
    return f"{side} {run['seconds']:.2f} s, {run['accuracy']:.4f}, {run['macs']:.0f} MACs"


if __name__ == "__main__":
    main()
