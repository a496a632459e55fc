"""A small task for DeepSpeed's tests: four features, two classes, a network with dropout, an engine's training loop."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import modelpress as mp


class Task:
    """Model, data and the user's functions."""

    def __init__(self, stage: int = 0, dropout: float = 0.0, **config) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(32, 4, generator=generator)
        self.y = (self.x[:, 0] > 0).long()
        self.config = {
            "train_micro_batch_size_per_gpu": 8,
            "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
            **config,
        }
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Dropout(dropout), nn.Linear(6, 2))

    def training_step(self, batch, engine, *args, **kwargs):
        x, y = batch
        return F.cross_entropy(engine(x.to(next(iter(engine.parameters())).dtype)).float(), y)

    def training_func(self, engine, optimizer, training_step, lr_scheduler, max_steps, max_epochs):
        first = engine.global_steps
        for _ in range(max_epochs or 10**6):
            for index in torch.randperm(len(self.x)).split(8):
                if max_steps is not None and engine.global_steps - first >= max_steps:
                    return
                engine.backward(training_step((self.x[index], self.y[index]), engine))
                engine.step()
            if lr_scheduler is not None:
                lr_scheduler.step()

    def evaluating_func(self, model) -> float:
        logits = model(self.x.to(next(iter(model.parameters())).dtype))
        return {"default": (logits.argmax(1) == self.y).float().mean().item(), "margin": logits.abs().mean().item()}

    def evaluator(self, **changes) -> mp.DeepspeedTorchEvaluator:
        given = {
            "training_func": self.training_func,
            "training_step": self.training_step,
            "deepspeed": self.config,
            "optimizer": mp.trace(torch.optim.AdamW)(self.model.parameters(), lr=0.05),
            "dummy_input": self.x[:1],
            "evaluating_func": self.evaluating_func,
        }
        return mp.DeepspeedTorchEvaluator(**(given | changes))


@pytest.fixture
def new_task():
    """Makes equal tasks that share nothing."""
    return Task
