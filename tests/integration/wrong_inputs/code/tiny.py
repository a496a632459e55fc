"""A small model, and every way of handing it over wrongly."""

import torch
from torch import nn

import modelpress as mp


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        return self.fc(torch.relu(self.conv2(torch.relu(self.conv1(x)))).mean(dim=(2, 3)))


IMAGES = torch.randn(32, 1, 6, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(32) % 3


def step(batch, model):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def train(model, optimizer, training_step, lr_scheduler, max_steps, max_epochs):
    model.train()
    for _ in range(max_epochs or max_steps):
        optimizer.zero_grad()
        training_step((IMAGES, LABELS), model).backward()
        optimizer.step()


def accuracy(model):
    with torch.no_grad():
        return (model(IMAGES).argmax(1) == LABELS).float().mean().item()


def subject(evaluating_func=accuracy, training_func=train, optimizer=True, model=None):
    model = model or Tiny()
    optimizer = mp.trace(torch.optim.SGD)(model.parameters(), lr=0.1) if optimizer else None
    evaluator = mp.TorchEvaluator(
        training_func, optimizer, step, dummy_input=IMAGES[:1], evaluating_func=evaluating_func
    )
    return mp.Subject(model, evaluator, example_inputs=IMAGES[:1])


def create():
    return subject()


def raises():
    raise RuntimeError("the label file is missing")


def nothing():
    return None


def three():
    return Tiny(), accuracy, 3


def no_module():
    return "resnet18", accuracy


def no_evaluator():
    return Tiny(), 3


def needs_width(width):
    return subject()


def nan_score():
    return subject(lambda model: float("nan"))


def text_score():
    return subject(lambda model: "0.98")


def no_default():
    return subject(lambda model: {"accuracy": 0.9})


def reserved():
    return subject(lambda model: {"default": 0.9, "macs": 1.0})


def zero_score():
    return subject(lambda model: 0.0)


def scoring_raises():
    def score(model):
        raise KeyError("validation")

    return subject(score)


def no_training():
    return subject(training_func=None, optimizer=False)


def trains_nothing():
    return subject(training_func=lambda *args: None)


def trains_to_nan():
    def diverge(model, optimizer, training_step, lr_scheduler, max_steps, max_epochs):
        with torch.no_grad():
            model.fc.weight.fill_(float("nan"))

    return subject(training_func=diverge)


def branches_on_data():
    class Branching(Tiny):
        def forward(self, x):
            if x.sum() > 1e9:
                return super().forward(x + 1)
            return super().forward(x)

    return subject(model=Branching())


not_a_function = 3
