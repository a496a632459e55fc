"""A LightningModule for scikit-learn's handwritten digits, as one writes it without modelpress, and `create` for it."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import modelpress as mp


class Digits(pl.LightningDataModule):
    """1797 images of 8 x 8 pixels, 30 % of them held back."""

    def __init__(self, batch_size: int = 64) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        images, labels = load_digits(return_X_y=True)
        parts = train_test_split(images / 16.0, labels, test_size=0.3, stratify=labels, random_state=0)
        train_x, test_x = (torch.tensor(part, dtype=torch.float32).reshape(-1, 1, 8, 8) for part in parts[:2])
        train_y, test_y = (torch.tensor(part, dtype=torch.long) for part in parts[2:])
        self.train, self.test = TensorDataset(train_x, train_y), TensorDataset(test_x, test_y)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.test, 512)


class Classifier(pl.LightningModule):
    """Images (batch, 1, 8, 8) with pixels from 0 to 1 -> logits (batch, 10)."""

    def __init__(self, width: int = 32, lr: float = 3e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.features = nn.Sequential(
            *(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, 2 * width, 3, padding=1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU()),
            nn.MaxPool2d(2),
            *(nn.Conv2d(2 * width, 2 * width, 3, padding=1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU()),
        )
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x).mean(dim=(2, 3)))

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        images, labels = batch
        return F.cross_entropy(self(images), labels)

    def test_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:
        images, labels = batch
        logits = self(images)
        self.log("default", (logits.argmax(1) == labels).float().mean())  # the score
        self.log("cross_entropy", F.cross_entropy(logits, labels))

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=self.hparams.lr, total_steps=int(self.trainer.estimated_stepping_batches)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def create(width: int = 32, epochs: int = 8, train: bool = True) -> tuple[pl.LightningModule, mp.LightningEvaluator]:
    """The dense model and how to train and score it; `train=False` leaves the model untrained."""
    model = Classifier(width)
    if train:
        trainer = pl.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, datamodule=Digits())
    trainer = mp.trace(pl.Trainer)(accelerator="cpu", logger=False, gradient_clip_val=1.0)
    return model, mp.LightningEvaluator(trainer, mp.trace(Digits)(batch_size=64))
