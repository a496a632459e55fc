"""A network and three sources of data; each has another channel that is silent, by numbers that are exact in binary.

The channels of `first` give a, b and a - b of a row (a, b). Their means of |output| are SCORES.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modelpress.api.v1alpha1 import algorithms

CALIBRATION = [torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[5.0, 6.0]]), torch.tensor([[7.0, 8.0]])]
EVALUATION = [torch.tensor([[0.5, 4.0], [0.5, -4.0]]), torch.tensor([[-0.5, 6.0], [0.5, 2.0]])]
TRAINING = [torch.tensor([[4.0, 0.25], [-4.0, 0.25]]), torch.tensor([[6.0, 0.25], [2.0, 0.25]])]
SCORES = {"calibration": [4.0, 5.0, 1.0], "evaluation": [0.5, 4.0, 4.0], "training": [4.0, 0.25, 3.875]}
STAGE = {
    "prune": {
        "algorithm": "mean_magnitude",
        "speedup": False,
        "configList": [{"opNames": ["first"], "sparsity": 0.34}],
    }
}
PLUGIN = Path(__file__).parents[1] / "integration/plugins/method/activation_plugin.py"


def layers(model: nn.Module) -> None:
    """Gives a module the layers `first` and `last`."""
    model.first, model.last = nn.Linear(2, 3, bias=False), nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        model.first.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, -1.0]]))
        model.last.weight.fill_(1.0)


class Net(nn.Module):
    """Rows (batch, 2) -> (batch, 1)."""

    def __init__(self) -> None:
        super().__init__()
        layers(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x))


def evaluating_func(model: Any) -> float:
    """Calls the model on each batch of EVALUATION."""
    return float(sum(model(batch).sum() for batch in EVALUATION))


def training_func(model, optimizer, training_step, lr_scheduler, max_steps, max_epochs) -> None:
    """Trains on TRAINING in turn."""
    for step in range(max_steps or 2 * max_epochs):
        optimizer.zero_grad()
        training_step(TRAINING[step % 2], model).backward()
        optimizer.step()


def training_step(batch, model) -> torch.Tensor:
    return model(batch).square().mean()


@contextmanager
def mean_magnitude() -> Iterator[None]:
    """The method of tests/integration/plugins is known, and is forgotten afterwards."""
    rows = dict(algorithms._ALGORITHMS)
    schedules = dict(algorithms._SCHEDULES)
    spec = importlib.util.spec_from_file_location("activation_plugin", PLUGIN)
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["activation_plugin"] = module
    try:
        spec.loader.exec_module(module)
        yield
    finally:
        del sys.modules["activation_plugin"]
        for table, before in ((algorithms._ALGORITHMS, rows), (algorithms._SCHEDULES, schedules)):
            table.clear()
            table.update(before)
        for changed in algorithms._LISTENERS:
            changed()
