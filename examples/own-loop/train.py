"""A training loop of its own, with compression put into it: a small CNN for scikit-learn's handwritten digits.

modelpress run examples/own-loop/job.yaml     the recipe comes from the job
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import modelpress as mp


class Net(nn.Module):
    """Images (batch, 1, 8, 8) with pixels from 0 to 1 -> logits (batch, 10)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * width)
        self.conv3 = nn.Conv2d(2 * width, 2 * width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(2 * width)
        self.fc = nn.Linear(2 * width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.relu(self.bn3(self.conv3(x)))
        return self.fc(x.mean(dim=(2, 3)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--width", type=int, default=32)
    options = parser.parse_args()

    images, labels = load_digits(return_X_y=True)
    split = train_test_split(images / 16.0, labels, test_size=0.3, stratify=labels, random_state=0)
    train_x, test_x = (torch.tensor(part, dtype=torch.float32).reshape(-1, 1, 8, 8) for part in split[:2])
    train_y, test_y = (torch.tensor(part, dtype=torch.long) for part in split[2:])
    loader = DataLoader(TensorDataset(train_x, train_y), batch_size=64, shuffle=True)

    model = Net(options.width)

    def accuracy(model: nn.Module) -> float:
        model.eval()
        with torch.no_grad():
            return (model(test_x).argmax(1) == test_y).float().mean().item()

    def pretrain(model: nn.Module) -> None:
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(12):
            model.train()
            for x, y in loader:
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs)
    compression = mp.prepare_compression(
        model,
        evaluator=accuracy,
        dummy_input=test_x[:1],
        pretrain=pretrain,
        optimizers=optimizer,
        lr_schedulers=scheduler,
    )
    callbacks = compression.callbacks
    callbacks.on_train_begin()
    for epoch in compression.epochs(options.epochs):
        callbacks.on_epoch_begin(epoch)
        model.train()
        for batch, (x, y) in enumerate(loader):
            callbacks.on_step_begin(batch)
            optimizer.zero_grad()
            logits = model(x)
            loss = callbacks.on_after_compute_loss(x, logits, F.cross_entropy(logits, y))
            loss.backward()
            callbacks.on_before_optimizer_step()
            optimizer.step()
            callbacks.on_after_optimizer_step()
            callbacks.on_step_end()
        scheduler.step()
        callbacks.on_before_eval()
        mp.report(epoch, default=accuracy(model), loss=loss)
        callbacks.on_after_eval()
        callbacks.on_epoch_end()
    callbacks.on_train_end()
    print(f"compressed: {compression.result.metrics['compressed']}")


if __name__ == "__main__":
    main()
