"""TransformersEvaluator keeps the contract of evaluators: as a traced Trainer, and as a function with options."""

from __future__ import annotations

import pytest
import torch
from transformers import TrainerCallback

import modelpress as mp
from modelpress_runner.testing.evaluators import EvaluatorContract


class Breaking(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        raise ValueError("broken")


class TestTracedTrainer(EvaluatorContract):
    """Dropout, the Trainer's own optimizer and its linear decay."""

    @pytest.fixture
    def make(self, new_task):
        def make():
            task = new_task(dropout=0.1)
            return task.evaluator(), task.model

        return make

    @pytest.fixture
    def broken(self, new_task):
        def make():
            task = new_task()
            return task.evaluator(callbacks=[Breaking()]), task.model

        return make

    def watched(self, evaluator):
        trainers = [evaluator._source.trainer, evaluator._scorer]
        return [part for each in trainers if each is not None for part in (each, each.accelerator)]


class TestTrainerFunction(EvaluatorContract):
    """Accumulated gradients, mixed precision and an optimizer and schedule of the user's own."""

    @pytest.fixture
    def make(self, new_task):
        def make():
            task = new_task(dropout=0.1)

            def trainer(model):
                sgd = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
                steps = torch.optim.lr_scheduler.StepLR(sgd, step_size=3, gamma=0.9)
                arguments = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3, "bf16": True}
                return task.trainer(model, arguments=arguments, optimizers=(sgd, steps))

            evaluator = mp.TransformersEvaluator(trainer, dummy_input=(task.data.x[:1],))
            return evaluator, task.model

        return make
