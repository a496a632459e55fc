"""Every form in which TorchEvaluator takes losses, scores, optimizers and schedulers; what it says to wrong ones."""

from __future__ import annotations

import functools
from collections import OrderedDict, namedtuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

import modelpress as mp
from modelpress.api.v1alpha1 import Stage
from modelpress_runner.engine.run import run_stages
from modelpress_runner.errors import InvalidModelError, InvalidSpecError, UserCodeError
from modelpress_runner.subject.subject import Subject
from modelpress_runner.training.run import training_session

Output = namedtuple("Output", "loss logits")


def sgd(params):
    """A factory."""
    return torch.optim.SGD(params, lr=0.1)


# Losses ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [
        lambda loss: loss,
        lambda loss: (loss, "logits"),
        lambda loss: [loss, "logits"],
        lambda loss: {"loss": loss, "logits": 1},
        lambda loss: OrderedDict(loss=loss),
        lambda loss: Output(loss, "logits"),
    ],
    ids=["tensor", "tuple", "list", "dict", "ordered dict", "named tuple"],
)
def test_training_funcs_get_the_output_in_the_form_that_the_step_gave(task, wrap):
    """A loop that knows its training step's output finds the loss where it was, patched, and trains."""
    given = []

    def loss_of(output):
        return output["loss"] if isinstance(output, dict) else output if torch.is_tensor(output) else output[0]

    def training_func(model, optimizer, training_step, scheduler, max_steps, max_epochs):
        output = training_step((task.x, task.y), model)
        given.append(output)
        optimizer.zero_grad()
        loss_of(output).backward()
        optimizer.step()

    evaluator = task.evaluator(
        training_func=training_func, training_step=lambda batch, model: wrap(task.training_step(batch, model))
    )
    evaluator.bind(task.model)
    losses = []
    evaluator.patch_loss(lambda loss, batch: losses.append(loss.item()) or loss * 3)
    before = task.model[0].weight.detach().clone()
    evaluator.train(max_epochs=1)
    assert type(given[0]) is type(wrap(torch.tensor(0.0)))
    assert loss_of(given[0]).item() == pytest.approx(3 * losses[0])
    assert not torch.equal(task.model[0].weight, before)


def test_training_steps_may_take_more_arguments(task):
    """What the loop passes on reaches the training step: positional and by name."""
    seen = []

    def training_step(batch, model, scale, *, shift=0.0):
        seen.append((scale, shift))
        return task.training_step(batch, model) * scale + shift

    def training_func(model, optimizer, training_step, scheduler, max_steps, max_epochs):
        training_step((task.x, task.y), model, 2.0, shift=1.0)

    evaluator = task.evaluator(training_func=training_func, training_step=training_step)
    evaluator.bind(task.model)
    evaluator.train(max_steps=1)
    assert seen == [(2.0, 1.0)]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (None, "returned NoneType without a loss tensor; return the loss, a tuple with the loss first, or a dict"),
        (0.5, "returned float without a loss tensor"),
        ((0.5, torch.ones(1)), "returned tuple without a loss tensor"),
        ((), "returned tuple without a loss tensor"),
        ({"logits": 1, "Loss": 2}, "returned a dict with 'logits', 'Loss'; it needs the key 'loss'"),
        ({}, "returned a dict with no keys; it needs the key 'loss'"),
        ({"loss": 0.5}, "returned dict without a loss tensor"),
    ],
)
def test_a_training_step_without_a_loss_is_told_what_is_expected(task, output, message):
    """The message comes as it is, not wrapped into one about training_func."""
    evaluator = task.evaluator(training_step=lambda batch, model: output)
    evaluator.bind(task.model)
    with pytest.raises(InvalidModelError, match=f"^training_step {message}"):
        evaluator.train(max_epochs=1)


# Scores ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "score"),
    [
        (0.25, {"default": 0.25}),
        (3, {"default": 3.0}),
        (torch.tensor(0.5), {"default": 0.5}),
        (torch.tensor(7), {"default": 7.0}),
        (np.float32(0.5), {"default": 0.5}),
        ({"default": 0.5, "loss": torch.tensor(2)}, {"default": 0.5, "loss": 2.0}),
    ],
    ids=["float", "int", "tensor", "int tensor", "numpy", "dict"],
)
def test_scores_are_numbers_or_dicts_with_a_default(task, value, score):
    """Whatever the form, the score is a dict of floats."""
    found = task.evaluator(evaluating_func=lambda model: value).evaluate(task.model)
    assert found == score
    assert all(type(number) is float for number in found.values())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, r"returned nothing \(None\); return a number, or a dict with the key 'default'"),
        ("0.5", "returned a str; return a number"),
        (True, "returned a bool; return a number"),
        ([0.5], "returned a list; return a number"),
        (torch.ones(1), r"returned a tensor of shape \(1,\); give a single number"),
        ({"accuracy": 0.5}, "returned 'accuracy' but no key 'default'; name the score 'default'"),
        ({}, "returned nothing but no key 'default'"),
        ({"default": "good"}, "metric 'default', returned a str"),
        ({"default": 1, "macs": 5}, "returned 'macs', which modelpress measures itself; rename it"),
        (float("nan"), "returned nan; a metric must be finite"),
    ],
)
def test_what_is_no_score_is_told_what_is_expected(task, value, message):
    """One sentence that begins with the function's name."""
    with pytest.raises(InvalidModelError, match=f"^evaluating_func,? ?{message}"):
        task.evaluator(evaluating_func=lambda model: value).evaluate(task.model)


# Optimizers -----------------------------------------------------------------------------------------------------------


def test_optimizers_come_traced_as_factories_and_mixed(task):
    """training_func gets one for one and a list for a list or tuple; a class is a factory; partials are functions."""
    seen = []

    def training_func(model, optimizers, *rest):
        seen.append(optimizers)

    parameters = list(task.model.parameters())
    traced = mp.trace(torch.optim.SGD)(parameters[:2], lr=0.5)
    forms = [
        traced,
        sgd,
        torch.optim.Adam,
        functools.partial(torch.optim.RMSprop, lr=0.3),
        mp.trace(torch.optim.Adagrad),
        [traced],
        (traced, sgd),
    ]
    for form in forms:
        evaluator = task.evaluator(training_func=training_func, optimizers=form)
        evaluator.bind(task.model)
        evaluator.train(max_epochs=1)
        evaluator.unbind()
    kinds = [type(each).__name__ for each in seen]
    assert kinds == ["SGD", "SGD", "Adam", "RMSprop", "Adagrad", "list", "list"]
    assert [len(each) for each in seen[5:]] == [1, 2]
    assert len(seen[0].param_groups[0]["params"]) == 2
    assert len(seen[1].param_groups[0]["params"]) == 6


def test_parameter_groups_are_found_again_in_a_smaller_model(task):
    """Groups with rates of their own hold the same parameters, by name, of the shrunk model."""
    adam = mp.trace(torch.optim.Adam)(
        [{"params": task.model[0].parameters(), "lr": 0.5}, {"params": [task.model[3].bias], "lr": 0.25}], lr=0.1
    )
    evaluator = task.evaluator(optimizers=adam)
    evaluator.record_parameter_names(task.model)
    small = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2))
    evaluator.bind(small)
    (optimizer,) = evaluator.optimizers()
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.25]
    assert optimizer.param_groups[0]["params"][0] is small[0].weight
    assert optimizer.param_groups[1]["params"][0] is small[3].bias


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (0.1, "optimizers holds a float that was not traced"),
        ("sgd", "optimizers holds a str that was not traced"),
        ([None], "optimizers holds a NoneType that was not traced"),
        ([], "has a training_func but no optimizers; training needs both"),
        (lambda task: torch.optim.SGD(task.model.parameters()), r"make it with mp\.trace\(SGD\)\(\.\.\.\) or give a"),
        (lambda task: [sgd, torch.optim.Adam(task.model.parameters())], r"holds a Adam .* mp\.trace\(Adam\)"),
    ],
)
def test_what_cannot_be_an_optimizer_is_refused_when_it_is_given(task, wrong, message):
    """With what would do in its place."""
    given = wrong(task) if callable(wrong) else wrong
    with pytest.raises(InvalidModelError, match=message):
        task.evaluator(optimizers=given)


def test_a_factory_that_fails_is_told_apart_from_one_that_gives_nothing(task):
    """The user's own exception with its line; or what came instead of an optimizer."""

    def broken(params):
        raise ValueError("no such rule")

    evaluator = task.evaluator(optimizers=broken)
    with pytest.raises(
        UserCodeError, match=r"making the optimizers again raised ValueError: no such rule \(.*\.py:\d+"
    ):
        evaluator.bind(task.model)
    evaluator = task.evaluator(optimizers=lambda params: list(params))
    with pytest.raises(InvalidModelError, match=r"returned a list; return a torch\.optim\.Optimizer"):
        evaluator.bind(task.model)
    evaluator.unbind()
    with pytest.raises(RuntimeError, match="not bound"):
        _ = evaluator.model


# Schedulers -----------------------------------------------------------------------------------------------------------


def test_schedulers_come_traced_as_factories_and_mixed(task):
    """(optimizer), (params, optimizer), partials and classes; one for one, a list for a list, None for none."""
    seen = []

    def training_func(model, optimizers, training_step, schedulers, *rest):
        seen.append(schedulers)

    traced = mp.trace(torch.optim.SGD)(task.model.parameters(), lr=1.0)
    forms = [
        (traced, mp.trace(lr_scheduler.StepLR)(traced, step_size=1)),
        (sgd, lambda optimizer: lr_scheduler.StepLR(optimizer, 1)),
        (sgd, lambda params, optimizer: lr_scheduler.ConstantLR(optimizer, factor=1 / len(params))),
        (sgd, lambda *given: lr_scheduler.StepLR(given[0], 1)),
        (sgd, functools.partial(lr_scheduler.StepLR, step_size=2)),
        (sgd, lr_scheduler.ConstantLR),
        (sgd, lr_scheduler.ReduceLROnPlateau),
        ([sgd], [lambda optimizer: lr_scheduler.StepLR(optimizer, 1)]),
        ([traced, sgd], (lr_scheduler.ConstantLR, lambda params, optimizer: lr_scheduler.StepLR(optimizer, 1))),
        (sgd, None),
    ]
    for optimizers, schedulers in forms:
        evaluator = task.evaluator(training_func=training_func, optimizers=optimizers, lr_schedulers=schedulers)
        evaluator.bind(task.model)
        evaluator.train(max_epochs=1)
        made = list(evaluator.optimizers())
        for number, scheduler in enumerate(seen[-1] if isinstance(seen[-1], list) else [seen[-1]]):
            assert scheduler is None or scheduler.optimizer is made[number]
        evaluator.unbind()
    kinds = [type(each).__name__ for each in seen]
    assert kinds[:5] == ["StepLR", "StepLR", "ConstantLR", "StepLR", "StepLR"]
    assert kinds[5:] == ["ConstantLR", "ReduceLROnPlateau", "list", "list", "NoneType"]


def test_several_schedulers_of_one_optimizer_are_all_made_from_it(task):
    """Warm-up and decay, as functions, belong to the only optimizer there is."""
    evaluator = task.evaluator(
        optimizers=sgd,
        lr_schedulers=[
            lambda optimizer: lr_scheduler.LinearLR(optimizer, start_factor=0.5),
            lambda optimizer: lr_scheduler.ExponentialLR(optimizer, gamma=0.9),
        ],
    )
    evaluator.bind(task.model)
    (optimizer,) = evaluator.optimizers()
    assert optimizer.param_groups[0]["lr"] == 0.05


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (0.9, "lr_schedulers holds a float that was not traced"),
        (
            lambda task: lr_scheduler.StepLR(sgd(list(task.model.parameters())), 1),
            r"lr_schedulers holds a StepLR that was not traced.*mp\.trace\(StepLR\)",
        ),
        (lambda task: lambda: None, r"must take \(optimizer\) or \(params, optimizer\); <lambda> takes 0 arguments"),
        (lambda task: lambda model, params, optimizer: None, "<lambda> takes 3 arguments"),
    ],
)
def test_what_cannot_be_a_scheduler_is_refused_when_it_is_given(task, wrong, message):
    """With what would do in its place."""
    given = wrong(task) if callable(wrong) else wrong
    with pytest.raises(InvalidModelError, match=message):
        task.evaluator(lr_schedulers=given)


def test_schedulers_that_belong_nowhere_are_refused(task):
    """Without optimizers; fewer functions than optimizers; a function that returns no scheduler."""
    with pytest.raises(InvalidModelError, match="lr_schedulers but no optimizers; give them too"):
        mp.TorchEvaluator(lr_schedulers=lambda optimizer: None)
    with pytest.raises(InvalidModelError, match=r"2 optimizers and 1 lr_schedulers.*give as many functions"):
        task.evaluator(optimizers=[sgd, sgd], lr_schedulers=[lambda optimizer: None])
    evaluator = task.evaluator(optimizers=sgd, lr_schedulers=lambda optimizer: 0.9)
    with pytest.raises(InvalidModelError, match=r"the scheduler function returned a float; return a scheduler from"):
        evaluator.bind(task.model)


# Wrapped models -------------------------------------------------------------------------------------------------------


def test_a_wrapped_model_is_taken_out(task):
    """Names, masks and the result are those of the model inside, whoever is given the wrapper."""
    wrapped = nn.DataParallel(task.model)
    assert Subject(wrapped).model is task.model
    evaluator = task.evaluator()
    evaluator.record_parameter_names(wrapped)
    evaluator.bind(wrapped)
    assert evaluator.model is task.model
    evaluator.unbind()
    assert evaluator.evaluate(wrapped) == evaluator.evaluate(task.model)
    result = mp.compress(wrapped, [RECIPES["weights"], RECIPES["train"]], evaluator)
    assert type(result.model) is nn.Sequential
    assert result.masks.keys() == {"0"}
    assert result.metrics["compressed"]["parameters"] == 56


# What may be left out, and what may not -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["training_func", "training_step", "evaluating_func"])
def test_functions_must_be_functions(task, name):
    """The message names the argument and what came."""
    with pytest.raises(InvalidModelError, match=f"{name} must be a function, not a int"):
        task.evaluator(**{name: 3})


def test_what_parallel_may_be(task):
    """True, False or a dict of options."""
    with pytest.raises(InvalidModelError, match=r"parallel must be True, False or a dict for .*, not a str"):
        task.evaluator(parallel="ddp")


RECIPES = {
    "weights": {"prune": {"algorithm": "l1", "sparsity": 0.5, "configList": [{"opNames": ["0"]}], "speedup": False}},
    "shrink": {"prune": {"algorithm": "l1", "sparsity": 0.5, "configList": [{"opNames": ["0"]}]}},
    "train": {"finetune": {"maxSteps": 2}},
}


@pytest.mark.parametrize(
    ("recipe", "given"),
    [
        (["weights"], {}),
        (["shrink"], {"dummy_input"}),
        (["train"], {"training_func", "optimizers", "training_step"}),
        (["weights", "train"], {"training_func", "optimizers", "training_step"}),
    ],
)
def test_a_recipe_runs_with_what_it_needs_alone(task, recipe, given):
    """Everything else may be left out."""
    whole = {
        "training_func": task.training_func,
        "optimizers": sgd,
        "training_step": task.training_step,
        "dummy_input": task.x[:2],
    }
    evaluator = mp.TorchEvaluator(**{name: whole[name] for name in given})
    stages = [Stage.model_validate(RECIPES[name]) for name in recipe]
    assert len(run_stages(Subject(task.model, evaluator), stages, seed=0).stages) == len(recipe)


def test_what_a_later_stage_needs_is_missed_before_the_first_one_starts(task):
    """A shrink without dummy_input behind a training: nothing has been trained when the error comes."""
    evaluator = task.evaluator(dummy_input=None)
    stages = [Stage.model_validate(RECIPES[name]) for name in ("train", "shrink")]
    with pytest.raises(InvalidSpecError, match=r"^spec\.stages\[1\]\.prune\.shrink: shrinking needs a dummy_input"):
        run_stages(Subject(task.model, evaluator), stages, seed=0)
    assert task.calls == []


def test_an_evaluator_without_functions_says_what_it_needs(task):
    """Asked to train or to evaluate, it names the arguments."""
    empty = mp.TorchEvaluator()
    assert not empty.can_train
    assert not empty.can_evaluate
    empty.bind(task.model)
    assert list(empty.optimizers()) == []
    with pytest.raises(InvalidModelError, match="cannot train; give it training_func, optimizers and training_step"):
        empty.train(max_epochs=1)
    with pytest.raises(InvalidModelError, match="cannot evaluate; give it evaluating_func"):
        empty.evaluate()


class Plain:
    """Wraps an optimizer without torch's base class."""

    def __init__(self, inner):
        self.inner, self.param_groups, self.state, self.defaults = inner, inner.param_groups, {}, inner.defaults
        self.zero_grad, self.state_dict, self.load_state_dict = inner.zero_grad, inner.state_dict, inner.load_state_dict

    def step(self, closure=None):
        self.inner.step()


class Bare(Plain, torch.optim.Optimizer):
    """A subclass that leaves out Optimizer.__init__."""


class TwoSteps(torch.optim.Optimizer):
    """Is stepped by two methods of its own, as sharpness-aware minimization is."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})
        self.inner = torch.optim.SGD(self.param_groups, lr=lr, momentum=0.9)
        self.moves = []

    @torch.no_grad()
    def first_step(self):
        held = [p for group in self.param_groups for p in group["params"]]
        self.moves = [(p, 0.01 * p.grad) for p in held]
        for p, move in self.moves:
            p.add_(move)
        self.zero_grad()

    @torch.no_grad()
    def second_step(self):
        for p, move in self.moves:
            p.sub_(move)
        self.inner.step()
        self.zero_grad()


@pytest.mark.parametrize("kind", [Plain, Bare])
@pytest.mark.parametrize("traced", [True, False])
def test_wrapping_optimizers_train_with_masks_in_force(task, kind, traced):
    """With or without torch's base class: one step of the outermost is one step, and pruned weights stay zero."""
    if traced:
        made = mp.trace(kind)(mp.trace(torch.optim.SGD)(task.model.parameters(), lr=0.1, momentum=0.9))
    else:
        made = lambda params: kind(torch.optim.SGD(params, lr=0.1, momentum=0.9))  # noqa: E731
    seen = []

    def training_step(batch, model):
        seen.append(int(torch.count_nonzero(model[0].weight[2:])))
        return task.training_step(batch, model)

    mask = torch.ones(6, 4)
    mask[2:] = 0
    evaluator = task.evaluator(optimizers=made, training_step=training_step)
    with training_session(task.model, evaluator, {"0": {"weight": mask}}) as session:
        assert session.train(max_steps=6) == 6
    assert seen == [0] * 6
    assert task.model[0].weight[:2].abs().min() > 0


def test_an_optimizer_with_steps_of_its_own_trains_with_masks_in_force(task):
    """What counts is the step of the optimizer inside; the masks are in force before each first step."""
    seen = []

    def training_func(model, optimizer, training_step, scheduler, max_steps, max_epochs):
        for index in torch.arange(32).split(8):
            seen.append(int(torch.count_nonzero(model[0].weight[2:])))
            training_step((task.x[index], task.y[index]), model).backward()
            optimizer.first_step()
            training_step((task.x[index], task.y[index]), model).backward()
            optimizer.second_step()

    mask = torch.ones(6, 4)
    mask[2:] = 0
    made = mp.trace(TwoSteps)(task.model.parameters(), lr=0.1)
    evaluator = task.evaluator(training_func=training_func, optimizers=made)
    with training_session(task.model, evaluator, {"0": {"weight": mask}}) as session:
        assert session.train(max_steps=4) == 4
    assert seen == [0] * 4


def test_a_scheduler_in_the_optimizers_place_is_found_at_once(task):
    """And the other way round; the message says where it belongs."""
    sgd = mp.trace(torch.optim.SGD)(task.model.parameters(), lr=0.1)
    scheduler = mp.trace(torch.optim.lr_scheduler.StepLR)(sgd, step_size=1)
    with pytest.raises(InvalidModelError, match="optimizers holds a StepLR, which is a scheduler; give it as lr_sched"):
        task.evaluator(optimizers=scheduler)
    with pytest.raises(InvalidModelError, match="lr_schedulers holds a SGD, which is an optimizer; give it as optimiz"):
        task.evaluator(lr_schedulers=sgd)
