"""A CompressionModule: a perceptron for scikit-learn's handwritten digits, with its training as class methods."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

import modelpress as mp

IMAGES, LABELS = load_digits(return_X_y=True)
SPLIT = train_test_split(IMAGES / 16.0, LABELS, test_size=0.3, stratify=LABELS, random_state=0)
TRAIN_X, TEST_X = (torch.tensor(part, dtype=torch.float32) for part in SPLIT[:2])
TRAIN_Y, TEST_Y = (torch.tensor(part, dtype=torch.long) for part in SPLIT[2:])


class Digits(mp.CompressionModule):
    """Images (batch, 64) with pixels from 0 to 1 -> logits (batch, 10)."""

    @classmethod
    def model(cls, width: int = 256) -> nn.Module:
        return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))

    @classmethod
    def evaluator(cls):
        return lambda model: (model(TEST_X).argmax(1) == TEST_Y).float().mean().item()

    @classmethod
    def optimizer_factory(cls):
        return lambda parameters: torch.optim.AdamW(parameters, lr=2e-3)

    @classmethod
    def criterion(cls):
        return nn.CrossEntropyLoss()

    @classmethod
    def sparsifying_trainer(cls, algorithm_name: str):
        return one_epoch

    @classmethod
    def post_compress_finetuning_trainer(cls, algorithm_name: str):
        return one_epoch

    @classmethod
    def post_compress_finetuning_epochs(cls, algorithm_name: str) -> int:
        return 8

    @classmethod
    def example_inputs(cls):
        return TEST_X[:1]

    @classmethod
    def pretrain(cls, model: nn.Module) -> None:
        optimizer = cls.optimizer_factory()(model.parameters())
        for epoch in range(15):
            one_epoch(model, optimizer, cls.criterion(), epoch)


def one_epoch(model, optimizer, criterion, current_epoch):
    """One pass over the training images."""
    model.train()
    for index in torch.randperm(len(TRAIN_X)).split(64):
        optimizer.zero_grad()
        criterion(model(TRAIN_X[index]), TRAIN_Y[index]).backward()
        optimizer.step()
