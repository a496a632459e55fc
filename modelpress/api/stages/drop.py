"""The dropLayers and dropExperts stages: what can be wrong with their entries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

from modelpress.api.errors import Problem
from modelpress.api.v1alpha1 import DropExperts, DropLayers

from .base import StageRules
from .selectors import selector_problems

B = TypeVar("B", DropLayers, DropExperts)


class _DropRules(StageRules[B], Generic[B]):
    what = ""

    def problems(self, block: B, path: str) -> Iterator[Problem]:
        """Of its entries and rounds."""
        for index, entry in enumerate(block.config_list or ()):
            yield from selector_problems(entry, f"{path}.configList[{index}]")
        if block.count is not None and block.rounds > block.count:
            message = f"in {block.rounds} rounds {block.count} cannot go in equal parts"
            yield Problem(f"{path}.rounds", message, f"give at most {block.count}")

    def problems_in_loop(self, block: B, path: str) -> Iterator[Problem]:
        """A loop of the user's own has the parameters in its optimizer."""
        message = f"the script trains in a loop of its own, whose optimizer holds the {self.what}'s parameters"
        yield Problem(path, message, "let model.entrypoint give the model, or train behind another job's result")

    def training(self, block: B) -> Iterator[str]:
        """Training behind rounds."""
        if block.train is not None:
            yield ".train"

    def sentence(self, block: Mapping[str, Any]) -> str:
        """How many went, or how far."""
        each = " of each layer" if self.what == "expert" else ""
        if (count := block.get("count")) is not None:
            return f"without {count} {self.what}{'' if count == 1 else 's'}{each}"
        if (share := block.get("sparsity")) is not None:
            return f"without {share:.0%} of its {self.what}s"
        budget = block["budget"]
        ratio = budget.get("maxRatio")
        amount = (
            f"{budget.get('max'):g} {budget['metric']}" if ratio is None else f"{ratio:.0%} of its {budget['metric']}"
        )
        return f"cut by whole {self.what}s to {amount}"


class DropLayersRules(_DropRules[DropLayers]):
    """Whole layers go."""

    name = "dropLayers"
    block = DropLayers
    runner = "modelpress_runner.stages.drop:LAYERS"
    what = "layer"

    def problems(self, block: DropLayers, path: str) -> Iterator[Problem]:
        """As of the others, and what scores look at."""
        yield from super().problems(block, path)
        if block.by != "influence" and block.scores is not None:
            message = f"{block.by} tries the model without each layer, so there are no scores to collect"
            yield Problem(f"{path}.scores", message, "remove it, or write 'by: influence'")


class DropExpertsRules(_DropRules[DropExperts]):
    """Whole experts go."""

    name = "dropExperts"
    block = DropExperts
    runner = "modelpress_runner.stages.drop:EXPERTS"
    what = "expert"
