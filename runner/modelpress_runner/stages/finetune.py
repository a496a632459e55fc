"""The finetune stage: one training step."""

from __future__ import annotations

from modelpress.api.v1alpha1 import Finetune
from modelpress_runner.methods.context import Step, Training


def steps(finetune: Finetune, index: int) -> list[Step]:
    """The steps of stage `index`: all of its training in one, with one optimizer throughout."""
    return [Training("finetune", epochs=finetune.epochs, max_steps=finetune.max_steps)]
