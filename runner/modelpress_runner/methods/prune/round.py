"""One round of a prune stage: from the scores of the selected modules to masks.

Order: scores; shares of the local layers and dependency groups; one ranking for each set of global ones; masks. What
earlier rounds or stages removed stays removed.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from modelpress.api.stages.prune import kept_of
from modelpress_runner.dependency.groups import ChannelDependencies, DependencyGroup
from modelpress_runner.edits.axes import axis_of
from modelpress_runner.edits.masks import Masks
from modelpress_runner.errors import InvalidModelError, InvalidSpecError
from modelpress_runner.methods.prune import patterns
from modelpress_runner.methods.prune.channels import weight_of
from modelpress_runner.methods.prune.chosen_groups import chosen_groups
from modelpress_runner.methods.prune.covering import (
    apply_masks,
    cover,
    cover_axis,
    multiply_mask,
    open_masks,
    weight_gone,
)
from modelpress_runner.methods.prune.patterns import divide
from modelpress_runner.methods.prune.pools import Pool, decide, of_what_is_left
from modelpress_runner.methods.prune.protocol import CompensatingMethod, DataDrivenMethod, Wanted
from modelpress_runner.methods.prune.ranking import Candidates
from modelpress_runner.methods.prune.registry import method
from modelpress_runner.methods.prune.schedule import sparsity_at
from modelpress_runner.methods.prune.selection import Choice, Selection
from modelpress_runner.methods.prune.uniform import family

# What roundTo: auto is, by the device of the target: the width of vector instructions, and of tensor cores' tiles.
ROUND_TO = {"cpu": 8, "cuda": 16}


@dataclass(frozen=True)
class Round:
    """Which round of which stage, for schedules and generators, and the scores that were collected for it.

    `leaving` are masks of what earlier stages have pruned and a shrink will take away: shares count what is left.
    A `dry` round has no data: where it needs some, everything scores alike.
    """

    seed: int
    stage: int
    number: int
    collected: Mapping[str, torch.Tensor] = field(default_factory=dict)
    leaving: Masks = field(default_factory=dict)
    device: str = "cpu"  # where the result is to run
    uniform: bool = False  # layers that are alike but for their number lose equally many
    dry: bool = False

    def scores(self, model: nn.Module, choice: Choice) -> torch.Tensor:
        """The scores of one module, as PruneMethod.score gives them; those of channels, which are few, on the CPU."""
        pruner, module = method(choice.algorithm), model.get_submodule(choice.module)
        if not isinstance(pruner, DataDrivenMethod):
            scores = pruner.score(module, self.generator(choice.module))
        elif not self.dry:
            scores = pruner.scores(self.collected[choice.module], module)
        elif pruner.structured:
            scores = torch.ones(axis_of(model, choice.module, "out").size, dtype=torch.float64)
        else:
            scores = torch.ones_like(weight_of(module), dtype=torch.float32, requires_grad=False)
        if choice.structured and not pruner.structured:
            scores = patterns.by_output(axis_of(model, choice.module, "out"), scores)
        return scores.to("cpu", torch.float64) if choice.structured else scores

    def candidates(self, choice: Choice, scores: torch.Tensor, gone: torch.Tensor, each: int = 1) -> Candidates:
        """What is ranked, with the bounds that are asked for; `each` is the number of channels that go with one."""
        least, most = choice.bounds
        multiple = 1
        if choice.round_to is not None and choice.structured:
            asked = ROUND_TO[self.device] if choice.round_to == "auto" else int(choice.round_to)
            multiple = asked // math.gcd(asked, each)
        return Candidates(scores, None, gone, least=least, most=most, multiple=multiple)

    def generator(self, module: str) -> torch.Generator:
        """A generator of its own for each module, whatever else is pruned in this round."""
        text = f"{self.seed}/{self.stage}/{self.number}/{module}".encode()
        seed = int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1
        return torch.Generator().manual_seed(seed)


@dataclass
class RoundOutcome:
    """The masks of one round, new tensors; how much each selected module lost; what a user should know."""

    masks: Masks
    weights: Masks = field(default_factory=dict)  # new values of parameters by module, which are zero where masked
    removed: dict[str, tuple[int, int]] = field(default_factory=dict)  # (removed, of): channels, or weights
    units: torch.Tensor | None = None  # bool, one for each unit of the coupling: those that a shrink will remove
    notes: list[str] = field(default_factory=list)


def round_masks(
    model: nn.Module,
    selection: Selection,
    dependencies: ChannelDependencies | None,
    masks: Masks,
    round_: Round,
    path: str,
) -> RoundOutcome:
    """The masks after this round, on top of `masks`. `model` stays as it is.

    Without dependencies each module is masked alone. With them, modules whose output channels depend on each other lose
    the same channels, scored by the mean over the group's selected modules, at the smallest of their sparsities, and
    the masks cover everything that a shrink would take: norms that follow and input channels of the next layers too.

    Raises:
        InvalidSpecError: a module that is selected by name cannot lose channels, modules of a group want different
            methods or scopes, or no selected module can be pruned.
    """
    outcome = RoundOutcome({name: dict(tensors) for name, tensors in masks.items()}, notes=list(selection.notes))
    structured = {n: c for n, c in selection.choices.items() if c.structured}
    # One after another: the scores of single weights take as much memory as the weights.
    alone = (
        _alone(model, choice, outcome, round_, path)
        for name, choice in selection.choices.items()
        if dependencies is None or name not in structured
    )
    together: list[Pool] = []
    units = torch.zeros(dependencies.unit_count if dependencies else 0, dtype=torch.bool)
    if dependencies is not None and structured:
        groups = chosen_groups(dependencies, structured, selection.excluded, outcome.notes, path)
        whole = _by_units(model, groups, dependencies, structured)
        together = [
            _together(model, group, dependencies, structured, whole, units, outcome, round_, path) for group in groups
        ]
    outcome.notes += decide(itertools.chain(alone, together), path if round_.uniform else None)
    if dependencies is not None and structured:
        outcome.units = units
        cover(outcome.masks, model, dependencies, units)
        for name in structured:
            axis = dependencies.output(name)
            if axis is not None:
                outcome.removed[name] = (int(units[axis.vector].sum()), len(axis.units))
    return outcome


def ranked_groups(
    model: nn.Module,
    selection: Selection,
    dependencies: ChannelDependencies,
    masks: Masks,
    round_: Round,
    path: str,
) -> list[tuple[DependencyGroup, Candidates, Choice]]:
    """The dependency groups that `round_masks` would rank, with their candidates and how they are pruned.

    Raises:
        InvalidSpecError: as round_masks.
    """
    outcome = RoundOutcome({name: dict(tensors) for name, tensors in masks.items()})
    choices = {name: choice for name, choice in selection.choices.items() if choice.structured}
    units = torch.zeros(dependencies.unit_count, dtype=torch.bool)
    found = []
    groups = chosen_groups(dependencies, choices, selection.excluded, outcome.notes, path)
    whole = _by_units(model, groups, dependencies, choices)
    for group in groups:
        pool = _together(model, group, dependencies, choices, whole, units, outcome, round_, path)
        found.append((group, pool.candidates, pool.choice))
    return found


def apply_outcome(model: nn.Module, outcome: RoundOutcome) -> None:
    """Puts new weights in place, and sets what the masks remove to zero."""
    modules = dict(model.named_modules())
    with torch.no_grad():
        for name, tensors in outcome.weights.items():
            for tensor, value in tensors.items():
                getattr(modules[name], tensor).copy_(value)
    apply_masks(model, outcome.masks)


# One layer, or one group ----------------------------------------------------------------------------------------------


def _alone(model: nn.Module, choice: Choice, outcome: RoundOutcome, round_: Round, path: str) -> Pool:
    if not choice.structured:
        return _weights(model, choice, outcome, round_, path)
    name = choice.module
    scores = round_.scores(model, choice)
    view = axis_of(model, name, "out")
    gone, away = (weight_gone(view, masks.get(name, {})) for masks in (outcome.masks, round_.leaving))

    def apply(removed: torch.Tensor) -> None:
        outcome.removed[name] = (int(removed.sum()), removed.numel())
        cover_axis(outcome.masks, model, name, view, ~removed, set())
        open_masks(outcome.masks, model, name)

    pool = Pool(round_.candidates(choice, scores, gone), choice, _now(choice, round_), apply)
    return of_what_is_left(pool, away)


def _weights(model: nn.Module, choice: Choice, outcome: RoundOutcome, round_: Round, path: str) -> Pool:
    name, module = choice.module, model.get_submodule(choice.module)
    scores = round_.scores(model, choice)
    gone, away = (
        torch.zeros_like(scores, dtype=torch.bool) if mask is None else (mask == 0).to(scores.device)
        for mask in (masks.get(name, {}).get("weight") for masks in (outcome.masks, round_.leaving))
    )
    by_output = method(choice.algorithm).by_output
    try:
        blocks = divide(module, name, choice.pattern or ("1x1" if by_output else None), scores, gone)
    except InvalidModelError as error:
        if choice.named:
            raise InvalidSpecError(str(error), f"{path}.configList[{choice.entry}].pattern") from error
        outcome.notes.append(f"Left as it was: {error}")
        outcome.removed[name] = (0, scores.numel())
        nothing = Candidates(torch.zeros(1), None, torch.zeros(1, dtype=torch.bool))
        return Pool(nothing, replace(choice, scope="local", threshold=None), 0.0, lambda removed: None)

    pruner = method(choice.algorithm)
    compensating = pruner if isinstance(pruner, CompensatingMethod) and not round_.dry else None

    def take(lost: torch.Tensor, weight: torch.Tensor | None) -> None:
        outcome.removed[name] = (int(lost.sum()), lost.numel())
        multiply_mask(outcome.masks, name, module, "weight", ~lost)
        open_masks(outcome.masks, model, name)
        if weight is not None:
            outcome.weights[name] = {"weight": weight}

    def apply(removed: torch.Tensor) -> None:
        lost = blocks.weights(removed)
        weight = None
        if compensating is not None and bool(lost.any()):
            weight = compensating.compensated(module, round_.collected[name], lost | gone)
        take(lost, weight)

    def choose(count: int) -> None:
        assert compensating is not None
        wanted = Wanted(count, gone, None if choice.pattern is None else kept_of(choice.pattern))
        take(*compensating.chosen(module, round_.collected[name], wanted)) if count else take(gone, None)

    candidates = round_.candidates(choice, blocks.scores, blocks.whole(gone))
    if blocks.size > 1:
        candidates.weights = torch.full_like(blocks.scores, float(blocks.size))
    if blocks.share < 1:  # a group of N:M keeps its N
        least, most = (min(1.0, bound / blocks.share) for bound in choice.bounds)
        candidates = replace(candidates, keep=0, least=least, most=most)
    pool = Pool(candidates, choice, _now(choice, round_) / blocks.share, apply, share=blocks.share)
    if by_output:
        pool.outputs = blocks.rows
    if compensating is not None and (choice.pattern is None or kept_of(choice.pattern)) and not away.any():
        pool.choose = choose
    return of_what_is_left(pool, blocks.whole(away))


def _by_units(
    model: nn.Module,
    groups: Sequence[DependencyGroup],
    dependencies: ChannelDependencies,
    choices: dict[str, Choice],
) -> dict[str, torch.Tensor]:
    """The scores of the groups' units, by methods that score all that goes with a unit: by method, (units,)."""
    asked: dict[str, torch.Tensor] = {}
    for group in groups:
        algorithm = _members(group, choices)[0].algorithm
        if algorithm not in asked:
            asked[algorithm] = torch.zeros(dependencies.unit_count, dtype=torch.bool)
        asked[algorithm][group.vector] = True
    found = {name: method(name).score_units(model, dependencies, units) for name, units in asked.items()}
    return {name: scores for name, scores in found.items() if scores is not None}


def _members(group: DependencyGroup, choices: dict[str, Choice]) -> list[Choice]:
    return [choices[name] for name in (*group.producers, *group.followers) if name in choices]


def _together(
    model: nn.Module,
    group: DependencyGroup,
    dependencies: ChannelDependencies,
    choices: dict[str, Choice],
    by_units: Mapping[str, torch.Tensor],
    units: torch.Tensor,
    outcome: RoundOutcome,
    round_: Round,
    path: str,
) -> Pool:
    members = _members(group, choices)
    place = torch.full((dependencies.unit_count,), -1)
    place[group.vector] = torch.arange(len(group.units))
    total = torch.zeros(len(group.units), dtype=torch.float64)
    count, gone = torch.zeros_like(total), torch.ones(len(group.units), dtype=torch.bool)
    away = gone.clone()
    first, each = members[0], 1
    whole = by_units.get(first.algorithm)
    for choice in members:
        axis = dependencies.output(choice.module)
        assert axis is not None  # a member of a group has one
        channels = (place[axis.vector] >= 0).nonzero().flatten()
        where = place[axis.vector[channels]]
        if choice is first:
            each = max(1, len(where) // len(group.units))
        if whole is None:
            total.index_add_(0, where, round_.scores(model, choice)[channels])
        count.index_add_(0, where, torch.ones(len(where), dtype=torch.float64))
        view = axis_of(model, choice.module, "out")
        gone[where[~weight_gone(view, outcome.masks.get(choice.module, {}))[channels]]] = False
        away[where[~weight_gone(view, round_.leaving.get(choice.module, {}))[channels]]] = False
    for choice in members[1:]:
        if (choice.algorithm, choice.scope) != (first.algorithm, first.scope):
            raise InvalidSpecError(
                f"'{first.module}' ({first.algorithm}, {first.scope}) and '{choice.module}' ({choice.algorithm}, "
                f"{choice.scope}) lose the same channels; give them one algorithm and one scope, or set shrink: false",
                f"{path}.configList[{choice.entry}]",
            )
        if (choice.threshold, choice.bounds, choice.group) != (first.threshold, first.bounds, first.group):
            raise InvalidSpecError(
                f"'{first.module}' and '{choice.module}' lose the same channels; give them one sparsityThreshold, one "
                "minSparsity, one maxSparsity and one globalGroup, or set shrink: false",
                f"{path}.configList[{choice.entry}]",
            )
    if whole is not None:
        total, count = whole[group.vector], torch.ones_like(total)
    now = [_now(choice, round_) for choice in members]
    if len({choice.sparsity for choice in members}) > 1:
        asked = ", ".join(f"'{choice.module}' ({choice.sparsity:g})" for choice in members)
        outcome.notes.append(f"{asked} lose the same channels; the smallest of their sparsities holds for all of them")

    def apply(removed: torch.Tensor) -> None:
        units[group.vector] |= removed

    rounded = next((choice for choice in members if choice.round_to is not None), first)
    candidates = replace(round_.candidates(rounded, total / count, gone, each), weights=count)
    return of_what_is_left(Pool(candidates, first, min(now), apply, family=family(group)), away)


def _now(choice: Choice, round_: Round) -> float:
    return sparsity_at(choice.schedule, choice.sparsity, round_.number)
