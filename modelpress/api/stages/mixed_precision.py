"""The mixedPrecision stage: what can be wrong with its entries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from modelpress.api.errors import Problem
from modelpress.api.v1alpha1 import MixedPrecision

from .base import StageRules
from .selectors import selector_problems


class MixedPrecisionRules(StageRules[MixedPrecision]):
    """Layers compute in half precision from here on."""

    name = "mixedPrecision"
    block = MixedPrecision
    runner = "modelpress_runner.stages.mixed_precision:KIND"
    freezes = True

    def problems(self, block: MixedPrecision, path: str) -> Iterator[Problem]:
        """Of its entries."""
        for index, entry in enumerate(block.config_list or ()):
            yield from selector_problems(entry, f"{path}.configList[{index}]")

    def problems_in_loop(self, block: MixedPrecision, path: str) -> Iterator[Problem]:
        """A loop of the user's own trains in the precision that it chooses."""
        message = "the script trains in a loop of its own, in the precision that it chooses"
        yield Problem(path, message, "remove it, and use torch.autocast there")

    def sentence(self, block: Mapping[str, Any]) -> str:
        """To which numbers."""
        return f"converted to {block.get('dtype') or MixedPrecision().dtype} in its layers"
