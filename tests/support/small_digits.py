"""Handwritten digits on a tiny net whose layers are called as in other tools' examples."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import modelpress as mp

BATCH = 64


class Net(nn.Module):
    """Images (batch, 1, 8, 8) -> logits (batch, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.conv3 = nn.Conv2d(8, 8, 3, stride=2)
        self.layer1 = nn.Linear(72, 16)
        self.layer2 = nn.Linear(16, 16)
        self.layer3 = nn.Linear(16, 16)
        self.classifier = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.conv3(F.relu(self.conv2(x))))
        x = F.relu(self.layer2(F.relu(self.layer1(x.flatten(1)))))
        return self.classifier(F.relu(self.layer3(x)))


@cache
def data() -> tuple[torch.Tensor, torch.Tensor]:
    """All images and labels."""
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images / 16.0, dtype=torch.float32).reshape(-1, 1, 8, 8), torch.tensor(labels)


def accuracy(model: nn.Module) -> float:
    """Share of the images that are named rightly."""
    model.eval()
    with torch.no_grad():
        return (model(data()[0]).argmax(1) == data()[1]).float().mean().item()


def net() -> Net:
    """The model, as it is drawn."""
    torch.manual_seed(0)
    return Net()


def evaluator(model: nn.Module) -> mp.TorchEvaluator:
    """Trains with Adam; an epoch has 8 steps."""

    def training_step(batch, model, *args, **kwargs):
        return F.cross_entropy(model(batch[0]), batch[1])

    def training_func(model, optimizer, training_step, lr_scheduler, max_steps, max_epochs):
        images, labels = data()
        steps = 0
        for _ in range(max_epochs or 10**6):
            model.train()
            for index in torch.randperm(8 * BATCH).split(BATCH):
                if max_steps is not None and steps >= max_steps:
                    return
                optimizer.zero_grad()
                training_step((images[index], labels[index]), model).backward()
                optimizer.step()
                steps += 1

    return mp.TorchEvaluator(
        training_func,
        mp.trace(torch.optim.Adam)(model.parameters(), lr=3e-3),
        training_step,
        dummy_input=data()[0][:2],
        evaluating_func=accuracy,
    )
