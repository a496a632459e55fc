"""A kind of stage in one file whose steps depend on scores: how sparse each layer may be, by bisection, and a rewind.

It trains a little and keeps the early weights; trains on, and takes a score; bisects the sparsity of one layer after
the other for the highest at which the score stays within a bound; puts the early weights back under the masks that
were found (Frankle et al. 2020, arXiv 1912.05671); and trains again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field

from modelpress.api.stages import StageRules, register
from modelpress.api.v1alpha1 import ApiModel


class Search(ApiModel):
    """Looks for the sparsity of each layer."""

    layers: list[str] = Field(description="Names of modules, in the order in which they are searched.")
    bisections: Annotated[int, Field(ge=1, le=10)] = Field(default=3, description="Of each layer's sparsity.")
    within: float = Field(description="What the score may lose.")
    early_steps: Annotated[int, Field(ge=1)] = Field(default=2, description="Steps until the early weights.")
    max_steps: Annotated[int, Field(ge=1)] = Field(default=3, description="Steps before the search, and behind it.")


class SearchRules(StageRules[Search]):
    name = "search"
    block = Search
    runner = "search_plugin:KIND"

    def training(self, block: Search) -> Iterator[str]:
        yield ""


register(SearchRules())


def __getattr__(name: str) -> Any:
    if name != "KIND":
        raise AttributeError(name)
    import torch

    from modelpress_runner.evaluators.base import Score
    from modelpress_runner.methods.context import Evaluation, StageContext, Step, Transform
    from modelpress_runner.methods.procedure import Procedure
    from modelpress_runner.stages.base import StageKind
    from modelpress_runner.training.step import Training

    class Bisection(Procedure):
        evaluates = True

        def __init__(self, block: Search) -> None:
            self.block = block
            self.phase = "early"
            self.layer = self.round = 0
            self.low, self.high, self.reference = 0.0, 1.0, 0.0
            self.early: dict[str, torch.Tensor] = {}
            self.trained: dict[str, torch.Tensor] = {}

        def next(self, score: Score | None) -> Step | None:
            phase = self.phase
            if phase == "early":
                self.phase = "keep"
                return self._training("early weights", self.block.early_steps)
            if phase == "keep":
                self.phase = "train"
                return Transform("keep early weights", self._keep_early)
            if phase == "train":
                self.phase = "refer"
                return self._training("train", self.block.max_steps)
            if phase == "refer":
                self.phase = "begin"
                return Evaluation("reference")
            if phase == "begin":
                self.reference, self.phase = score["default"], "try"
                return Transform("keep weights", self._keep_trained)
            if phase == "judge":
                middle = (self.low + self.high) / 2
                if score["default"] >= self.reference - self.block.within:
                    self.low = middle
                else:
                    self.high = middle
                self.round, self.phase = self.round + 1, "try"
                if self.round == self.block.bisections:
                    self.phase = "settle"
            if self.phase == "try":
                self.phase = "score"
                return self._masking((self.low + self.high) / 2)
            if phase == "score":
                self.phase = "judge"
                return Evaluation(f"{self.block.layers[self.layer]} at {(self.low + self.high) / 2:g}")
            if self.phase == "settle":
                low, layer = self.low, self.layer
                self.layer, self.round, self.low, self.high = layer + 1, 0, 0.0, 1.0
                self.phase = "rewind" if self.layer == len(self.block.layers) else "try"
                return self._masking(low, layer)
            if phase == "rewind":
                self.phase = "again"
                return Transform("rewind", self._rewind)
            if phase == "again":
                self.phase = "over"
                return self._training("train again", self.block.max_steps)
            return None

        def trainings(self) -> list[Training]:
            steps = [("early weights", self.block.early_steps)] if self.phase == "early" else []
            if self.phase in ("early", "keep", "train"):
                steps.append(("train", self.block.max_steps))
            if self.phase != "over":
                steps.append(("train again", self.block.max_steps))
            return [self._training(*step) for step in steps]

        def state_dict(self) -> dict[str, Any]:
            return {name: value for name, value in vars(self).items() if name != "block"}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            vars(self).update(state)

        def _training(self, label: str, steps: int) -> Training:
            return Training(label, max_steps=steps)

        def _keep_early(self, context: StageContext) -> None:
            self.early = _weights(context)

        def _keep_trained(self, context: StageContext) -> None:
            self.trained = _weights(context)

        def _masking(self, sparsity: float, layer: int | None = None) -> Transform:
            name = self.block.layers[self.layer if layer is None else layer]

            def mask(context: StageContext) -> None:
                with torch.no_grad():
                    for key, value in context.model.named_parameters():
                        value.copy_(self.trained[key])
                    weight = self.trained[f"{name}.weight"]
                    gone = weight.abs().flatten().argsort(stable=True)[: int(sparsity * weight.numel())]
                    kept = torch.ones(weight.numel()).index_fill(0, gone, 0.0).view_as(weight)
                    context.masks = {**context.masks, name: {"weight": kept}}
                    _apply(context)

            return Transform(f"{name} at {sparsity:g}", mask)

        def _rewind(self, context: StageContext) -> None:
            with torch.no_grad():
                for key, value in context.model.named_parameters():
                    value.copy_(self.early[key])
                _apply(context)

    def _weights(context: StageContext) -> dict[str, torch.Tensor]:
        return {name: value.detach().clone() for name, value in context.model.named_parameters()}

    def _apply(context: StageContext) -> None:
        for name, masks in context.masks.items():
            context.model.get_submodule(name).weight.mul_(masks["weight"])

    class SearchKind(StageKind[Search]):
        name = "search"

        def procedure(self, block: Search, index: int) -> Procedure:
            return Bisection(block)

        def record(self, block: Search) -> dict[str, Any]:
            return {"layers": block.layers}

    kind = globals()["KIND"] = SearchKind()
    return kind
