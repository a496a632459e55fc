"""The finetune stage: one training step."""

from __future__ import annotations

from modelpress.api.v1alpha1 import Finetune
from modelpress_runner.methods.context import Step
from modelpress_runner.stages.base import StageKind
from modelpress_runner.training.step import Training


class FinetuneStage(StageKind[Finetune]):
    """Trains what the stages before have left."""

    name = "finetune"
    recovers = True

    def steps(self, block: Finetune, index: int) -> list[Step]:
        """All of its training in one step, with one optimizer throughout."""
        return [Training("finetune", epochs=block.epochs, max_steps=block.max_steps)]


KIND = FinetuneStage()
