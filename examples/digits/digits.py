"""A residual CNN for scikit-learn's handwritten digits (8 x 8 pixels, 1797 of them, 30 % held back)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

import modelpress as mp

BATCH = 64


class Block(nn.Module):
    """Two convolutions around a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(x + self.bn2(self.conv2(y)))


class DigitsNet(nn.Module):
    """Images (batch, 1, 8, 8) with pixels from 0 to 1 -> logits (batch, 10)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.block1 = Block(width)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.bn_down = nn.BatchNorm2d(2 * width)
        self.block2 = Block(2 * width)
        self.fc = nn.Linear(2 * width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn(self.stem(x)))
        x = self.block1(x)
        x = F.relu(self.bn_down(self.down(x)))
        x = self.block2(x)
        return self.fc(x.mean(dim=(2, 3)))


def load_data() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Training images and labels, then the held-back ones."""
    images, labels = load_digits(return_X_y=True)
    split = train_test_split(images / 16.0, labels, test_size=0.3, stratify=labels, random_state=0)
    train_x, test_x = (torch.tensor(part, dtype=torch.float32).reshape(-1, 1, 8, 8) for part in split[:2])
    train_y, test_y = (torch.tensor(part, dtype=torch.long) for part in split[2:])
    return train_x, train_y, test_x, test_y


def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of the images that the model names rightly."""
    model.eval()
    with torch.no_grad():
        return (model(images).argmax(1) == labels).float().mean().item()


def create(width: int = 32, epochs: int = 12, train: bool = True) -> mp.Subject:
    """The dense model and how to train and score it; `train=False` leaves the model untrained."""
    train_x, train_y, test_x, test_y = load_data()

    def training_step(batch, model):
        images, labels = batch
        return F.cross_entropy(model(images), labels)

    def training_func(model, optimizer, training_step, lr_scheduler, max_steps, max_epochs):
        steps = 0
        for _ in range(max_epochs or 1_000_000):
            model.train()
            order = torch.randperm(len(train_x))
            for start in range(0, len(order), BATCH):
                if max_steps is not None and steps >= max_steps:
                    return
                index = order[start : start + BATCH]
                optimizer.zero_grad()
                training_step((train_x[index], train_y[index]), model).backward()
                optimizer.step()
                steps += 1
            if lr_scheduler is not None:
                lr_scheduler.step()

    model = DigitsNet(width)
    if train:
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
        training_func(model, optimizer, training_step, schedule, None, epochs)

    evaluator = mp.TorchEvaluator(
        training_func,
        mp.trace(torch.optim.AdamW)(model.parameters(), lr=1e-3),
        training_step,
        dummy_input=test_x[:1],
        evaluating_func=lambda model: accuracy(model, test_x, test_y),
    )
    return mp.Subject(model, evaluator, example_inputs=test_x[:1])
