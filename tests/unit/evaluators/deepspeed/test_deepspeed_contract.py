"""DeepspeedTorchEvaluator keeps the contract of evaluators in every stage of ZeRO."""

from __future__ import annotations

import pytest

from modelpress_runner.testing.evaluators import EvaluatorContract


class _Stage(EvaluatorContract):
    stage = 0

    @pytest.fixture
    def make(self, new_task):
        def make():
            task = new_task(self.stage, dropout=0.1)
            return task.evaluator(), task.model

        return make

    @pytest.fixture
    def broken(self, new_task):
        def make():
            task = new_task(self.stage)

            def training_func(engine, optimizer, training_step, *args):
                engine.backward(training_step((task.x, task.y), engine))
                engine.step()
                raise ValueError("broken")

            return task.evaluator(training_func=training_func), task.model

        return make


class TestStage0(_Stage):
    """Everything on every rank."""


class TestStage1(_Stage):
    """The optimizer's state in parts."""

    stage = 1


class TestStage2(_Stage):
    """Gradients in parts, too."""

    stage = 2


class TestStage3(_Stage):
    """Weights in parts, too; a copy of a model whose weights are elsewhere cannot be scored."""

    stage = 3
    test_it_evaluates_between_calls = None
