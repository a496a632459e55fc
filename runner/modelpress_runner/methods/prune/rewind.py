"""Lottery tickets: what is left of a model gets weights back that it had before (Frankle and Carbin 2018,
arXiv 1803.03635; Frankle et al. 2019, arXiv 1912.05671)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from modelpress_runner.methods.context import StageContext, Step
from modelpress_runner.methods.procedure import StepList
from modelpress_runner.methods.prune.covering import apply_masks


class Rewind:
    """Weights that were kept, and are put back where they were not pruned."""

    def __init__(self) -> None:
        self.kept: dict[str, torch.Tensor] = {}

    def keep(self, context: StageContext) -> None:
        """Keeps all parameters and buffers."""
        self.kept = {name: value.detach().clone() for name, value in _values(context.model)}

    @torch.no_grad()
    def rewind(self, context: StageContext) -> None:
        """Puts them back; what is masked stays zero."""
        for name, value in _values(context.model):
            value.data.copy_(self.kept[name])
        apply_masks(context.model, context.masks)


def _values(model: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


class Steps(list[Step]):
    """The steps of a stage, and what they share beyond it."""

    def __init__(self, steps: Sequence[Step], rewind: Rewind | None) -> None:
        super().__init__(steps)
        self.rewind = rewind


class Rewinding(StepList):
    """Steps with the weights that some of them go back to."""

    def __init__(self, steps: Sequence[Step], rewind: Rewind) -> None:
        super().__init__(steps)
        self._rewind = rewind

    def state_dict(self) -> dict[str, Any]:
        """As StepList's, with the weights."""
        return {**super().state_dict(), "kept": dict(self._rewind.kept)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As Procedure.load_state_dict."""
        super().load_state_dict(state)
        self._rewind.kept = dict(state["kept"])
