"""Finetuning by a TransformersEvaluator is the user's own script."""

from __future__ import annotations

import pytest
from plain_trainer import TrainerScript

import modelpress as mp
from modelpress_runner.testing.parity import TrainingParity


class TestTracedTrainer(TrainingParity):
    """The Trainer's own optimizer and schedule, accumulated gradients."""

    @pytest.fixture
    def make(self, tmp_path):
        def make():
            script = TrainerScript(tmp_path)
            trainer = script.trainer(make=mp.trace(script.kind()))
            return script, mp.TransformersEvaluator(trainer, script.data.tensors[0][:1])

        return make


class TestTrainerFunction(TrainingParity):
    """An optimizer and a schedule of the user's own, mixed precision."""

    @pytest.fixture
    def make(self, tmp_path):
        def make():
            script = TrainerScript(tmp_path, own=True, arguments={"bf16": True})
            return script, mp.TransformersEvaluator(script.trainer, script.data.tensors[0][:1])

        return make
