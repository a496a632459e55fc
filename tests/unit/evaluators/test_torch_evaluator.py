"""TorchEvaluator: the seeds' semantics, and that nothing of it is left after unbinding."""

from __future__ import annotations

import io
from collections import namedtuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

import modelpress as mp
from modelpress_runner.errors import InvalidModelError, UserCodeError
from modelpress_runner.evaluators.optimizer_state import load_optimizer, plain
from modelpress_runner.evaluators.torch_evaluator import loss_in, with_loss


def test_training_func_gets_its_six_arguments_by_position(task):
    """Single objects stay single, lists stay lists, no scheduler is None."""
    seen = []

    def training_func(*args):
        seen.append(args)

    sgd = mp.trace(torch.optim.SGD)(task.model.parameters(), lr=0.1)
    decay = mp.trace(lr_scheduler.ExponentialLR)(sgd, gamma=0.5)
    for optimizers, schedulers in ((sgd, None), ([sgd], [decay]), (sgd, decay)):
        evaluator = mp.TorchEvaluator(training_func, optimizers, task.training_step, schedulers)
        evaluator.bind(task.model)
        evaluator.train(max_steps=3)
        evaluator.unbind()
    single, listed, both = seen
    assert single[0] is task.model
    assert isinstance(single[1], torch.optim.SGD)
    assert single[3:] == (None, 3, None)
    assert isinstance(listed[1], list)
    assert isinstance(listed[3], list)
    assert both[3].optimizer is both[1]
    assert both[1] is not sgd


def test_factories_make_optimizers_and_schedulers(task):
    """(params) -> Optimizer, (optimizer) -> scheduler and (params, optimizer) -> scheduler are all taken."""
    evaluator = task.evaluator(
        optimizers=[
            lambda params: torch.optim.SGD(params[:2], lr=1.0),
            lambda params: torch.optim.SGD(params[2:], lr=2.0),
        ],
        lr_schedulers=[
            lambda optimizer: lr_scheduler.ExponentialLR(optimizer, gamma=0.5),
            lambda params, optimizer: lr_scheduler.ConstantLR(optimizer, factor=1 / len(params)),
        ],
    )
    evaluator.bind(task.model)
    rates = [optimizer.param_groups[0]["lr"] for optimizer in evaluator.optimizers()]
    assert rates == [1.0, 2.0 / 6]


def test_the_same_objects_serve_all_calls_until_unbound(task):
    """Momentum and epochs go on from call to call; a new binding starts afresh."""
    evaluator = task.evaluator()
    evaluator.bind(task.model)
    first = next(evaluator.optimizers())
    evaluator.train(max_epochs=1)
    evaluator.train(max_epochs=1)
    assert next(evaluator.optimizers()) is first
    assert len(first.state) == 6
    evaluator.unbind()
    evaluator.bind(task.model)
    assert next(evaluator.optimizers()) is not first
    with pytest.raises(RuntimeError, match="already bound"):
        evaluator.bind(task.model)


@pytest.mark.parametrize("form", ["scalar", "tuple", "dict", "namedtuple"])
def test_loss_patches_apply_to_every_form_of_output(task, form):
    """The loss is patch(loss, batch) inside whatever the training step returned."""
    Output = namedtuple("Output", "loss logits")
    wrap = {
        "scalar": lambda loss: loss,
        "tuple": lambda loss: (loss, "extra"),
        "dict": lambda loss: {"loss": loss, "extra": 1},
        "namedtuple": lambda loss: Output(loss, "logits"),
    }[form]
    outputs = []

    def training_func(model, optimizer, training_step, scheduler, max_steps, max_epochs):
        outputs.append(training_step((task.x, task.y), model))

    evaluator = task.evaluator(training_func=training_func, training_step=lambda batch, model: wrap(torch.tensor(2.0)))
    evaluator.bind(task.model)
    evaluator.patch_loss(lambda loss, batch: loss * len(batch[0]))
    evaluator.patch_loss(lambda loss, batch: loss + 1)
    evaluator.train(max_epochs=1)
    assert float(loss_in(outputs[0])) == 65.0
    assert type(outputs[0]) is type(wrap(torch.tensor(0.0)))
    evaluator.unbind()
    evaluator.bind(task.model)
    evaluator.train(max_epochs=1)
    assert float(loss_in(outputs[1])) == 2.0


def test_with_loss_leaves_the_users_object_alone():
    """A patched dict is another dict."""
    given = {"loss": torch.tensor(1.0)}
    changed = with_loss(given, torch.tensor(2.0))
    assert float(given["loss"]) == 1.0
    assert float(changed["loss"]) == 2.0


@pytest.mark.parametrize("output", [None, {}, {"logits": 1}, (), (1,), "loss"])
def test_an_output_without_a_loss_is_refused(output):
    """The message names the three forms."""
    with pytest.raises(InvalidModelError, match="training_step returned"):
        loss_in(output)


def test_step_hooks_run_around_steps_and_are_gone_after_unbind(task):
    """Before: the first optimizer only; after: any. Nothing runs any more once unbound."""
    calls = []

    def training_func(model, optimizers, training_step, scheduler, max_steps, max_epochs):
        for optimizer in optimizers:
            optimizer.step()

    parameters = list(task.model.parameters())
    evaluator = task.evaluator(
        training_func=training_func,
        optimizers=[mp.trace(torch.optim.SGD)(parameters[:2], lr=0.1), mp.trace(torch.optim.SGD)(parameters[2:], lr=1)],
    )
    evaluator.bind(task.model)
    evaluator.before_optimizer_step(lambda: calls.append("before"))
    evaluator.after_optimizer_step(lambda: calls.append("after"))
    kept = list(evaluator.optimizers())
    evaluator.train(max_epochs=1)
    assert calls == ["before", "after", "after"]
    evaluator.unbind()
    for optimizer in kept:
        optimizer.step()
    assert len(calls) == 3


def test_state_goes_through_weights_only_and_restores_training(task):
    """Optimizers and schedulers, MultiStepLR's Counter and LambdaLR's lambda included, go on where they were."""

    def make():
        sgd = mp.trace(torch.optim.SGD)(task.model.parameters(), lr=1.0, momentum=0.9)
        steps = mp.trace(lr_scheduler.MultiStepLR)(sgd, milestones=[1, 1, 3], gamma=0.5)
        scaled = mp.trace(lr_scheduler.LambdaLR)(sgd, lr_lambda=lambda epoch: 1.0)

        def training_func(model, optimizer, training_step, schedulers, max_steps, max_epochs):
            task.training_func(model, optimizer, training_step, schedulers[0], max_steps, max_epochs)

        evaluator = task.evaluator(training_func=training_func, optimizers=sgd, lr_schedulers=[steps, scaled])
        evaluator.bind(task.model)
        return evaluator

    first = make()
    first.train(max_epochs=2)
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second = make()
    second.load_state_dict(torch.load(buffer, weights_only=True))
    one, two = next(first.optimizers()), next(second.optimizers())
    assert two.param_groups[0]["lr"] == one.param_groups[0]["lr"] == 0.25
    for a, b in zip(one.state.values(), two.state.values(), strict=True):
        assert torch.equal(a["momentum_buffer"], b["momentum_buffer"])
    second.train(max_epochs=1)
    assert two.param_groups[0]["lr"] == 0.125


def test_what_is_no_plain_data_is_left_out_of_the_state(task):
    """Functions go; places in lists stay; a setting that was left out stays as the rebuilt optimizer has it."""
    kept = plain({"a": [1, print, torch.ones(1)], "b": print, "c": np.float64(0.5), 3: (1, None)})
    assert kept["a"][:2] == [1, None]
    assert kept.keys() == {"a", "c", 3}
    assert type(kept["c"]) is float
    assert kept[3] == (1, None)
    sgd = torch.optim.SGD([{"params": task.model.parameters(), "rule": print}], lr=0.5)
    saved = plain(sgd.state_dict())
    assert "rule" not in saved["param_groups"][0]
    sgd.param_groups[0]["lr"] = 0.1
    load_optimizer(sgd, saved)
    assert sgd.param_groups[0]["lr"] == 0.5
    assert sgd.param_groups[0]["rule"] is print


def test_evaluation_leaves_modes_gradients_and_flags_as_they_were(task):
    """Scored in eval mode without gradients; a frozen layer's mode and requires_grad survive, also a raise."""
    seen = []

    def evaluating_func(model):
        seen.append((model.training, model[1].training, torch.is_grad_enabled()))
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        if len(seen) == 2:
            raise ValueError("broken")
        return 1

    task.model.train()
    task.model[1].eval()
    task.model[0].bias.requires_grad_(False)
    evaluator = task.evaluator(evaluating_func=evaluating_func)
    assert evaluator.evaluate(task.model) == {"default": 1.0}
    with pytest.raises(UserCodeError, match=r"evaluating_func raised ValueError: broken \(.*test_torch_evaluator"):
        evaluator.evaluate(task.model)
    assert seen == [(False, False, False)] * 2
    assert task.model.training
    assert not task.model[1].training
    assert torch.is_grad_enabled()
    assert [p.requires_grad for p in task.model.parameters()] == [True, False, True, True, True, True]


def test_an_exception_in_training_names_the_users_line(task):
    """The message holds type, text and file:line of the user's code, the cause is the original; exit() is caught."""

    def training_func(*args):
        raise KeyError("no such batch")

    evaluator = task.evaluator(training_func=training_func)
    evaluator.bind(task.model)
    with pytest.raises(UserCodeError, match=r"training_func raised KeyError: 'no such batch' \(.*\.py:\d+\)") as info:
        evaluator.train(max_epochs=1)
    assert isinstance(info.value.__cause__, KeyError)

    evaluator = task.evaluator(training_func=lambda *args: exit(0))
    evaluator.bind(task.model)
    with pytest.raises(UserCodeError, match="raised SystemExit"):
        evaluator.train(max_epochs=1)


def test_what_is_missing_or_wrong_is_said_when_it_is_made(task):
    """Arguments that cannot work together are refused at construction."""
    with pytest.raises(InvalidModelError, match="no training_step"):
        mp.TorchEvaluator(task.training_func, lambda params: torch.optim.SGD(params))
    with pytest.raises(InvalidModelError, match="no optimizers"):
        mp.TorchEvaluator(task.training_func, None, task.training_step)
    with pytest.raises(InvalidModelError, match=r"holds a SGD that was not traced.*mp\.trace\(SGD\)"):
        task.evaluator(optimizers=torch.optim.SGD(task.model.parameters()))
    with pytest.raises(InvalidModelError, match="evaluating_func must be a function, not a float"):
        mp.TorchEvaluator(evaluating_func=0.5)
    only = mp.TorchEvaluator(evaluating_func=task.evaluating_func)
    assert not only.can_train
    assert only.can_evaluate


def test_a_scheduler_of_a_foreign_optimizer_is_refused(task):
    """A traced scheduler must belong to one of the evaluator's optimizers."""
    other = mp.trace(torch.optim.SGD)(task.model.parameters(), lr=0.1)
    evaluator = task.evaluator(lr_schedulers=mp.trace(lr_scheduler.ExponentialLR)(other, gamma=0.1))
    with pytest.raises(InvalidModelError, match="ExponentialLR belongs to an optimizer that is not among"):
        evaluator.bind(task.model)


def test_an_optimizer_factory_must_return_an_optimizer(task):
    """The message says what came instead."""
    evaluator = task.evaluator(optimizers=lambda params: None)
    with pytest.raises(InvalidModelError, match="the optimizer function returned a NoneType"):
        evaluator.bind(task.model)


def test_names_serve_a_later_model_with_other_parameters(task):
    """What came out of one compression can go into the next with the same evaluator."""
    evaluator = task.evaluator()
    evaluator.record_parameter_names(task.model)
    later = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2))
    evaluator.record_parameter_names(later)
    evaluator.bind(later)
    assert next(evaluator.optimizers()).param_groups[0]["params"][0] is later[0].weight
