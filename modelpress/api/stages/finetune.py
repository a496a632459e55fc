"""The finetune stage: training as it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from modelpress.api.errors import Problem
from modelpress.api.v1alpha1 import Finetune

from . import length
from .base import StageRules


class FinetuneRules(StageRules[Finetune]):
    """Trains the model that the stages before it have made."""

    name = "finetune"
    block = Finetune
    runner = "modelpress_runner.stages.finetune:KIND"

    def problems_in_loop(self, block: Finetune, path: str) -> Iterator[Problem]:
        """A loop of the user's own trains already."""
        message = "the script trains in a loop of its own, so this stage has nothing to do"
        yield Problem(path, message, "remove it, and train as long in the script")

    def training(self, block: Finetune) -> Iterator[str]:
        """All of it."""
        yield ""

    def sentence(self, block: Mapping[str, Any]) -> str:
        """For how long."""
        return f"finetuned{length.in_words(block)}"
