"""A training by Lightning as its users write it; nothing in here knows of modelpress."""

from __future__ import annotations

import warnings
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from plain_scripts import PARTS, Script
from torch import nn
from torch.utils.data import DataLoader

ARGUMENTS = {"accelerator": "cpu", "logger": False, "accumulate_grad_batches": PARTS, "gradient_clip_val": 1.0}
QUIET = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


class Module(pl.LightningModule):
    """A rate by epochs."""

    def __init__(self, script: Script, net: nn.Module) -> None:
        super().__init__()
        self.net, self.script = net, script

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.script.saw(batch[2], self.optimizers())
        return F.cross_entropy(self(batch[0]), batch[1])

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("default", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.9)]


class Data(pl.LightningDataModule):
    """A shuffled loader."""

    def __init__(self, script: Script) -> None:
        super().__init__()
        self.script = script

    def train_dataloader(self) -> DataLoader[Any]:
        return self.script.loader()

    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.script.data, 16)


class LightningScript(Script):
    """One fit."""

    def made_of(self, net: nn.Module) -> nn.Module:
        return Module(self, net)

    def data_module(self) -> Data:
        return Data(self)

    def plain(self, steps: int | None, epochs: int | None) -> None:
        limits = {"max_steps": -1 if steps is None else steps, "max_epochs": -1 if epochs is None else epochs}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pl.Trainer(**ARGUMENTS, **QUIET, **limits).fit(self.model, datamodule=self.data_module())
