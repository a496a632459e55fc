"""What every evaluator promises, for Lightning."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import modelpress as mp
from modelpress_runner.testing.evaluators import EvaluatorContract


class Clouds(pl.LightningDataModule):
    def train_dataloader(self) -> Any:
        return DataLoader(self._data(), 8, shuffle=True)

    def test_dataloader(self) -> Any:
        return DataLoader(self._data(), 16)

    def _data(self) -> Any:
        x = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
        return TensorDataset(x, (x[:, 0] > 0).long())


class Net(pl.LightningModule):
    def __init__(self, breaks: bool = False) -> None:
        super().__init__()
        self.breaks = breaks
        self.body = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.1))
        self.head = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.breaks and batch_idx:
            raise RuntimeError("the user's own mistake")
        x, y = batch
        return {"loss": F.cross_entropy(self(x), y), "other": 1}

    def test_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("default", (self(x).argmax(1) == y).float().mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Alternating(Net):
    """Steps one optimizer per half of the network, by hand."""

    def __init__(self, breaks: bool = False) -> None:
        super().__init__(breaks)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        loss = super().training_step(batch, batch_idx)["loss"]
        first, second = self.optimizers()
        first.zero_grad()
        second.zero_grad()
        self.manual_backward(loss)
        first.step()
        second.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(part.parameters(), lr=0.1, momentum=0.9) for part in (self.body, self.head)]


def _make(kind: type[Net], breaks: bool = False, **arguments: Any) -> Any:
    def make() -> tuple[mp.LightningEvaluator, Net]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = kind(breaks)
        trainer = mp.trace(pl.Trainer)(accelerator="cpu", logger=False, **arguments)
        x = torch.randn(2, 4, generator=torch.Generator().manual_seed(1))
        return mp.LightningEvaluator(trainer, mp.trace(Clouds)(), x), model

    return make


class TestLightning(EvaluatorContract):
    """One optimizer, stepped by Lightning, with clipped gradients."""

    @pytest.fixture
    def make(self) -> Any:
        return _make(Net, gradient_clip_val=1.0)

    @pytest.fixture
    def broken(self) -> Any:
        return _make(Net, breaks=True)


class TestByHand(EvaluatorContract):
    """Two optimizers, stepped by the user, in mixed precision."""

    @pytest.fixture
    def make(self) -> Any:
        return _make(Alternating, precision="bf16-mixed")

    @pytest.fixture
    def broken(self) -> Any:
        return _make(Alternating, breaks=True)
