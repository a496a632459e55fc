"""A prune stage that is given a budget: its shares are solved before the first round, and hold for all of them."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from modelpress.api.v1alpha1 import SizeBudget
from modelpress_runner.dependency.cutting import edits_of
from modelpress_runner.dependency.groups import ChannelDependencies, DependencyGroup
from modelpress_runner.dependency.unit_lists import Reasons
from modelpress_runner.edits.replay import replay
from modelpress_runner.errors import CompressionError, InvalidSpecError
from modelpress_runner.evaluators.base import Score
from modelpress_runner.export.state import state_digest
from modelpress_runner.methods.context import Measures, StageContext, Step
from modelpress_runner.methods.procedure import Procedure
from modelpress_runner.methods.prune.budget import Path, first_within
from modelpress_runner.methods.prune.ranking import Candidates, remove_local
from modelpress_runner.methods.prune.registry import method
from modelpress_runner.methods.prune.round import Round, ranked_groups
from modelpress_runner.methods.prune.selection import Choice, Selection
from modelpress_runner.methods.prune.statistics import Scores, collect
from modelpress_runner.methods.prune.uniform import as_families, family, merged
from modelpress_runner.runtime import distributed as ranks
from modelpress_runner.training.step import Training

if TYPE_CHECKING:
    from modelpress_runner.stages.prune import PruneStage

Ranked = list[tuple[DependencyGroup, Candidates, Choice]]
Shares = dict[str, float]  # of selected modules by name
TRIED = 0.5  # by which groups are tried before it is known how much of them goes
_ORDER = 2  # of how paths are ordered: tables of another have other models at their places
_NEAR, _TRIES = 0.02, 8  # of a latency: within so much below the bound, or so many models timed


@dataclass(frozen=True)
class Solved:
    """What was solved: the share of each selected module, and the greatest value that a counted metric may have."""

    shares: Shares
    limit: float


def with_shares(selection: Selection, shares: Mapping[str, float]) -> Selection:
    """The selection with these sparsities, each layer or group by itself; of others nothing goes."""
    choices = {
        name: replace(choice, sparsity=shares.get(name, 0.0), scope="local", threshold=None, group=None)
        for name, choice in selection.choices.items()
    }
    return replace(selection, choices=choices)


class Budgeted(Procedure):
    """The steps of a stage with a budget; checkpoints hold what was solved, for a later round finds another model."""

    def __init__(self, steps: Procedure, stage: PruneStage) -> None:
        self._steps, self._stage = steps, stage

    def next(self, score: Score | None) -> Step | None:
        """As Procedure.next."""
        return self._steps.next(score)

    def trainings(self) -> Sequence[Training]:
        """As Procedure.trainings."""
        return self._steps.trainings()

    def state_dict(self) -> dict[str, Any]:
        """That of the steps, and what was solved."""
        solved = self._stage.solved
        known = {} if solved is None else {"shares": solved.shares, "limit": solved.limit}
        return {"steps": self._steps.state_dict(), **known}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As Procedure.load_state_dict."""
        self._steps.load_state_dict(state["steps"])
        self._stage.solved = Solved(dict(state["shares"]), state["limit"]) if "shares" in state else None


def solve(stage: PruneStage, context: StageContext) -> Scores:
    """Solves the budget of `stage`, on every rank alike; the scores that it went by, of data-driven methods.

    Analysis and scores are taken from the tables, if the same stage has been there before, with whatever budget.

    Raises:
        InvalidSpecError: what is selected cannot be cut down to the budget, or nothing here measures it.
    """
    measures = context.measures
    if measures is None or context.dummy_input is None:
        raise InvalidSpecError(
            "a budget is measured, and there are no example inputs to measure with; give the evaluator a dummy_input",
            f"{stage.path}.budget",
        )
    selection = stage.select(context.model)
    digest, tables = state_digest(context.model), measures.tables
    key = _scored_by(stage, context, digest)
    found = ranks.on_rank_zero(lambda: None if tables is None else tables.get(key))
    if found is not None:
        dependencies = replace(
            ChannelDependencies.from_dict(found["dependencies"]),
            refuted=Reasons.from_plain(found["refuted"]),
        )
        stage.restore(dependencies)
        context.note(*dependencies.notes)
        scores: Scores = {name: torch.tensor(each, dtype=torch.float64) for name, each in found["scores"].items()}
    else:
        dependencies = stage.sound(context, selection)
        scores = collect(context, selection, stage.scoring_steps, (stage.index, 1), stage.path)
        if tables is not None and ranks.is_rank_zero():
            plain = {name: each.to("cpu", torch.float64).tolist() for name, each in scores.items()}
            refuted = dependencies.refuted.to_plain()
            tables.put(key, {"dependencies": dependencies.to_dict(), "refuted": refuted, "scores": plain})
    solver = Solver(context, measures, stage, selection, dependencies, scores, digest)
    shares, limit, text = ranks.on_rank_zero(solver.run)
    stage.solved = Solved(dict(shares), limit)
    context.report(text)
    context.note(text)
    return scores


def _scored_by(stage: PruneStage, context: StageContext, digest: str) -> str:
    """The digest of what analysis and scores depend on: model, masks, seed, and the stage but for its budget."""
    block = stage.prune.to_dict()
    for field in ("budget", "reconstruct", "schedule"):
        block.pop(field, None)
    total = hashlib.sha256(repr((block, context.seed, stage.index, ranks.world_size())).encode())
    total.update(digest.encode())
    return total.hexdigest()


@dataclass
class Solver:
    """Solves the budget of a stage on rank 0; the model is as the stage begins with it, and stays so."""

    context: StageContext
    measures: Measures
    stage: PruneStage
    selection: Selection
    dependencies: ChannelDependencies
    scores: Scores
    digest: str  # of the model's state
    measured: int = 0

    def run(self) -> tuple[Shares, float, str]:
        """As `solve`; the limit, and a line for people."""
        budget, context, measures = self._budget, self.context, self.measures
        round_ = Round(context.seed, self.stage.index, 1, self.scores, device=context.target_device)
        ranked = ranked_groups(context.model, self.selection, self.dependencies, context.masks, round_, self.stage.path)
        key = self._key(ranked)
        table: dict[str, Any] = {} if measures.tables is None else measures.tables.get(key) or {}
        by = "parameters" if budget.metric in ("parameters", "sizeBytes") else "macs"
        if by not in table:
            table[by] = self._savings(ranked, by)
        path = self._path_through(ranked, table[by])
        timed = budget.metric == "latencyMs"
        place_of = (
            f"{budget.metric} by {by}"
            + (" alike" if context.uniform else "")
            + (f" in {measures.conditions}" if timed or by != budget.metric else "")
        )
        costs: dict[str, list[float]] = table.setdefault(place_of, {})  # [of the whole, of the part]

        def value(figures: list[float]) -> float:
            whole, part = figures
            return part if budget.max is not None else part / whole

        def cost(steps: int) -> float:
            context.stop()
            costs[str(steps)] = self._figures(self._removed(ranked, self._counts(ranked, path, steps)), costs.get("0"))
            return value(costs[str(steps)])

        def saved(steps: int) -> float:
            """What the last of so many steps saved at most: units are worth most in the whole model."""
            earlier, later = (self._counts(ranked, path, count) for count in (steps - 1, steps))
            freed = sum((new - old) * each for old, new, each in zip(earlier, later, table[by], strict=True))
            return float(freed / (1.0 if budget.max is not None else costs["0"][0]))

        bound = budget.max if budget.max is not None else budget.max_ratio
        assert bound is not None
        place = first_within(
            len(path.steps),
            bound * (1 - _NEAR / 2) if timed else bound,
            cost,
            {int(steps): value(figures) for steps, figures in costs.items()},
            near=_NEAR if timed else 0.0,
            tries=_TRIES if timed else 0,
            saved=None if by != budget.metric else saved,
        )
        if measures.tables is not None and self.measured:
            measures.tables.put(key, table)
        if place is None:
            least, what = value(costs[str(len(path.steps))]), "" if budget.max is not None else " of what it is"
            raise InvalidSpecError(
                f"{budget.metric} cannot come down to {bound:g}{what}: with all that may go of what is selected "
                f"it is {least:.6g}{what}; select more, or raise the budget",
                self._path,
            )
        counts = self._counts(ranked, path, place)
        shares = {
            name: gone / len(group.units)
            for (group, _, _), gone in zip(ranked, counts, strict=True)
            for name in (*group.producers, *group.followers)
        }
        whole, part = costs[str(place)]
        text = (
            f"budget: {budget.metric} {whole:.6g} -> {part:.6g} ({part / whole:.4f}), {self.measured} models measured"
        )
        limit = bound if budget.max is not None else bound * whole
        return {name: shares.get(name, 0.0) for name in self.selection.choices}, limit, text

    def _families(self, ranked: Ranked) -> list[list[int]]:
        """Which groups lose equally many: with target.uniform those that are alike, else each goes by itself."""
        if not self.context.uniform:
            return [[number] for number in range(len(ranked))]
        names = []
        for group, one, choice in ranked:
            bounds = (one.least, one.most, one.multiple, int(one.already_pruned.sum()), choice.algorithm)
            names.append(f"{family(group)} {bounds}")
        return as_families(names)

    def _path_through(self, ranked: Ranked, savings: Sequence[float]) -> Path:
        if not self.context.uniform:
            return Path.through([candidates for _, candidates, _ in ranked], savings)
        comparable = [method(choice.algorithm).globally_comparable for _, _, choice in ranked]
        families = self._families(ranked)
        return Path.through(
            [merged([ranked[each][1] for each in members], comparable[members[0]]) for members in families],
            [sum(savings[each] for each in members) for members in families],
        )

    def _counts(self, ranked: Ranked, path: Path, steps: int) -> tuple[int, ...]:
        """Units that each group has lost after so many steps."""
        counts = [0] * len(ranked)
        for members, gone in zip(self._families(ranked), path.removed(steps), strict=True):
            for each in members:
                counts[each] = gone
        return tuple(counts)

    @property
    def _budget(self) -> SizeBudget:
        assert self.stage.prune.budget is not None
        return self.stage.prune.budget

    @property
    def _path(self) -> str:
        return f"{self.stage.path}.budget"

    def _savings(self, ranked: Ranked, metric: str) -> list[float]:
        """What one unit of each group is worth: the table of costs."""
        (whole,) = self.measures.of(metric, [self.context.model])
        out = []
        for group, _, _ in ranked:
            removed = torch.zeros(self.dependencies.unit_count, dtype=torch.bool)
            removed[group.units[0]] = True
            self.context.stop()
            self.measured += 1
            out.append(whole - self.measures.of(metric, [self._cut(removed)])[0] if len(group.units) > 1 else 0.0)
        return out

    def _figures(self, removed: torch.Tensor, first: list[float] | None) -> list[float]:
        """The metric of the whole model and of the part; a clock's are taken of both in turn."""
        metric, model = self._budget.metric, self._cut(removed)
        self.measured += 1
        if metric == "latencyMs":
            return self.measures.of(metric, [self.context.model, model])
        if first is None:  # bounds may take something before the first step
            return self.measures.of(metric, [self.context.model]) + self.measures.of(metric, [model])
        return [first[0], *self.measures.of(metric, [model])]

    def _removed(self, ranked: Ranked, counts: tuple[int, ...]) -> torch.Tensor:
        removed = torch.zeros(self.dependencies.unit_count, dtype=torch.bool)
        for (group, candidates, _), gone in zip(ranked, counts, strict=True):
            removed[group.vector] = remove_local(candidates, gone / len(group.units))
        return removed

    def _cut(self, removed: torch.Tensor) -> nn.Module:
        whole = self.context.model
        # Edits put new tensors in the place of those that they change: the others can be the model's own.
        model = copy.deepcopy(whole, {id(tensor): tensor for tensor in (*whole.parameters(), *whole.buffers())})
        replay(model, edits_of(self.dependencies, removed))
        return model

    def _key(self, ranked: Ranked) -> str:
        """Of everything that the path and its costs depend on."""
        total = hashlib.sha256(f"{_ORDER} {self.digest}".encode())
        for group, candidates, choice in ranked:
            total.update(repr((group, choice.algorithm, candidates.already_pruned.tolist())).encode())
            total.update(candidates.scores.to(torch.float64).numpy().tobytes())
        return total.hexdigest()


def check_met(stage: PruneStage, context: StageContext, solved: Solved) -> None:
    """Raises CompressionError if a counted budget is not met by what was cut."""
    budget, measures = stage.prune.budget, context.measures
    if budget is None or measures is None or budget.metric == "latencyMs":
        return
    (value,) = ranks.on_rank_zero(lambda: measures.of(budget.metric, [context.model]))
    if value > solved.limit:
        raise CompressionError(
            f"{budget.metric} is {value:.6g}, above the budget's {solved.limit:.6g}: layers that could not be proven "
            "kept their width, as the notes say; exclude them, so that others are cut instead, or raise the budget",
            f"{stage.path}.budget",
        )
