"""Finetuning by a LightningEvaluator is the user's own script."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
from plain_lightning import ARGUMENTS, LightningScript

import modelpress as mp
from modelpress_runner.testing.parity import TrainingParity


class TestLightning(TrainingParity):
    """One fit with accumulated and clipped gradients and a rate by epochs."""

    @pytest.fixture
    def make(self):
        def make():
            script = LightningScript()
            trainer = mp.trace(pl.Trainer)(**ARGUMENTS)
            return script, mp.LightningEvaluator(trainer, script.data_module, script.data.tensors[0][:1])

        return make
