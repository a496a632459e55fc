"""Finetuning by a TorchEvaluator and by a CompressionModule is the user's own script."""

from __future__ import annotations

import pytest
import torch.nn.functional as F
from plain_scripts import EpochScript, LoopScript

import modelpress as mp
from modelpress_runner.subject.compression_module import subject_of
from modelpress_runner.testing.parity import TrainingParity


class TestTorchEvaluator(TrainingParity):
    """A loop with accumulated gradients and a rate by epochs, both made by mp.trace."""

    @pytest.fixture
    def make(self):
        def make():
            script = LoopScript()
            optimizer, scheduler = script.made(script.model, mp.trace)
            evaluator = mp.TorchEvaluator(
                script.training_func, optimizer, script.training_step, scheduler, script.data.tensors[0][:1],
                script.accuracy,
            )  # fmt: skip
            return script, evaluator

        return make


class TestCompressionModule(TrainingParity):
    """A function for one epoch."""

    supports_max_steps = False

    @pytest.fixture
    def make(self):
        def make():
            script = EpochScript()

            class Module(mp.CompressionModule):
                def model(self):
                    return script.model

                def evaluator(self):
                    return script.accuracy

                def optimizer_factory(self):
                    return script.factory

                def criterion(self):
                    return F.cross_entropy

                def post_compress_finetuning_trainer(self, algorithm_name):
                    return script.trainer

            return script, subject_of(Module()).evaluator

        return make
