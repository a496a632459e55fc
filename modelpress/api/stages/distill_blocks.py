"""The distillBlocks stage: what can be wrong with its selectors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from modelpress.api.errors import Problem
from modelpress.api.v1alpha1 import DistillBlocks

from .base import StageRules
from .selectors import regex_error


class DistillBlocksRules(StageRules[DistillBlocks]):
    """Blocks learn from their twins in the dense model, one after another."""

    name = "distillBlocks"
    block = DistillBlocks
    runner = "modelpress_runner.stages.distill_blocks:KIND"

    def problems(self, block: DistillBlocks, path: str) -> Iterator[Problem]:
        """Of its regular expressions."""
        for number, text in enumerate(block.op_names_re or ()):
            if (error := regex_error(text)) is not None:
                where = f"{path}.opNamesRe[{number}]"
                yield Problem(where, f"{text!r} is no regular expression: {error}", "correct it")

    def problems_in_loop(self, block: DistillBlocks, path: str) -> Iterator[Problem]:
        """A loop of the user's own trains the whole model."""
        message = "the script trains in a loop of its own, and blocks learn outside of any"
        yield Problem(path, message, "write a distill stage, or let model.entrypoint give the model")

    def sentence(self, block: Mapping[str, Any]) -> str:
        """How, and for how long."""
        steps = block.get("steps") or DistillBlocks().steps
        return f"distilled block by block from the dense model, {steps} step{'' if steps == 1 else 's'} each"
