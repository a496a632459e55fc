"""One rank that prunes by every method: prune_worker.py OUT. Writes the masks to OUT/<rank>.pt."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

import modelpress as mp
from modelpress.api.v1alpha1 import Stage
from modelpress.api.v1alpha1.algorithms import algorithms
from modelpress_runner.engine.run import run_stages
from modelpress_runner.runtime import distributed as ranks
from modelpress_runner.subject.subject import Subject


def net() -> nn.Sequential:
    """The same on every rank."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 10))


def training_func(model: Any, optimizer: Any, step: Any, scheduler: Any, max_steps: Any, max_epochs: Any) -> None:
    """Each rank's share of the same 16 rows."""
    rows = torch.randn(16, 4, generator=torch.Generator().manual_seed(1)) + 0.3
    share = rows[ranks.rank() :: ranks.world_size()]
    for _ in range(max_steps):
        optimizer.zero_grad()
        step(share, model).backward()
        optimizer.step()


def masks() -> dict[str, Any]:
    """Of each method, and of one stage with a schedule and training in between."""
    calibration = list(torch.randn(4, 8, 4, generator=torch.Generator().manual_seed(2)))
    found: dict[str, Any] = {}
    for row in algorithms("prune"):
        model = net()
        model[1].weight.data.uniform_(0.1, 1.0, generator=torch.Generator().manual_seed(3))
        block: dict[str, Any] = {"algorithm": row.name, "shrink": False, "configList": [{"sparsity": 0.5}]}
        if row.threshold is not None:
            model[0].weight.data[:5] = 0
            block["configList"] = [{}]
        elif not row.data_driven:
            block["schedule"] = {"type": "cube", "rounds": 2, "train": {"maxSteps": 2}}
        evaluator = mp.TorchEvaluator(
            training_func,
            lambda params: torch.optim.SGD(params, lr=0.1),
            lambda batch, model: model(batch).square().mean(),
        )
        subject = Subject(model, evaluator, calibration[0], calibration_data=calibration)
        outcome = run_stages(subject, [Stage.model_validate({"prune": block})], seed=0, scores=False)
        found[row.name] = {name: tensors["weight"] for name, tensors in outcome.masks.items()}
    return found


if __name__ == "__main__":
    ranks.init_process_group()
    torch.save(masks(), Path(sys.argv[1]) / f"{ranks.rank()}.pt")
    ranks.destroy_process_group()
