"""A net with every kind of layer that backends quantize, and what it takes to train it."""

from __future__ import annotations

import torch
from small_task import Task
from torch import nn

WORDS, WIDTH = 64, 64


class Separable(nn.Module):
    """An embedding, a depthwise convolution whose channels differ 1000-fold until its norm makes them alike, a plain
    one, two linear layers on three dimensions, and one on two."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.depthwise = nn.Conv1d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH, bias=False)
        self.norm = nn.BatchNorm1d(WIDTH)
        self.pointwise = nn.Conv1d(WIDTH, WIDTH, 1)
        self.wide = nn.Linear(WIDTH, 2 * WIDTH)
        self.narrow = nn.Linear(2 * WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 4)
        factors = torch.logspace(-1.5, 1.5, WIDTH)[torch.randperm(WIDTH)]
        with torch.no_grad():
            self.depthwise.weight.mul_(factors.view(-1, 1, 1))
            self.norm.running_var.copy_(factors.square() / 3)
            self.head.bias.zero_()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids).transpose(1, 2)
        x = self.pointwise(self.norm(self.depthwise(x)).relu()).transpose(1, 2)
        x = x + self.narrow(self.wide(x).relu())
        return self.head(x.mean(1))


class SeparableTask(Task):
    """Ids, and the dense net's own answers."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model = Separable()
            self.x = torch.randint(0, WORDS, (64, 6))
        with torch.no_grad():
            self.y = self.model.eval()(self.x).argmax(1)
