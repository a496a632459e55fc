"""Training passes over a frozen model: nothing of it changes, whatever the user's loop does to it."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

import modelpress as mp
from modelpress_runner.errors import CompressionError, UserCodeError
from modelpress_runner.passes.frozen import scoring_passes
from modelpress_runner.process.stopping import Stopped
from modelpress_runner.runtime import rng
from modelpress_runner.runtime import user_rng as generators


class Busy(nn.Module):
    """Norms, dropout, a buffer that is replaced in every pass, and a train() of its own that freezes a norm."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 2))
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("none", None)
        self.register_buffer("fleeting", torch.ones(2), persistent=False)
        self.modes = []

    def train(self, mode=True):
        super().train(mode)
        self.body[1].eval()
        return self

    def forward(self, x):
        self.modes.append((self.training, self.body[2].training))
        self.count = self.count + 1
        self.fleeting.add_(1)
        return self.body(x)


def bits(model: nn.Module) -> dict[str, bytes]:
    """Every parameter, buffer and gradient, bit by bit."""
    found = {}
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        found[name] = value.detach().numpy().tobytes()
        if value.grad is not None:
            found[f"{name}.grad"] = value.grad.numpy().tobytes()
    return found


def everything(model: nn.Module, evaluator: mp.TorchEvaluator) -> object:
    """All that must be as it was."""
    buffer = io.BytesIO()
    torch.save([rng.capture(), generators.save(evaluator.rng_roots())], buffer)
    return (
        bits(model),
        [module.training for module in model.modules()],
        [p.requires_grad for p in model.parameters()],
        [id(p) for p in model.parameters()],
        [id(b) for b in model.buffers()],
        buffer.getvalue(),
    )


def busy(task, **changes):
    """A model in a mixed state and an evaluator whose loop draws from every generator."""
    torch.manual_seed(0)
    model = Busy()
    model.train()
    model.body[0].eval()
    model.body[3].bias.requires_grad_(False)
    with torch.no_grad():
        model.body[0].weight[0, 0] = -0.0
    model(task.x).sum().backward()
    loader = DataLoader(TensorDataset(task.x, task.y), 8, shuffle=True, generator=torch.Generator().manual_seed(3))

    def training_func(model, optimizer, training_step, scheduler, max_steps, max_epochs):
        steps = 0
        while True:
            for batch in loader:
                model.train()
                model.body.train()
                random.random(), np.random.rand(), torch.rand(1)
                optimizer.zero_grad()
                training_step(batch, model).backward()
                optimizer.step()
                scheduler.step()
                steps += 1
                if steps == max_steps:
                    return

    adam = mp.trace(torch.optim.AdamW)(model.parameters(), lr=1.0, weight_decay=0.5)
    given = {
        "training_func": training_func,
        "optimizers": adam,
        "lr_schedulers": mp.trace(lr_scheduler.ExponentialLR)(adam, gamma=0.5),
    }
    return model, task.evaluator(**(given | changes))


def test_nothing_changes_and_the_model_stays_in_eval_mode(task):
    """No statistics, no dropout, no step, although the loop calls train(); gradients come; all is as before."""
    model, evaluator = busy(task)
    evaluator.record_parameter_names(model)
    before = everything(model, evaluator)
    model.modes.clear()
    gradients, train = [], nn.Module.train
    scoring_passes(model, evaluator, 6, before_step=lambda: gradients.append(model.body[0].weight.grad.clone()))
    assert everything(model, evaluator) == before
    assert model.modes == [(False, False)] * 6
    assert len(gradients) == 6
    assert nn.Module.train is train
    model.train()
    assert model.body[2].training


def test_gradients_are_those_of_the_same_weights_in_every_step(task):
    """Six steps over one batch give one gradient six times; the state of the optimizer has no part in it."""
    model, _ = busy(task)
    loop = task.evaluator(
        training_func=lambda model, optimizer, step, *_: [
            (optimizer.zero_grad(), step((task.x, task.y), model).backward(), optimizer.step()) for _ in range(6)
        ],
        optimizers=lambda params: torch.optim.SGD(params, lr=100.0, momentum=0.9),
    )
    gradients = []
    scoring_passes(model, loop, 6, before_step=lambda: gradients.append(model.body[0].weight.grad.clone()))
    assert all(torch.equal(gradients[0], each) for each in gradients)
    assert gradients[0].abs().max() > 0


@pytest.mark.parametrize("place", ["loss", "step", "loop", "hook", "bind"])
def test_all_is_as_before_after_an_exception(task, place):
    """Stopped in the loss or before a step, an error in the user's loop or in what is collected, a failing factory."""
    model, evaluator = busy(task)
    evaluator.record_parameter_names(model)
    calls = []

    def at(number, error):
        calls.append(None)
        if len(calls) == number:
            raise error

    stop = (lambda: at({"loss": 4, "step": 6}[place], Stopped())) if place in ("loss", "step") else lambda: None
    if place == "loop":
        evaluator = task.evaluator(
            training_func=lambda model, optimizer, step, *_: (
                step((task.x, task.y), model).backward(), optimizer.step(), 1 / 0
            ),
            optimizers=lambda params: torch.optim.SGD(params, lr=1.0),
        )  # fmt: skip
    if place == "bind":
        evaluator = task.evaluator(optimizers=lambda params: 1 / 0)
    before = everything(model, evaluator)
    look = (lambda: at(2, CompressionError("no"))) if place == "hook" else lambda: None
    with pytest.raises((Stopped, UserCodeError, CompressionError)):
        scoring_passes(model, evaluator, 6, before_step=look, stop=stop)
    assert everything(model, evaluator) == before
    with pytest.raises(RuntimeError, match="not bound"):
        _ = evaluator.model


def test_a_loss_of_another_optimizer_can_still_go_backward(task):
    """Two losses computed before the first step: putting weights back does not break the second backward pass."""
    one, two = nn.Linear(4, 2), nn.Linear(4, 2)
    model = nn.ModuleList([one, two])

    def training_func(model, optimizers, training_step, schedulers, max_steps, max_epochs):
        for _ in range(max_steps):
            losses = [part(task.x).square().mean() + part.weight.square().sum() for part in model]
            for loss, optimizer in zip(losses, optimizers, strict=True):
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    evaluator = task.evaluator(
        training_func=training_func,
        optimizers=[
            lambda params: torch.optim.SGD(params[:2], lr=1.0),
            lambda params: torch.optim.SGD(params[2:], lr=1.0),
        ],
    )
    before = bits(model)
    steps = []
    scoring_passes(model, evaluator, 3, before_step=lambda: steps.append(one.weight.grad.clone()))
    assert bits(model) == before
    assert len(steps) == 3
    assert torch.equal(steps[0], steps[2])


def test_a_training_may_convert_or_move_the_model(task):
    """A loop that begins with model.double(): it trains in float64 throughout, and the model ends in float32."""
    kinds = []

    def training_func(model, optimizer, training_step, scheduler, max_steps, max_epochs):
        model.double()
        for _ in range(max_steps):
            optimizer.zero_grad()
            training_step((task.x.double(), task.y), model).backward()
            optimizer.step()
            kinds.append({value.dtype for value in (*model.parameters(), model[1].running_mean)})

    evaluator = task.evaluator(training_func=training_func)
    before = bits(task.model)
    objects = [*map(id, task.model.parameters()), *map(id, task.model.buffers())]
    gradients = []
    scoring_passes(task.model, evaluator, 3, before_step=lambda: gradients.append(task.model[0].weight.grad.clone()))
    assert kinds == [{torch.float64}] * 3
    assert torch.equal(gradients[0], gradients[2])
    assert bits(task.model) == before
    assert [*map(id, task.model.parameters()), *map(id, task.model.buffers())] == objects
    assert {value.dtype for value in task.model.parameters()} == {torch.float32}


def test_a_training_that_goes_on_is_ended(task):
    """A loop that keeps to no limit is broken off before the step after the last."""
    steps = []

    def training_func(model, optimizer, training_step, scheduler, max_steps, max_epochs):
        while True:
            optimizer.zero_grad()
            training_step((task.x, task.y), model).backward()
            optimizer.step()
            steps.append(None)

    seen = []
    evaluator = task.evaluator(training_func=training_func)
    scoring_passes(task.model, evaluator, 4, before_step=lambda: seen.append(None))
    assert len(seen) == len(steps) == 4


def test_a_training_that_ends_early_is_called_again(task):
    """Loops of one epoch, four steps here, are repeated with what is left of the limit."""
    asked = []

    def training_func(model, optimizer, training_step, scheduler, max_steps, max_epochs):
        asked.append(max_steps)
        task.training_func(model, optimizer, training_step, scheduler, min(max_steps, 4), None)

    seen = []
    scoring_passes(task.model, task.evaluator(training_func=training_func), 9, before_step=lambda: seen.append(None))
    assert asked == [9, 5, 1]
    assert len(seen) == 9


def test_a_mode_that_is_set_by_hand_is_an_error(task):
    """What train() does not do cannot be held off: the message names the module."""

    def training_func(model, optimizer, training_step, scheduler, max_steps, max_epochs):
        model[1].training = True
        training_step((task.x, task.y), model).backward()
        optimizer.step()

    before = bits(task.model)
    with pytest.raises(CompressionError, match=r"sets 1\.training = True itself; let it call train\(\)"):
        scoring_passes(task.model, task.evaluator(training_func=training_func), 1, before_step=lambda: None)
    assert bits(task.model) == before


def test_other_models_train_as_ever_meanwhile(task):
    """Only the frozen model's modules ignore train(): a teacher of the user's own does not."""
    teacher = nn.Sequential(nn.BatchNorm1d(4)).eval()
    wrapped = []

    def training_func(model, optimizer, training_step, scheduler, max_steps, max_epochs):
        assert teacher.train() is teacher
        assert model.train() is model
        wrapped.append(nn.ModuleList([model, teacher]).train())
        wrapped[0].training_modes = [module.training for module in wrapped[0].modules()]
        task.training_func(model, optimizer, training_step, scheduler, max_steps, max_epochs)

    scoring_passes(task.model, task.evaluator(training_func=training_func), 1, before_step=lambda: None)
    assert teacher[0].training
    assert wrapped[0].training_modes == [True, False, False, False, False, False, True, True]


def test_hooks_can_be_put_in_place_and_go(task):
    """`bound` is called with the evaluator bound: a forward hook sees every pass, and is gone afterwards."""
    hook = shapes_of_outputs()
    evaluator = task.evaluator()
    scoring_passes(
        task.model,
        evaluator,
        3,
        before_step=lambda: None,
        bound=lambda: evaluator.register_forward_hook("0", hook),
    )
    assert len(hook.buffer) == 3
    assert not task.model[0]._forward_hooks


def shapes_of_outputs():
    """A hook that keeps the shapes of outputs."""
    from modelpress_runner.evaluators.hooks import ForwardHook

    return ForwardHook(lambda buffer, module, args, output: buffer.append(output.shape))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["SGD", "Adam", "RMSprop", "Adagrad", "Rprop"]),
    st.integers(1, 5),
    st.integers(1, 12),
    st.floats(1e-4, 1e3),
)
def test_any_optimizer_leaves_every_bit(task, kind, steps, stopped_at, rate):
    """Whatever the rule, the rate and the place where it is stopped."""
    evaluator = task.evaluator(optimizers=lambda params: getattr(torch.optim, kind)(params, lr=rate))
    before = bits(task.model)
    calls = []

    def stop():
        calls.append(None)
        if len(calls) == stopped_at:
            raise Stopped

    try:
        scoring_passes(task.model, evaluator, steps, before_step=lambda: None, stop=stop)
    except Stopped:
        assert len(calls) == stopped_at
    assert bits(task.model) == before
