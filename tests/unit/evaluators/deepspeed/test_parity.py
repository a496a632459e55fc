"""Finetuning by a DeepspeedTorchEvaluator is the user's own script, in every stage of ZeRO."""

from __future__ import annotations

import pytest
from plain_scripts import EngineScript

import modelpress as mp
from modelpress_runner.testing.parity import TrainingParity


class _Stage(TrainingParity):
    stage = 0

    @pytest.fixture
    def make(self):
        def make():
            script = EngineScript(self.stage)
            evaluator = mp.DeepspeedTorchEvaluator(
                script.training_func, script.training_step, script.config, script.factory, script.schedule,
                dummy_input=script.data.tensors[0][:1], evaluating_func=script.accuracy,
            )  # fmt: skip
            return script, evaluator

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
    """Weights in parts, too."""

    stage = 3
