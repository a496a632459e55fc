"""A run with a LightningModule that is stopped in the middle of an epoch goes on and ends like one left alone."""

from __future__ import annotations

import json
import os
import signal

import pytest

from modelpress.result import ExitCode

pytestmark = pytest.mark.long

CODE = '''
"""A network of two layers on two Gaussian clouds, for Lightning."""
import os

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import modelpress as mp


class Data(pl.LightningDataModule):
    def setup(self, stage):
        g = torch.Generator().manual_seed(0)
        y = torch.arange(64) % 2
        x = torch.randn(64, 1, 6, 6, generator=g) + y.float().reshape(-1, 1, 1, 1)
        self.all = TensorDataset(x, y)

    def train_dataloader(self):
        return DataLoader(self.all, 16, shuffle=True)

    def test_dataloader(self):
        return DataLoader(self.all, 32)


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.drop, self.fc = nn.Dropout(0.1), nn.Linear(8, 2)

    def forward(self, x):
        return self.fc(self.drop(F.relu(self.bn(self.conv(x)))).mean(dim=(2, 3)))

    def training_step(self, batch, batch_idx):
        if os.environ.get("TEST_HANG") == f"{self.current_epoch}.{batch_idx}":
            marks = os.environ["TEST_MARKS"]
            open(os.path.join(marks, "hanging"), "w").close()
            open(os.path.join(marks, "go")).close()  # until the test opens its end
        return F.cross_entropy(self(batch[0]), batch[1])

    def test_step(self, batch, batch_idx):
        self.log("default", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        total = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def create():
    trainer = mp.trace(pl.Trainer)(accelerator="cpu", logger=False)
    return Net(), mp.LightningEvaluator(trainer, mp.trace(Data)(), torch.zeros(1, 1, 6, 6))
'''
STAGES = [
    {"prune": {"algorithm": "l1", "configList": [{"opTypes": ["Conv2d"], "sparsity": 0.5}]}},
    {"finetune": {"epochs": 3}},
]


def test_sigterm_in_the_middle_of_training(make_bench):
    """Stopped in the second of three epochs, it exits with 143; the next attempt goes on there, and weights,
    program and cuts are those of a run that was left alone."""
    alone, disturbed = make_bench(), make_bench()
    for bench in (alone, disturbed):
        (bench.code / "clouds.py").write_text(CODE)
    spec = {"stages": STAGES}
    code, _, log = alone.run(alone.request(spec=spec))
    assert code == ExitCode.DONE, log

    for name in ("hanging", "go"):
        os.mkfifo(disturbed.marks / name)
    process = disturbed.start(disturbed.request(1, spec=spec), TEST_HANG="1.2")
    disturbed.wait_for("hanging", process)
    process.send_signal(signal.SIGTERM)
    with (disturbed.marks / "go").open("w"):
        pass
    _, log = process.communicate(timeout=240)
    assert process.returncode == ExitCode.TERMINATED, log
    code, _, log = disturbed.run(disturbed.request(2, spec=spec))
    assert code == ExitCode.DONE, log

    for name in ("model.safetensors", "model.pt2", "shrink.json"):
        assert alone.artifact()[name].read_bytes() == disturbed.artifact()[name].read_bytes(), name
    training = json.loads(disturbed.artifact()["metrics.json"].read_text())["training"]
    assert training["executed"] == training["steps"] > 0
    assert "GPU available" not in log
