"""A small task for the engine's tests: two features, two classes, a two-layer network."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import modelpress as mp


class Task:
    """Model, data and the user's functions; the functions note how they were called."""

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(32, 4, generator=generator)
        self.y = (self.x[:, 0] > 0).long()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))
        self.calls: list[tuple[int | None, int | None]] = []

    def training_step(self, batch, model, *args, **kwargs):
        x, y = batch
        return F.cross_entropy(model(x), y)

    def training_func(self, model, optimizer, training_step, lr_scheduler, max_steps, max_epochs):
        self.calls.append((max_steps, max_epochs))
        steps = 0
        for _ in range(max_epochs or 10**6):
            order = torch.randperm(len(self.x))
            for index in order.split(8):
                if max_steps is not None and steps >= max_steps:
                    return
                optimizer.zero_grad()
                training_step((self.x[index], self.y[index]), model).backward()
                optimizer.step()
                steps += 1
            if lr_scheduler is not None:
                lr_scheduler.step()

    def evaluating_func(self, model) -> float:
        return (model(self.x).argmax(1) == self.y).float().mean().item()

    def evaluator(self, **changes) -> mp.TorchEvaluator:
        given = {
            "training_func": self.training_func,
            "optimizers": mp.trace(torch.optim.SGD)(self.model.parameters(), lr=0.1, momentum=0.9),
            "training_step": self.training_step,
            "dummy_input": self.x[:1],
            "evaluating_func": self.evaluating_func,
        }
        return mp.TorchEvaluator(**(given | changes))


@pytest.fixture
def task() -> Task:
    return Task()
