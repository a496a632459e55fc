"""The same prune-and-finetune work as a bare torch-pruning script and through mp.compress, paired in one run.

Both sides of a pair start from the same dense digits CNN (another one for each pair), remove half of the channels of
every convolution by L1 norm, train the same number of epochs and score after each. Pairs alternate their order, each
side in a fresh process. Reported: the ratio of wall times (median of the pairs, with the extremes), the seconds that
mp.compress takes beyond the script (planning in a child process, the proof, before-and-after metrics: a fixed cost),
and accuracy with its standard error, MACs and parameters side by side. The criteria are each side's own l1: the
paper's filter norm here, torch-pruning's mean over everything a channel touches there.

Usage: python benchmarks/prune_finetune.py [--pairs 7] [--epochs 50]
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


def prepare(path: Path, seed: int) -> None:
    """Trains a dense model and writes its weights."""
    import digits
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    save_file(digits.create().model.state_dict(), path)


def bare(dense: Path, epochs: int, seed: int) -> dict[str, float]:
    """What a user would write by hand with torch-pruning."""
    import digits
    import torch
    import torch.nn.functional as F
    import torch_pruning as tp
    from safetensors.torch import load_file

    train_x, train_y, test_x, test_y = digits.load_data()
    model = digits.create(train=False).model  # as on the other side; torch's first optimizer imports for seconds
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
    import modelpress_runner.in_process.compress  # noqa: F401  both sides have their imports behind them when the clock starts

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
        report=lambda *_, **__: None,  # asks for a score after every epoch, as the bare script has it
    )
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "accuracy": digits.accuracy(result.model, test_x, test_y),
        **_counts(result.model, test_x),
    }


def _counts(model: object, images: object) -> dict[str, float]:
    from modelpress_runner.measure.static import static_metrics

    metrics = static_metrics(model, images[:1])
    return {"macs": metrics["macs"], "parameters": metrics["parameters"]}


SIDES = {"bare": bare, "modelpress": through_modelpress}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--epochs", type=int, default=50)
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
        pairs = []
        for seed in range(options.pairs):
            prepare(dense, seed)
            order = list(SIDES) if seed % 2 == 0 else list(SIDES)[::-1]
            runs = {side: _run(side, dense, options.epochs, seed) for side in order}
            pairs.append(runs)
            print(
                f"pair {seed + 1}/{options.pairs}: " + "; ".join(_line(side, runs[side]) for side in SIDES), flush=True
            )
    extra = [pair["modelpress"]["seconds"] - pair["bare"]["seconds"] for pair in pairs]
    lost = [pair["bare"]["accuracy"] - pair["modelpress"]["accuracy"] for pair in pairs]
    ratios = [pair["modelpress"]["seconds"] / pair["bare"]["seconds"] for pair in pairs]
    report = {
        "benchmark": "prune_finetune",
        "epochs": options.epochs,
        "machine": {"python": platform.python_version(), "cpu": platform.machine(), "threads": 1},
        "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        "extraSeconds": {"median": statistics.median(extra), "min": min(extra), "max": max(extra)},
        "accuracyLost": {"mean": statistics.mean(lost), "standardError": _standard_error(lost)},
        "pairs": pairs,
    }
    target = HERE / "results" / "prune_finetune.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(report, indent=2) + "\n")
    print(f"\nwall time, modelpress / bare script: {report['ratio']['median']:.3f}", end=" ")
    print(f"(pairs from {min(ratios):.3f} to {max(ratios):.3f})")
    print(f"beyond the script: {statistics.median(extra):.2f} s")
    print(f"accuracy, bare - modelpress: {statistics.mean(lost):.4f} +- {_standard_error(lost):.4f} (standard error)")
    for name in ("accuracy", "macs", "parameters"):
        sides = (f"{side} {statistics.mean(pair[side][name] for pair in pairs):.6g}" for side in SIDES)
        print(f"{name}, mean: " + ", ".join(sides))
    print(f"written to {target.relative_to(HERE.parent)}")


def _standard_error(values: list[float]) -> float:
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


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
