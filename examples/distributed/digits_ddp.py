"""A CNN for scikit-learn's handwritten digits that as many processes train as there are, each on its share of a batch.

Each process takes its share of every batch; modelpress wraps the model in DistributedDataParallel, which averages the
gradients, so the processes hold the same weights all along.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import distributed, nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import modelpress as mp

BATCH = 64  # of all processes together


class DigitsNet(nn.Module):
    """Images (batch, 1, 8, 8) with pixels from 0 to 1 -> logits (batch, 10)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.conv3 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.fc = nn.Linear(2 * width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.conv1(x))
        x = F.relu(self.conv2(x))
        x = F.relu(self.conv3(x))
        return self.fc(x.mean(dim=(2, 3)))


def load_data() -> tuple[TensorDataset, TensorDataset]:
    """Training images with labels, then the held-back ones."""
    images, labels = load_digits(return_X_y=True)
    split = train_test_split(images / 16.0, labels, test_size=0.3, stratify=labels, random_state=0)
    train_x, test_x = (torch.tensor(part, dtype=torch.float32).reshape(-1, 1, 8, 8) for part in split[:2])
    train_y, test_y = (torch.tensor(part, dtype=torch.long) for part in split[2:])
    return TensorDataset(train_x, train_y), TensorDataset(test_x, test_y)


def processes() -> tuple[int, int]:
    """How many processes there are, and the number of this one."""
    return (distributed.get_world_size(), distributed.get_rank()) if distributed.is_initialized() else (1, 0)


def create(width: int = 32, epochs: int = 12, train: bool = True) -> mp.Subject:
    """The dense model and how to train and score it; `train=False` leaves the model untrained."""
    train_set, test_set = load_data()
    world, rank = processes()
    sampler = DistributedSampler(train_set, world, rank, shuffle=True, seed=0)
    loader = DataLoader(train_set, BATCH // world, sampler=sampler)
    shard = DataLoader(torch.utils.data.Subset(test_set, range(rank, len(test_set), world)), 256)

    def training_step(batch, model):
        images, labels = batch
        return F.cross_entropy(model(images), labels)

    def training_func(model, optimizer, training_step, lr_scheduler, max_steps, max_epochs):
        model.train()
        steps = 0
        for _ in range(max_epochs or 1_000_000):
            # The order follows torch's generator, which is the same on every process and survives a restart.
            sampler.set_epoch(int(torch.randint(2**31, ())))
            for batch in loader:
                if max_steps is not None and steps >= max_steps:
                    return
                optimizer.zero_grad()
                training_step(batch, model).backward()
                optimizer.step()
                steps += 1
            if lr_scheduler is not None:
                lr_scheduler.step()

    def accuracy(model):
        """Share of the held-back images that the model names rightly: every process counts its own."""
        right = torch.zeros(())
        for images, labels in shard:
            right += (model(images).argmax(1) == labels).sum()
        if world > 1:
            distributed.all_reduce(right)
        return right / len(test_set)

    model = DigitsNet(width)
    if train:
        replica = nn.parallel.DistributedDataParallel(model) if world > 1 else model
        optimizer = torch.optim.AdamW(replica.parameters(), lr=3e-3)
        training_func(replica, optimizer, training_step, None, None, epochs)

    evaluator = mp.TorchEvaluator(
        training_func,
        mp.trace(torch.optim.AdamW)(model.parameters(), lr=1e-3),
        training_step,
        dummy_input=test_set.tensors[0][:1],
        evaluating_func=accuracy,
    )
    return mp.Subject(model, evaluator, example_inputs=test_set.tensors[0][:1])
