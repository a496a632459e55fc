"""A small regression whose score is exact enough to bisect by: minus the mean squared error over all rows."""

import torch
from torch import nn

import modelpress as mp

X = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, :1] * X[:, 1:2]).tanh()


def net():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def training_step(batch, model):
    return (model(X[batch]) - Y[batch]).square().mean()


def training_func(model, optimizer, training_step, lr_scheduler, max_steps, max_epochs):
    for _ in range(max_steps):
        optimizer.zero_grad()
        training_step(torch.randperm(32)[:16], model).backward()
        optimizer.step()


def optimizer(params):
    return torch.optim.Adam(params, lr=0.05)


def evaluating_func(model):
    return -float((model(X) - Y).square().mean())


def create():
    evaluator = mp.TorchEvaluator(
        training_func, optimizer, training_step, dummy_input=X[:1], evaluating_func=evaluating_func
    )
    return net(), evaluator
