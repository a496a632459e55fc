"""Recorded recipes of digits CNNs, looked up in place of trainings by the benchmarks of searches.

A table: a CNN pruned by 2 methods at 7 sparsities and fine-tuned with 2 learning rates; the accuracy after each of 9
epochs, and the MACs. A recipe is one of these 28 with a number of epochs: 252. Each table is of another net, with other
methods, rates, sparsities and another seed.

Usage: python benchmarks/search_tables.py [NAME...]   measures them (all) anew, a minute each
"""

from __future__ import annotations

import bisect
import copy
import itertools
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modelpress.search.hypervolume import hypervolume

HERE = Path(__file__).resolve().parent
ALGORITHMS, RATES, EPOCHS = ("l1", "random"), (1e-3, 3e-3), 9
SPARSITIES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
LOSS = 0.02
GOALS = ("maximize", "minimize")
# What rules were chosen on, and what was measured when all was chosen.
CHOSEN_ON = ("digits_table", "digits_table_held_out", "digits_table_late", "digits_table_close")
UNSEEN = ("digits_table_unseen", "digits_table_unseen_2", "digits_table_unseen_3")
RECORDED: dict[str, dict[str, Any]] = {
    "digits_table": {},
    "digits_table_held_out": {
        "width": 8,
        "algorithms": ("l2", "fpgm"),
        "rates": (5e-4, 5e-3),
        "sparsities": (0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85),
        "seed": 1,
    },
    "digits_table_unseen": {
        "width": 12,
        "algorithms": ("l1", "fpgm"),
        "rates": (7e-4, 2e-3),
        "sparsities": (0.2, 0.35, 0.5, 0.6, 0.7, 0.8, 0.88),
        "seed": 2,
    },
    "digits_table_late": {  # its best recipe is a late one
        "width": 10,
        "algorithms": ("l2", "random"),
        "rates": (1e-3, 4e-3),
        "sparsities": (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85),
        "seed": 3,
    },
    "digits_table_close": {
        "width": 14,
        "algorithms": ("l1", "l2"),
        "rates": (8e-4, 3e-3),
        "sparsities": (0.25, 0.35, 0.5, 0.6, 0.7, 0.8, 0.9),
        "seed": 4,
    },
    "digits_table_unseen_2": {
        "width": 9,
        "algorithms": ("l1", "fpgm"),
        "rates": (6e-4, 4e-3),
        "sparsities": (0.2, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85),
        "seed": 5,
    },
    "digits_table_unseen_3": {
        "width": 13,
        "algorithms": ("l2", "random"),
        "rates": (1e-3, 2.5e-3),
        "sparsities": (0.25, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
        "seed": 6,
    },
}


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


def recorded(name: str) -> Table:
    """A table of RECORDED."""
    return Table(json.loads((HERE / "results" / f"{name}.json").read_text()))


if __name__ == "__main__":
    for wanted in sys.argv[1:] or RECORDED:
        file = HERE / "results" / f"{wanted}.json"
        file.write_text(json.dumps(measure(**RECORDED[wanted]), indent=1) + "\n")
