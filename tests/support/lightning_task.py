"""A small task for Lightning: four features, two classes, with everything observable noted down."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import modelpress as mp


class Clouds(pl.LightningDataModule):
    """48 training and 16 test points; batches of 8, so six a pass."""

    def __init__(self, seed: int = 0, batch_size: int = 8, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.seed, self.batch_size, self.generator = seed, batch_size, generator
        self.set_up: list[str] = []
        self.torn_down: list[str] = []

    def setup(self, stage: str) -> None:
        self.set_up.append(stage)
        generator = torch.Generator().manual_seed(self.seed)
        x = torch.randn(64, 4, generator=generator)
        y = (x[:, 0] + x[:, 1] > 0).long()
        self.train, self.test = TensorDataset(x[:48], y[:48]), TensorDataset(x[48:], y[48:])

    def teardown(self, stage: str) -> None:
        self.torn_down.append(stage)

    def train_dataloader(self) -> Any:
        return DataLoader(self.train, self.batch_size, shuffle=True, generator=self.generator)

    def val_dataloader(self) -> Any:
        return DataLoader(self.test, 16)

    def test_dataloader(self) -> Any:
        return DataLoader(self.test, 16)


class Net(pl.LightningModule):
    """Two layers with dropout between them."""

    def __init__(self, lr: float = 0.05) -> None:
        super().__init__()
        self.lr = lr
        self.fc1, self.bn, self.fc2 = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)
        self.seen: list[Any] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.dropout(F.relu(self.bn(self.fc1(x))), 0.1, self.training))

    def loss(self, batch: Any) -> torch.Tensor:
        x, y = batch
        return F.cross_entropy(self(x), y)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen.append((self.current_epoch, batch_idx, self.global_step))
        return self.loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        out = self(x)
        self.log("default", (out.argmax(1) == y).float().mean())
        self.log("test_loss", F.cross_entropy(out, y))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


def net(kind: type[Net] = Net, **args: Any) -> Net:
    """A network; each time the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(**args)


def evaluator(resumable: bool = True, data: Any = None, **arguments: Any) -> mp.LightningEvaluator:
    """An evaluator on the CPU; `arguments` are the Trainer's."""
    trainer = mp.trace(pl.Trainer)(**{"accelerator": "cpu", "logger": False, **arguments})
    return mp.LightningEvaluator(trainer, data or mp.trace(Clouds)(), resumable=resumable)
