"""A CNN for scikit-learn's handwritten digits, trained by a loop over a DeepSpeed engine."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import distributed, nn

import modelpress as mp

BATCH = 64  # over all processes


class DigitsNet(nn.Module):
    """Images (batch, 1, 8, 8) with pixels from 0 to 1 -> logits (batch, 10)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * width)
        self.fc = nn.Linear(2 * width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.fc(x.mean(dim=(2, 3)))


def config(stage: int) -> dict:
    """DeepSpeed's configuration: the batch, and what ZeRO spreads over the processes."""
    return {"train_batch_size": BATCH, "zero_optimization": {"stage": stage}}


def training_step(batch, engine):
    """The loss of a batch."""
    images, labels = batch
    return F.cross_entropy(engine(images), labels)


def create(width: int = 32, stage: int = 2, epochs: int = 12, train: bool = True) -> mp.Subject:
    """The dense model and how to train and score it; `train=False` leaves the model untrained."""
    images, labels = load_digits(return_X_y=True)
    split = train_test_split(images / 16.0, labels, test_size=0.3, stratify=labels, random_state=0)
    train_x, test_x = (torch.tensor(part, dtype=torch.float32).reshape(-1, 1, 8, 8) for part in split[:2])
    train_y, test_y = (torch.tensor(part) for part in split[2:])

    def training_func(engine, optimizer, training_step, lr_scheduler, max_steps, max_epochs):
        rank, world = distributed.get_rank(), distributed.get_world_size()
        steps = 0
        for _ in range(max_epochs or 1_000_000):
            # Every process draws the same order and takes its share of each batch.
            for index in torch.randperm(len(train_x))[: len(train_x) // BATCH * BATCH].split(BATCH):
                if max_steps is not None and steps >= max_steps:
                    return
                share = index[rank::world]
                engine.backward(training_step((train_x[share], train_y[share]), engine))
                engine.step()
                steps += 1

    def evaluating_func(model: nn.Module) -> float:
        return (model(test_x).argmax(1) == test_y).float().mean().item()

    model = DigitsNet(width)
    evaluator = mp.DeepspeedTorchEvaluator(
        training_func,
        training_step,
        config(stage),
        mp.trace(torch.optim.AdamW)(model.parameters(), lr=5e-3),
        dummy_input=test_x[:1],
        evaluating_func=evaluating_func,
    )
    if train:  # with the same loop
        evaluator.bind(model)
        evaluator.train(max_epochs=epochs)
        evaluator.unbind()
    return mp.Subject(model, evaluator)
