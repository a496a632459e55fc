"""A small CNN on part of the digits, which writes down every time its dense model was trained to the end."""

from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

import modelpress as mp

IMAGES, LABELS = load_digits(return_X_y=True)
IMAGES = torch.tensor(IMAGES / 16.0, dtype=torch.float32).reshape(-1, 1, 8, 8)
LABELS = torch.tensor(LABELS, dtype=torch.long)
TRAIN, TEST = slice(0, 800), slice(1200, 1797)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.bn = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 3, stride=2, padding=1)
        self.drop = nn.Dropout(0.1)
        self.fc = nn.Linear(16, 10)

    def forward(self, x):
        x = torch.relu(self.conv2(torch.relu(self.bn(self.conv1(x)))))
        return self.fc(self.drop(x.mean(dim=(2, 3))))


def step(batch, model):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def fit(model, optimizer, training_step, lr_scheduler, max_steps, max_epochs):
    model.train()
    for _ in range(max_epochs):
        order = torch.randperm(800)
        for start in range(0, 800, 50):
            index = order[start : start + 50]
            optimizer.zero_grad()
            training_step((IMAGES[TRAIN][index], LABELS[TRAIN][index]), model).backward()
            optimizer.step()
        if lr_scheduler is not None:
            lr_scheduler.step()


def accuracy(model):
    model.eval()
    with torch.no_grad():
        return (model(IMAGES[TEST]).argmax(1) == LABELS[TEST]).float().mean().item()


def create(log, train=True):
    model = Small()
    if train:
        fit(model, torch.optim.Adam(model.parameters(), lr=1e-2), step, None, None, 8)
        with Path(log).open("a") as file:
            file.write("trained\n")
    optimizer = mp.trace(torch.optim.SGD)(model.parameters(), lr=0.05, momentum=0.9)
    schedule = mp.trace(torch.optim.lr_scheduler.ExponentialLR)(optimizer, gamma=0.9)
    evaluator = mp.TorchEvaluator(fit, optimizer, step, schedule, dummy_input=IMAGES[:1], evaluating_func=accuracy)
    return mp.Subject(model, evaluator, example_inputs=IMAGES[:1])
