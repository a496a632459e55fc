"""A small network, pruned and recovered alike by any number of processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from modelpress.api.v1alpha1 import Stage
from modelpress_runner.engine.run import run_stages
from modelpress_runner.subject.subject import Subject


def recovered(kind: str) -> dict[str, torch.Tensor]:
    """The state of a small network after pruning and `reconstruct: kind`, over three batches of calibration data."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))
    model.double().eval()
    x = torch.randn(24, 4, dtype=torch.float64)
    with torch.no_grad():
        wanted = model(x)

    def closeness(model: nn.Module) -> float:
        with torch.no_grad():
            return -float((model(x) - wanted).square().mean())

    prune: dict[str, Any] = {"reconstruct": kind, "configList": [{"opNames": ["0", "2"], "sparsity": 0.5}]}
    subject = Subject(model, closeness, x[:2], [x[:8], x[8:12], x[12:]])
    return run_stages(subject, [Stage.model_validate({"prune": prune})], seed=0).model.state_dict()
