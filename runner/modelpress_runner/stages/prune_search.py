"""A prune stage whose layers' sparsities are found by scores of the pruned model."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from modelpress.api.v1alpha1 import DEFAULT_METRIC, Search
from modelpress_runner.edits.masks import Masks
from modelpress_runner.evaluators.base import Score
from modelpress_runner.methods.context import Evaluation, StageContext, Step, TrainingContext, Transform
from modelpress_runner.methods.procedure import Procedure, StepList
from modelpress_runner.methods.prune.allocation import Allocation, Annealing, NetAdapt, Sensitivity
from modelpress_runner.methods.prune.channels import weight_of
from modelpress_runner.methods.prune.chosen_groups import prunable
from modelpress_runner.methods.prune.round import apply_outcome
from modelpress_runner.methods.prune.schedule import sparsity_at
from modelpress_runner.methods.prune.selection import Selection
from modelpress_runner.stages.prune import PruneStage, prune_once
from modelpress_runner.training.participants import Participant
from modelpress_runner.training.step import Training

_LEVELS = [number / 10 for number in range(1, 10)]

Values = dict[str, torch.Tensor]  # parameters and buffers by name


class Searching(Procedure):
    """Keeps the weights; prunes, trains if asked to, scores and puts them back, as often as the search wants; prunes at
    what it found. All that in each round of the stage, on what the rounds before have left.

    Units are ranked once in a round, by the model as it is at its begin.

    Args:
        stage: whose search it is.
        search: its block.
    """

    evaluates: ClassVar[bool] = True

    def __init__(self, stage: PruneStage, search: Search) -> None:
        self._stage, self._search = stage, search
        self._rounds = stage.prune.schedule.rounds
        train, short = stage.prune.schedule.train, search.train
        self._short = None if short is None else Training("search: train", short.epochs, short.max_steps)
        self._train = None if train is None else Training("train after prune", train.epochs, train.max_steps)
        sparsify = stage.prune.sparsify
        self._sparsify = None
        if sparsify is not None:
            self._sparsify = Training("sparsify", sparsify.epochs, sparsify.max_steps, self._penalties)
        self._round = 1
        self._phase = "begin"
        self._kept: Values = {}
        self._masks: Masks = {}
        self._leader: Values = {}  # of this step of the search
        self._leader_masks: Masks = {}
        self._scores: dict[str, torch.Tensor] = {}
        self._members: list[list[str]] = []  # modules of each dimension
        self._sizes: list[int] = []
        self._floors: list[float] = []  # what earlier rounds have taken of each
        self._mean = 0.0
        self._sign = 1
        self._seed = 0
        self._allocation: Allocation | None = None
        self._proposed: list[float] = []
        self._behind = self._steps_behind()

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
        if self._phase == "train":
            self._phase = "score"
            return self._short
        if self._phase == "score":
            self._phase = "told"
            return Evaluation("search: score")
        if self._phase == "told":
            assert score is not None
            found, search = self._sign * score[DEFAULT_METRIC], self._search_at_work
            leads = search.leads(found)
            search.told(found)
            self._phase = "over" if search.step_is_over else "propose"
            if leads:
                return Transform("search: keep", self._keep)
        if self._phase == "over":
            self._kept, self._masks = self._leader, self._leader_masks
            self._phase = "propose"
        if self._phase == "propose":
            shares = self._search_at_work.propose()
            if shares is not None:
                self._phase, self._proposed = "score" if self._short is None else "train", self._whole(shares)
                return Transform("search: try", functools.partial(self._try, self._proposed))
            self._phase = "behind"
        step = self._behind.next(score)
        if step is None and self._round < self._rounds:
            self._floors = self._found
            self._round, self._phase, self._behind = self._round + 1, "begin", self._steps_behind()
            return self.next(None)
        return step

    def trainings(self) -> Sequence[Training]:
        """Those behind it; and of the short ones one, as nobody knows how many there will be."""
        rounds = self._rounds - self._round
        later = [each for each in (self._sparsify, self._train) if each is not None] * rounds
        short = [] if self._short is None or self.settles else [self._short]
        return [*short, *self._behind.trainings(), *later]

    def state_dict(self) -> dict[str, Any]:
        """Where it is."""
        return {
            "round": self._round,
            "phase": self._phase,
            "kept": dict(self._kept),
            "masks": {name: dict(tensors) for name, tensors in self._masks.items()},
            "leader": dict(self._leader),
            "leader_masks": {name: dict(tensors) for name, tensors in self._leader_masks.items()},
            "scores": dict(self._scores),
            "members": [list(names) for names in self._members],
            "sizes": list(self._sizes),
            "floors": list(self._floors),
            "mean": self._mean,
            "sign": self._sign,
            "seed": self._seed,
            "allocation": None if self._allocation is None else self._allocation.state_dict(),
            "behind": self._behind.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As Procedure.load_state_dict."""
        names = ("round", "phase", "kept", "masks", "leader", "leader_masks", "scores", "members", "sizes", "floors")
        for name in (*names, "mean", "sign", "seed"):
            setattr(self, f"_{name}", state[name])
        self._behind = self._steps_behind()
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
            elif search.type == "net_adapt":
                self._allocation = NetAdapt(*given, search.sparsity_per_step)
            else:
                self._allocation = Annealing(
                    *given,
                    search.start_temperature,
                    search.stop_temperature,
                    search.cool_down_rate,
                    search.perturbation,
                )
        return self._allocation

    def _steps_behind(self) -> StepList:
        """What comes behind the search of a round."""
        out: list[Step] = [Transform("prune", self._settle)]
        if self._sparsify is not None:
            out = [Transform("search: put back", self._found_again), self._sparsify, Transform("prune", self._prune)]
        out += [] if self._train is None else [self._train]
        return StepList([*out, *(self._stage.shrinking if self._round == self._rounds else [])])

    def _begin(self, context: StageContext) -> None:
        selection, scores = self._stage.ranked(context, self._round)
        self._scores = dict(scores)
        self._members = self._dimensions(context, selection)
        self._floors = self._floors or [0.0] * len(self._members)
        modules = {name: context.model.get_submodule(name) for names in self._members for name in names}
        sizes = [sum(weight_of(modules[name]).numel() for name in names) for names in self._members]
        choices = selection.choices
        asked = [
            min(sparsity_at(choices[name].schedule, choices[name].sparsity, self._round) for name in names)
            for names in self._members
        ]
        more = sum(
            max(0.0, wanted - gone) * size for wanted, gone, size in zip(asked, self._floors, sizes, strict=True)
        )
        left = [(1 - gone) * size for gone, size in zip(self._floors, sizes, strict=True)]
        self._sizes = [max(1, round(each)) for each in left]
        self._mean = more / sum(left)
        self._sign = 1 if context.goal == "maximize" else -1
        self._seed, self._allocation = context.seed, None
        self._kept, self._masks = _values(context), context.masks

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

    def _whole(self, shares: Sequence[float]) -> list[float]:
        """Of the dimensions as the stage began with them, from shares of what is left of them."""
        return [gone + (1 - gone) * share for gone, share in zip(self._floors, shares, strict=True)]

    @property
    def _found(self) -> list[float]:
        return self._whole(self._search_at_work.found)

    def _shares(self, shares: Sequence[float]) -> Mapping[str, float]:
        return {name: share for names, share in zip(self._members, shares, strict=True) for name in names}

    def _keep(self, context: StageContext) -> None:
        self._leader, self._leader_masks = _values(context), context.masks

    @torch.no_grad()
    def _restore(self, context: StageContext) -> None:
        for name, value in _named(context):
            value.data.copy_(self._kept[name])
        context.masks = self._masks

    def _try(self, shares: Sequence[float], context: StageContext) -> None:
        self._restore(context)
        outcome = self._stage.outcome(context, self._rounds, self._scores, shares=self._shares(shares))
        apply_outcome(context.model, outcome)
        context.masks = outcome.masks

    def _found_again(self, context: StageContext) -> None:
        """The model as the search goes on from it; what was found is told."""
        self._restore(context)
        pairs = zip(self._members, self._found, strict=True)
        of = f" in round {self._round}" if self._rounds > 1 else ""
        listed = ", ".join(f"{'+'.join(names)} {share:.3f}" for names, share in pairs)
        context.note(f"{self._search.type} found the sparsities {listed}{of}")

    def _settle(self, context: StageContext) -> None:
        self._found_again(context)
        self._prune(context)

    def _prune(self, context: StageContext) -> None:
        prune_once(self._stage, self._rounds, context, self._scores, self._shares(self._found))

    def _penalties(self, training: TrainingContext) -> list[Participant]:
        return [self._stage.penalty(training, shares=self._shares(self._found))]


def _named(context: StageContext) -> list[tuple[str, torch.Tensor]]:
    return [*context.model.named_parameters(), *context.model.named_buffers()]


def _values(context: StageContext) -> Values:
    return {name: value.detach().clone() for name, value in _named(context)}
