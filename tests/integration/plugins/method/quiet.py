"""A network whose hidden channels 0 and 2 are all but silent, though their weights are large: norms keep them."""

import torch
from torch import nn

import modelpress as mp


def create(calibration=False):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 2))
    with torch.no_grad():
        model[0].weight.abs_().add_(0.5)
        for channel in (0, 2):
            model[0].weight[channel] = torch.tensor([9.0, -9.0, 9.0, -9.0])  # of inputs that are neighbours
    rows = torch.arange(64.0).view(16, 4) / 64

    def training_func(model, optimizer, training_step, lr_scheduler, max_steps, max_epochs):
        for _ in range(max_steps or 4 * max_epochs):
            optimizer.zero_grad()
            training_step(rows, model).backward()
            optimizer.step()

    evaluator = mp.TorchEvaluator(
        training_func,
        lambda params: torch.optim.SGD(params, lr=0.01),
        lambda batch, model: model(batch).square().mean(),
        dummy_input=rows[:2],
        evaluating_func=lambda model: -float(model(rows).square().mean()),
    )
    waves = [torch.tensor([[1.0, -1.0, 1.0, -1.0]])] * 3  # here the two are louder than all others
    return mp.Subject(model, evaluator, rows[:2], calibration_data=waves if calibration else None)
