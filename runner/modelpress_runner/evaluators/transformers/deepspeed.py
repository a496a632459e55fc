"""A Hugging Face Trainer whose arguments name a DeepSpeed configuration."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import nn
from transformers import Trainer

from modelpress_runner.evaluators.deepspeed import group
from modelpress_runner.evaluators.deepspeed.engine import EngineHandle
from modelpress_runner.evaluators.framework_residue import FrameworkResidue
from modelpress_runner.evaluators.transformers.chunks import ChunkedTrainer


class PartitionedTrainer:
    """The DeepSpeed engine of a Trainer, for as long as it is bound.

    Args:
        trainer: made for `model`, not trained yet.
        model: the model.
        footprint: of the model before.
    """

    handle: EngineHandle

    def __init__(self, trainer: Trainer, model: nn.Module, residue: FrameworkResidue) -> None:
        self._trainer, self._model, self._residue = trainer, model, residue
        # The Trainer fills in what is "auto" for this model and this length of training; the next ones are others.
        self._config = trainer.accelerator.state.deepspeed_plugin.hf_ds_config
        self._given = copy.deepcopy(self._config.config)
        self._group = group.ProcessGroup()
        self._made = False

    def prepare(self, make: Callable[[], ChunkedTrainer]) -> ChunkedTrainer:
        """The prepared Trainer that `make` gives, whose engine is `handle` from now on."""
        made: list[ChunkedTrainer] = []

        def engine() -> object:
            with group.quiet():
                made.append(make())
            return made[0].wrapped

        self.handle = EngineHandle(self._model, engine, self._residue)
        self._made = True
        return made[0]

    quiet = staticmethod(group.quiet)

    def close(self) -> None:
        """Ends the engine; the model is whole again."""
        try:
            if self._made:
                self.handle.hand_back()
        finally:
            self._trainer.deepspeed = None
            self._config.config = self._given
            self._group.close()
