"""A model whose score is the sum of its weights."""

import torch
from torch import nn

import modelpress as mp


def create():
    model = nn.Linear(3, 1, bias=False)
    nn.init.ones_(model.weight)
    return mp.Subject(
        model,
        evaluator=mp.TorchEvaluator(evaluating_func=lambda model: float(model(torch.ones(1, 3)))),
        example_inputs=torch.ones(1, 3),
    )
