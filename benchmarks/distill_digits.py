"""A small student with a tenth of the labels, by itself and with a teacher, over several seeds.

The teacher is examples/digits at full width, trained on all labels. The student has 4 channels in place of 32; of the
1,257 images that it sees 125 have a label. Both ways start from equal weights and go through the same images equally
often: once with the loss of the labels alone (finetune), once with the teacher's answers beside it (distill). Scores
are those of 540 digits that nobody trained on; reported are mean and standard error, also of the differences in pairs.

Usage: python benchmarks/distill_digits.py [--seeds 5] [--epochs 20]
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import platform
import statistics
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "examples" / "digits"))
LABELS, WIDTH, BATCH = 125, 4, 64
TEACH = {"temperature": 4.0, "lossTypes": ["task", "KL"], "lossWeights": [0.3, 0.7]}


def student(seed: int) -> Any:
    """A narrow net and what trains it on a tenth of the labels."""
    import digits
    import torch
    import torch.nn.functional as F

    import modelpress as mp

    train_x, train_y, test_x, test_y = digits.load_data()
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(train_x), generator=generator)[:LABELS]
    labels = torch.full_like(train_y, -100)
    labels[chosen] = train_y[chosen]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = digits.DigitsNet(WIDTH)

    def training_func(
        model: Any, optimizer: Any, training_step: Any, scheduler: Any, max_steps: Any, max_epochs: Any
    ) -> None:
        for _ in range(max_epochs):
            for index in torch.randperm(len(train_x)).split(BATCH):
                optimizer.zero_grad()
                training_step((train_x[index], labels[index]), model).backward()
                optimizer.step()

    def training_step(batch: Any, model: Any) -> Any:
        outputs, known = model(batch[0]), (batch[1] >= 0).sum().clamp(min=1)
        return F.cross_entropy(outputs, batch[1], reduction="sum") / known

    evaluator = mp.TorchEvaluator(
        training_func,
        mp.trace(torch.optim.AdamW)(model.parameters(), lr=3e-3),
        training_step,
        dummy_input=test_x[:1],
        evaluating_func=lambda model: digits.accuracy(model, test_x, test_y),
    )
    return model, evaluator


def scores(seed: int, epochs: int) -> tuple[float, float]:
    """The student's by itself, and with its teacher."""
    import digits
    import torch

    import modelpress as mp

    torch.manual_seed(seed)
    teacher = digits.create().model
    found = []
    for stage in ({"finetune": {"epochs": epochs}}, {"distill": {"epochs": epochs, **TEACH}}):
        model, evaluator = student(seed)
        result = mp.compress(model, [stage], evaluator, seed=seed, teacher=copy.deepcopy(teacher))
        found.append(result.metrics["compressed"]["default"])
    return found[0], found[1]


def mean_and_error(values: list[float]) -> list[float]:
    """Mean and standard error."""
    return [statistics.mean(values), statistics.stdev(values) / math.sqrt(len(values))]


def main() -> int:
    """Runs all seeds and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=20)
    options = parser.parse_args()
    pairs = []
    for seed in range(options.seeds):
        pairs.append(scores(seed, options.epochs))
        print(f"seed {seed}: alone {pairs[-1][0]:.4f}, with the teacher {pairs[-1][1]:.4f}", flush=True)
    alone, taught = ([pair[side] for pair in pairs] for side in (0, 1))
    gained = mean_and_error([two - one for one, two in pairs])
    rows = {"alone": mean_and_error(alone), "taught": mean_and_error(taught), "gained": gained}
    for name, (mean, error) in rows.items():
        print(f"{name:8} {mean:.4f} +- {error:.4f}")
    report = {
        "benchmark": "distill_digits",
        "machine": {"python": platform.python_version(), "cpu": platform.machine()},
        "labels": LABELS,
        "width": WIDTH,
        "epochs": options.epochs,
        "seeds": options.seeds,
        "distill": TEACH,
        "scores": {"alone": alone, "taught": taught},
        "meanAndStandardError": rows,
    }
    (HERE / "results" / "distill_digits.json").write_text(json.dumps(report, indent=2) + "\n")
    return 0 if gained[0] > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
