"""A small task for loops of the user's own: 32 points, a two-layer network, four batches an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import nn

from modelpress_runner.in_process.callbacks import Callbacks


class Task:
    """Model, data, an optimizer, and a loop as a user would write it."""

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(32, 4, generator=generator)
        self.y = (self.x[:, 0] > 0).long()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)

    def batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for index in torch.arange(32).split(8):
            yield self.x[index], self.y[index]

    def step(self, callbacks: Callbacks, x: torch.Tensor, y: torch.Tensor) -> None:
        """One optimizer step with everything that belongs to it."""
        callbacks.on_step_begin(0)
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(x), y).backward()
        callbacks.on_before_optimizer_step()
        self.optimizer.step()
        callbacks.on_after_optimizer_step()
        callbacks.on_step_end()

    def train(self, callbacks: Callbacks, epochs: int, each: Callable[[], None] = lambda: None) -> None:
        """Trains for some epochs; `each` is called behind every step."""
        for _ in range(epochs):
            for x, y in self.batches():
                self.step(callbacks, x, y)
                each()

    def accuracy(self, model: nn.Module) -> float:
        with torch.no_grad():
            return (model(self.x).argmax(1) == self.y).float().mean().item()


def level(sparsity: float = 0.5, **schedule) -> dict:
    """A stage that removes single weights of the first layer, 32 of them."""
    return {
        "prune": {
            "algorithm": "level",
            "speedup": False,
            "config_list": [{"op_names": ["0"], "sparsity": sparsity}],
            "schedule": schedule,
        }
    }


def channels(sparsity: float = 0.5, **schedule) -> dict:
    """A stage that removes channels of the first layer, 8 of them, and shrinks."""
    return {
        "prune": {"algorithm": "l1", "config_list": [{"op_names": ["0"], "sparsity": sparsity}], "schedule": schedule}
    }


def zeros(module: nn.Module) -> int:
    """How many weights of a module are zero."""
    return int((module.weight == 0).sum())
