"""An evaluator that spreads parameters over ranks: masks, checks and scores see whole parameters, and only inside."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn

import modelpress as mp
from modelpress.api.v1alpha1 import Stage
from modelpress_runner.engine.run import run_stages
from modelpress_runner.errors import CompressionError
from modelpress_runner.subject.subject import Subject
from modelpress_runner.testing.evaluators import EvaluatorContract
from modelpress_runner.training.run import training_session


class PartitionedEvaluator(mp.TorchEvaluator):
    """Parameters of the bound model are empty but in forward, backward and step, and within gathered_parameters.

    As in the third stage of ZeRO: what is written into them elsewhere, or without `modify`, is lost.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._parts: dict[nn.Parameter, torch.Tensor] = {}
        self._whole = 0

    def bind(self, model):
        super().bind(model)
        self._parts = {parameter: parameter.data for parameter in model.parameters()}
        self._scatter()

    def unbind(self):
        for parameter, data in self._parts.items():
            parameter.data = data
        self._parts = {}
        super().unbind()

    def _scatter(self):
        for parameter in self._parts:
            parameter.data = torch.empty(0)

    @contextlib.contextmanager
    def _gathered(self, keep):
        """Whole parameters; those of outside afterwards."""
        outside = {parameter: parameter.data for parameter in self._parts}
        for parameter, data in self._parts.items():
            parameter.data = data if keep else data.clone()
        self._whole += 1
        try:
            yield
        finally:
            self._whole -= 1
            for parameter, data in outside.items():
                if parameter in self._parts:
                    parameter.data = data

    @contextlib.contextmanager
    def gathered_parameters(self, modify=False):
        with self._gathered(modify):
            yield

    def train(self, max_steps=None, max_epochs=None):
        with self._gathered(True):
            super().train(max_steps, max_epochs)

    def evaluate(self, model=None):
        with self._gathered(True):
            return super().evaluate(model)

    def _apart(self, hook):
        def called():
            outside = {parameter: parameter.data for parameter in self._parts}
            gradients = {parameter: parameter.grad for parameter in self._parts}
            for parameter in self._parts:
                parameter.grad = None
            self._gradients = gradients
            self._scatter()
            try:
                hook()
            finally:
                for parameter, data in outside.items():
                    parameter.data = data
                    parameter.grad = gradients[parameter]

        return called

    def before_optimizer_step(self, hook):
        super().before_optimizer_step(self._apart(hook))

    def after_optimizer_step(self, hook):
        super().after_optimizer_step(self._apart(hook))

    def gradient(self, parameter):
        return self._gradients[parameter]


def partitioned(task, **changes) -> PartitionedEvaluator:
    """The task's evaluator with partitioned parameters."""
    given = {
        "training_func": task.training_func,
        "optimizers": mp.trace(torch.optim.SGD)(task.model.parameters(), lr=0.1, momentum=0.9),
        "training_step": task.training_step,
        "dummy_input": task.x[:1],
        "evaluating_func": task.evaluating_func,
    }
    return PartitionedEvaluator(**(given | changes))


class TestContract(EvaluatorContract):
    """It keeps the contract itself, so what the tests below find is not its own fault."""

    @pytest.fixture
    def make(self, task):
        def make():
            fresh = type(task)()
            return partitioned(fresh), fresh.model

        return make


def test_parameters_are_empty_outside(task):
    """The double does what it is for."""
    evaluator = partitioned(task)
    evaluator.bind(task.model)
    assert task.model[0].weight.shape == (0,)
    with evaluator.gathered_parameters():
        task.model[0].weight.data.zero_()
    with evaluator.gathered_parameters():
        assert task.model[0].weight.abs().max() > 0
    with evaluator.gathered_parameters(modify=True):
        task.model[0].weight.data.zero_()
    evaluator.unbind()
    assert task.model[0].weight.abs().max() == 0


def test_training_with_masks_ends_like_training_of_whole_parameters(task):
    """Masked weights are zero in every step, the others are those of an ordinary evaluator, bit for bit."""
    results = []
    mask = torch.ones(6, 4)
    mask[2:, ::2] = 0
    for make in (type(task).evaluator, partitioned):
        fresh = type(task)()
        seen = []

        def training_step(batch, model, fresh=fresh, seen=seen):
            seen.append((model[0].weight * (1 - mask)).abs().max().item())
            return fresh.training_step(batch, model)

        torch.manual_seed(0)
        evaluator = make(fresh, training_step=training_step)
        with training_session(fresh.model, evaluator, {"0": {"weight": mask}}) as session:
            session.train(max_epochs=2)
        assert set(seen) == {0.0}
        results.append(fresh.model.state_dict())
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_checks_see_whole_parameters(task):
    """Training that moves nothing, and weights that are not finite, are found out."""
    with (
        pytest.raises(CompressionError, match="no weight: it made no optimizer step"),
        training_session(task.model, partitioned(task, training_func=lambda *args: None), {}) as session,
    ):
        session.train(max_epochs=1)
    wild = partitioned(task, optimizers=lambda params: torch.optim.SGD(params, lr=1e30))
    with (
        pytest.raises(CompressionError, match=r"training made \d\.\w+ NaN or infinite"),
        training_session(task.model, wild, {}) as session,
    ):
        session.train(max_epochs=2)


def test_a_recipe_gives_what_it_gives_with_whole_parameters(task):
    """Scores by gradients, masks, rounds and finetuning: same masks, same weights."""
    recipe = [
        {
            "prune": {
                "algorithm": "taylor", "sparsity": 0.5, "configList": [{"opNames": ["0"]}], "speedup": False,
                "scores": {"steps": 3}, "schedule": {"type": "linear", "rounds": 2, "train": {"epochs": 1}},
            }
        },
        {"finetune": {"maxSteps": 4}},
    ]  # fmt: skip
    outcomes = []
    for make in (type(task).evaluator, partitioned):
        fresh = type(task)()
        stages = [Stage.model_validate(stage) for stage in recipe]
        outcomes.append(run_stages(Subject(fresh.model, make(fresh)), stages, seed=5))
    one, two = outcomes
    assert torch.equal(one.masks["0"]["weight"], two.masks["0"]["weight"])
    assert int((one.masks["0"]["bias"] == 0).sum()) == 3
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, two.model.state_dict()[name]), name
