"""What mp.compress costs beside the work itself, by phase, on a convolutional net of about 100,000 parameters.

Both sides start with torch imported, remove half of the channels of every convolution by L1 norm and train the same
number of steps: one as a bare torch-pruning script, the other through mp.compress with its defaults. Each run is a
fresh process, so imports count; sides alternate. Of all runs of a side the fastest counts, in seconds of the clock and
in seconds of the processor: a busy machine only adds. The work itself is what the bare script takes.

Usage: python benchmarks/compress_overhead.py [--runs 5] [--steps 20]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
LIMIT = 0.5  # seconds


def net() -> Any:
    """94,730 parameters."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1, stride=2), nn.BatchNorm2d(64), nn.ReLU(),
        nn.Conv2d(64, 128, 3, padding=1, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip


def batch() -> tuple[Any, Any]:
    """The one batch that both train on."""
    import torch

    return torch.randn(64, 3, 16, 16), torch.randint(0, 10, (64,))


def prepared() -> None:
    """Both sides have behind them what torch's first optimizer imports, and a collection of the garbage that is left.

    One more takes a quarter of a second, as large is the heap that torch brings, and either side may be the one whose
    next object sets it off.
    """
    import gc

    import torch

    parameter = torch.nn.Parameter(torch.zeros(1))
    torch.optim.SGD([parameter], lr=0.1).step()
    gc.collect()


def bare(steps: int) -> dict[str, list[float]]:
    """What a user would write by hand."""
    import torch
    from torch import nn

    prepared()
    laps = Laps()
    model, (inputs, labels) = net(), batch()
    laps.lap("rest")
    import torch_pruning

    laps.lap("imports")
    torch_pruning.pruner.BasePruner(
        model,
        inputs[:1],
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=1),
        pruning_ratio=0.5,
        ignored_layers=[model[-1]],
    ).step()
    laps.lap("prune")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    laps.lap("finetune")
    return laps.seconds


def through_modelpress(steps: int) -> dict[str, list[float]]:
    """The same through mp.compress."""
    import torch
    from torch import nn

    prepared()
    laps = Laps()
    model, (inputs, labels) = net(), batch()
    laps.lap("rest")
    import modelpress as mp

    def train(model: Any, optimizer: Any, training_step: Any, scheduler: Any, max_steps: Any, max_epochs: Any) -> None:
        for _ in range(max_steps):
            optimizer.zero_grad()
            training_step((inputs, labels), model).backward()
            optimizer.step()

    evaluator = mp.TorchEvaluator(
        training_func=train,
        optimizers=lambda parameters: torch.optim.SGD(parameters, lr=0.01),
        training_step=lambda batch, model: nn.functional.cross_entropy(model(batch[0]), batch[1]),
        dummy_input=inputs[:1],
    )
    compress = mp.compress
    laps.lap("imports")
    from gpu_check.decoder import PHASES
    from gpu_check.memory import watching

    with watching(PHASES, laps.phase):
        laps.lap("rest")
        compress(
            model,
            [
                {"prune": {"algorithm": "l1", "config_list": [{"op_types": ["Conv2d"], "sparsity": 0.5}]}},
                {"finetune": {"max_steps": steps}},
            ],
            evaluator,
        )
        laps.lap("rest")
    return laps.seconds


class Laps:
    """Seconds by name: of the clock, and of the processor, children included."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self._open: list[str] = []
        self._last = _now()

    def lap(self, name: str) -> None:
        """What has passed since the last lap belongs to `name`."""
        now = _now()
        known = self.seconds.setdefault(name, [0.0, 0.0])
        for number in range(2):
            known[number] += now[number] - self._last[number]
        self._last = now

    class _Phase:
        def __init__(self, laps: Laps, name: str) -> None:
            self.laps, self.name = laps, name

        def __enter__(self) -> None:
            self.laps.lap(self.laps._open[-1] if self.laps._open else "rest")
            self.laps._open.append(self.name)

        def __exit__(self, *error: object) -> None:
            self.laps.lap(self.laps._open.pop())

    def phase(self, name: str) -> Laps._Phase:
        """A block that belongs to `name`, but for the phases within it."""
        return Laps._Phase(self, name)


def _now() -> tuple[float, float]:
    times = os.times()
    return time.perf_counter(), sum(times[:4])


SIDES = {"bare": bare, "modelpress": through_modelpress}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sys.path.insert(0, str(HERE.parent / "tools"))
    if options.side:
        import torch

        torch.set_num_threads(1)
        print(json.dumps(SIDES[options.side](options.steps)))
        return 0
    found: dict[str, list[dict[str, list[float]]]] = {side: [] for side in SIDES}
    for number in range(options.runs):
        for side in list(SIDES) if number % 2 == 0 else list(SIDES)[::-1]:
            command = [sys.executable, __file__, "--side", side, "--steps", str(options.steps)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[side].append(json.loads(done.stdout.splitlines()[-1]))
    best = {
        side: {which: _fastest(runs, n) for n, which in enumerate(("clock", "cpu"))} for side, runs in found.items()
    }
    extra = {}
    for which in ("clock", "cpu"):
        ours, theirs = best["modelpress"][which], best["bare"][which]
        extra[which] = sum(ours.values()) - sum(theirs.values())
        print(f"seconds by the {which}: mp.compress {sum(ours.values()):.2f}, bare script {sum(theirs.values()):.2f}")
        for name in dict.fromkeys([*theirs, *ours]):
            print(f"  {name:<13} {ours.get(name, 0.0):6.3f}  {theirs.get(name, 0.0):6.3f}")
        print(f"  beside the work: {extra[which]:.2f} s (limit {LIMIT})")
    report = {
        "benchmark": "compress_overhead",
        "steps": options.steps,
        "runs": options.runs,
        "machine": {"python": platform.python_version(), "cpu": platform.machine(), "load": os.getloadavg()[0]},
        "limit": LIMIT,
        "extraSeconds": extra,
        "fastest": best,
    }
    target = HERE / "results" / "compress_overhead.json"
    target.write_text(json.dumps(report, indent=2) + "\n")
    print(f"written to {target.relative_to(HERE.parent)}")
    return 0 if extra["cpu"] <= LIMIT else 1


def _fastest(runs: list[dict[str, list[float]]], which: int) -> dict[str, float]:
    """The phases of the run that was the fastest as a whole."""
    return {name: pair[which] for name, pair in min(runs, key=lambda run: sum(p[which] for p in run.values())).items()}


if __name__ == "__main__":
    sys.exit(main())
