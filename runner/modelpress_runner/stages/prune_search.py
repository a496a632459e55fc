"""A prune stage whose layers' sparsities are found by scores of the pruned model."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from modelpress.api.v1alpha1 import DEFAULT_METRIC, Search
from modelpress_runner.edits.masks import Masks
from modelpress_runner.evaluators.base import Score
from modelpress_runner.methods.context import Evaluation, StageContext, Step, Transform
from modelpress_runner.methods.procedure import Procedure, StepList
from modelpress_runner.methods.prune.allocation import Allocation, Annealing, Sensitivity
from modelpress_runner.methods.prune.channels import weight_of
from modelpress_runner.methods.prune.round import apply_outcome, prunable
from modelpress_runner.methods.prune.selection import Selection
from modelpress_runner.stages.prune import PruneStage, prune_once
from modelpress_runner.training.step import Training

_LEVELS = [number / 10 for number in range(1, 10)]


class Searching(Procedure):
    """Keeps the weights; prunes, scores and puts them back, as often as the search wants; prunes at what it found.

    Units are ranked once, by the model as it is at the begin.

    Args:
        stage: whose search it is.
        behind: the steps that come behind it.
    """

    evaluates: ClassVar[bool] = True

    def __init__(self, stage: PruneStage, search: Search, behind: Sequence[Step]) -> None:
        self._stage, self._search, self._behind = stage, search, StepList(behind)
        self._phase = "begin"
        self._kept: dict[str, torch.Tensor] = {}
        self._masks: Masks = {}
        self._scores: dict[str, torch.Tensor] = {}
        self._members: list[list[str]] = []  # modules of each dimension
        self._sizes: list[int] = []
        self._mean = 0.0
        self._sign = 1
        self._seed = 0
        self._allocation: Allocation | None = None
        self._proposed: list[float] = []

    @property
    def settles(self) -> bool:
        """Whether the step that was asked for last ends the search."""
        return self._phase == "behind"

    @property
    def proposed(self) -> list[tuple[tuple[str, ...], float]]:
        """The modules that were pruned last, those that lose the same channels together, with their sparsities."""
        pairs = zip(self._members, self._proposed, strict=True)
        return [(tuple(names), share) for names, share in pairs if share]

    def next(self, score: Score | None) -> Step | None:
        """As Procedure.next."""
        if self._phase == "begin":
            self._phase = "propose"
            return Transform("search: rank", self._begin)
        if self._phase == "score":
            self._phase = "told"
            return Evaluation("search: score")
        if self._phase == "told":
            assert score is not None
            self._search_at_work.told(self._sign * score[DEFAULT_METRIC])
            self._phase = "propose"
        if self._phase == "propose":
            shares = self._search_at_work.propose()
            if shares is not None:
                self._phase, self._proposed = "score", list(shares)
                return Transform("search: try", functools.partial(self._try, shares))
            self._phase = "behind"
            return Transform("prune", self._settle)
        return self._behind.next(score)

    def trainings(self) -> Sequence[Training]:
        """Those behind it."""
        return self._behind.trainings()

    def state_dict(self) -> dict[str, Any]:
        """Where it is."""
        return {
            "phase": self._phase,
            "kept": dict(self._kept),
            "masks": {name: dict(tensors) for name, tensors in self._masks.items()},
            "scores": dict(self._scores),
            "members": [list(names) for names in self._members],
            "sizes": list(self._sizes),
            "mean": self._mean,
            "sign": self._sign,
            "seed": self._seed,
            "allocation": None if self._allocation is None else self._allocation.state_dict(),
            "behind": self._behind.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As Procedure.load_state_dict."""
        for name in ("phase", "kept", "masks", "scores", "members", "sizes", "mean", "sign", "seed"):
            setattr(self, f"_{name}", state[name])
        self._behind.load_state_dict(state["behind"])
        self._allocation = None
        if state["allocation"] is not None:
            self._search_at_work.load_state_dict(state["allocation"])

    @property
    def _search_at_work(self) -> Allocation:
        if self._allocation is None:
            given, search = (self._sizes, self._mean, self._seed), self._search
            if search.type == "sensitivity":
                self._allocation = Sensitivity(*given, search.sparsities or _LEVELS)
            else:
                self._allocation = Annealing(
                    *given,
                    search.start_temperature,
                    search.stop_temperature,
                    search.cool_down_rate,
                    search.perturbation,
                )
        return self._allocation

    def _begin(self, context: StageContext) -> None:
        selection, scores = self._stage.ranked(context)
        self._scores = dict(scores)
        self._members = self._dimensions(context, selection)
        modules = {name: context.model.get_submodule(name) for names in self._members for name in names}
        self._sizes = [sum(weight_of(modules[name]).numel() for name in names) for names in self._members]
        asked = [min(selection.choices[name].sparsity for name in names) for names in self._members]
        self._mean = sum(share * size for share, size in zip(asked, self._sizes, strict=True)) / sum(self._sizes)
        self._sign = 1 if context.goal == "maximize" else -1
        self._seed, self._allocation = context.seed, None
        self._kept = {name: value.detach().clone() for name, value in context.model.named_parameters()}
        self._masks = context.masks

    def _dimensions(self, context: StageContext, selection: Selection) -> list[list[str]]:
        """Modules that lose the same channels together, others each alone."""
        dependencies = self._stage.coupling(context, selection)
        sets: list[set[str]] = []
        if dependencies is not None:
            for _, choices in prunable(dependencies, selection):
                names = {choice.module for choice in choices}
                touching = [other for other in sets if other & names]
                sets = [other for other in sets if not other & names] + [names.union(*touching)]
        together = [sorted(names) for names in sets]
        return together + [
            [name] for name, choice in selection.choices.items() if dependencies is None or not choice.structured
        ]

    def _shares(self, shares: Sequence[float]) -> Mapping[str, float]:
        return {name: share for names, share in zip(self._members, shares, strict=True) for name in names}

    @torch.no_grad()
    def _restore(self, context: StageContext) -> None:
        for name, value in context.model.named_parameters():
            value.data.copy_(self._kept[name])
        context.masks = self._masks

    def _try(self, shares: Sequence[float], context: StageContext) -> None:
        self._restore(context)
        outcome = self._stage.outcome(context, 1, self._scores, shares=self._shares(shares))
        apply_outcome(context.model, outcome)

    def _settle(self, context: StageContext) -> None:
        self._restore(context)
        found = self._search_at_work.found
        listed = ", ".join(f"{'+'.join(names)} {share:.3f}" for names, share in zip(self._members, found, strict=True))
        context.note(f"{self._search.type} found the sparsities {listed}")
        prune_once(self._stage, 1, context, self._scores, self._shares(found))
