"""The prune stage: rounds of masks, with training between them, and the shrink."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from modelpress.api.messages import keys_in_words
from modelpress.api.v1alpha1 import Prune
from modelpress_runner.dependency.analyse import find_dependencies
from modelpress_runner.dependency.cutting import edits_of
from modelpress_runner.dependency.groups import ChannelDependencies, DependencyGroup
from modelpress_runner.dependency.leaving import without_culprits
from modelpress_runner.dependency.prove import prove, prove_structure
from modelpress_runner.dependency.train_mode import check_train_mode
from modelpress_runner.dependency.unit_lists import Reasons
from modelpress_runner.edits.copies import check_copies
from modelpress_runner.edits.masks import Masks
from modelpress_runner.edits.replay import replay
from modelpress_runner.errors import CompressionError, InvalidSpecError, RunnerError
from modelpress_runner.methods.context import StageContext, Step, TrainingContext, Transform
from modelpress_runner.methods.procedure import Procedure, StepList
from modelpress_runner.methods.prune.chosen_groups import prunable
from modelpress_runner.methods.prune.covering import apply_masks, cover, removed_units, without_covered
from modelpress_runner.methods.prune.penalties import ADMM, L1, PROJECTION, GroupLasso, Penalty
from modelpress_runner.methods.prune.ranking import removed_count
from modelpress_runner.methods.prune.rewind import Rewind, Rewinding, Steps
from modelpress_runner.methods.prune.round import Round, RoundOutcome, apply_outcome, round_masks
from modelpress_runner.methods.prune.schedule import last_step
from modelpress_runner.methods.prune.selection import Selection, select
from modelpress_runner.methods.prune.statistics import (
    NO_DUMMY_INPUT,
    Scores,
    check_needs,
    collect,
    in_turn,
)
from modelpress_runner.methods.reconstruct.recover import (
    Reconstruction,
    check_reconstruct,
    is_structured,
    parameters,
)
from modelpress_runner.passes.run import Sources
from modelpress_runner.runtime import distributed as ranks
from modelpress_runner.runtime.heap import give_back
from modelpress_runner.stages.base import Accompanied, StageKind
from modelpress_runner.stages.prune_budget import TRIED, Budgeted, Solved, check_met, solve, with_shares
from modelpress_runner.subject.subject import Subject
from modelpress_runner.training.participants import Participant
from modelpress_runner.training.step import Training

_FIRST_DRAWS = 1  # by which groups are tried before anything is pruned; what is cut in the end is proven in full


def steps(prune: Prune, index: int, stage: PruneStage | None = None) -> Steps:
    """The steps of prune stage number `index`: for each round its masks and, if asked for, training; then the shrink.
    What prepares pruning, or keeps weights to go back to, comes before the first round.

    The dependency analysis runs once, in whichever step comes first (after a restart that may be a later one): until
    the shrink the model keeps its shape, so it gives the same answer.

    Raises:
        InvalidSpecError: an entry's schedule has more rounds than the stage.
    """
    stage = stage or PruneStage(prune, index, f"spec.stages[{index}].prune")
    rounds, train = prune.schedule.rounds, prune.schedule.train
    for number, entry in enumerate(prune.config_list):
        if entry.schedule is not None and entry.schedule.rounds > rounds:
            raise InvalidSpecError(
                f"{entry.schedule.rounds} rounds are more than the {rounds} of the stage, so the target would never be "
                f"reached; raise {stage.path}.schedule.rounds",
                f"{stage.path}.configList[{number}].schedule.rounds",
            )
    out: list[Step] = []
    if prune.sparsify is not None:
        along = stage.penalty
        out.append(
            Training("sparsify", prune.sparsify.epochs, prune.sparsify.max_steps, lambda training: [along(training)])
        )
    rewind = Rewind() if prune.schedule.rewind_to is not None else None
    if rewind is not None and train is not None:
        if prune.schedule.rewind_to:
            out.append(Training("train before weights are kept", max_steps=prune.schedule.rewind_to))
        out.append(Transform("keep weights", rewind.keep))
        out.append(Training("train before round 1", epochs=train.epochs, max_steps=train.max_steps))
    for number in range(1, rounds + 1):
        label = "prune" if rounds == 1 else f"prune round {number} of {rounds}"
        out.append(Transform(label, functools.partial(prune_once, stage, number)))
        if rewind is not None:
            out.append(Transform(f"rewind after {label}", rewind.rewind))
        if train is not None:
            out.append(Training(f"train after {label}", epochs=train.epochs, max_steps=train.max_steps))
    return Steps([*out, *stage.shrinking], rewind)


def prune_once(
    stage: PruneStage,
    number: int,
    context: StageContext,
    scores: Scores | None = None,
    shares: Mapping[str, float] | None = None,
) -> None:
    """One round of the stage, and what is reconstructed behind it; arguments as PruneStage.round has them."""
    kind = stage.prune.reconstruct
    before = {} if kind == "none" else parameters(context.model)
    if scores is None:
        scores = stage.solve(context)
    context.report(stage.round(context, number, scores, shares=shares))
    if kind != "none":
        context.report(Reconstruction(context, before, f"{stage.path}.reconstruct").run(kind))


class PruneKind(StageKind[Prune]):
    """Prune stages as a recipe has them."""

    name = "prune"
    removes = True

    def algorithm(self, block: Prune) -> str | None:
        """The stage's; entries may have others."""
        return block.algorithm

    def check(self, block: Prune, path: str, subject: Subject) -> None:
        """As StageKind.check."""
        if block.budgets is not None:
            message = "several sizes are artifacts of a job; give one budget here, or call mp.run with the job"
            raise InvalidSpecError(message, f"{path}.budgets")
        sources = Sources(subject.evaluator, subject.calibration_data)
        check_needs(block, path, sources, subject.dummy_input)
        check_reconstruct(block, f"{path}.reconstruct", sources, subject.dummy_input)

    def sizes(self, block: Prune) -> list[Prune]:
        """One for each of its budgets."""
        return [block.model_copy(update={"budgets": None, "budget": budget}) for budget in block.budgets or ()]

    def steps(self, block: Prune, index: int) -> list[Step]:
        """As `steps`."""
        return steps(block, index)

    def procedure(self, block: Prune, index: int) -> Procedure:
        """The steps, with the weights that a rewind goes back to, or with a search in the place of its one round; and
        the shares that a budget was solved to."""
        stage = PruneStage(block, index, f"spec.stages[{index}].prune")
        found = steps(block, index, stage)
        if block.search is not None:
            from modelpress_runner.stages.prune_search import Searching

            return Searching(stage, block.search)
        procedure = StepList(found) if found.rewind is None else Rewinding(found, found.rewind)
        return procedure if block.budget is None else Budgeted(procedure, stage)

    def participants(self, block: Prune, path: str, index: int, name: str) -> Accompanied:
        """A StepPruner; the shrink comes behind the training."""
        from modelpress_runner.stages.prune_by_step import StepPruner

        stage = PruneStage(block, index, path)

        def participants(training: TrainingContext) -> list[Participant]:
            pruner = StepPruner(stage, name, training)
            return [pruner] if block.sparsify is None else [stage.penalty(training, by_steps=True), pruner]

        return Accompanied(participants, tuple(stage.shrinking))

    def record(self, block: Prune) -> dict[str, Any]:
        """Algorithm and the sparsities that were asked for, ascending."""
        given = {block.sparsity if entry.sparsity is None else entry.sparsity for entry in block.config_list}
        return {
            "algorithm": block.algorithm,
            "sparsityAsked": sorted(value for value in given if value is not None),
        }


KIND = PruneKind()


@dataclass
class PruneStage:
    """A prune stage at work: rounds of masks, and the shrink. It keeps the dependency analysis between them."""

    prune: Prune
    index: int
    path: str
    known: ChannelDependencies | None = field(init=False, default=None)
    units: torch.Tensor | None = field(init=False, default=None)  # of `known`: what the last round removed
    solved: Solved | None = field(init=False, default=None)  # of a budget
    _tried: bool = field(init=False, default=False)

    @property
    def shrinks(self) -> bool:
        """Single weights leave nothing to shrink."""
        return self.prune.shrink and is_structured(self.prune)

    @property
    def couples(self) -> bool:
        """Whether layers that depend on each other lose the same channels, and those that take them their inputs."""
        return self.shrinks or (self.prune.reconstruct not in ("none", "batchNorm") and is_structured(self.prune))

    @property
    def shrinking(self) -> list[Transform]:
        """The step that removes what was masked, if the stage has one."""
        return [Transform("shrink", self.shrink)] if self.shrinks else []

    @property
    def scoring_steps(self) -> int | None:
        """How many training steps or batches data-driven methods score by; None: as their pass has it."""
        return self.prune.scores.steps if self.prune.scores else None

    def select(self, model: nn.Module) -> Selection:
        """The selected modules; those of a budget with the shares that were solved."""
        if self.prune.budget is None:
            return select(model, self.prune, self.path)
        selection = select(model, self.prune.model_copy(update={"sparsity": TRIED}), self.path)
        return selection if self.solved is None else with_shares(selection, self.solved.shares)

    def solve(self, context: StageContext) -> Scores | None:
        """Solves the budget, if there is one that is not solved yet; the scores that were collected for it."""
        if self.prune.budget is None or self.solved is not None:
            return None
        return solve(self, context)

    def restore(self, dependencies: ChannelDependencies) -> None:
        """Takes the analysis over that `sound` gave another time, of the same stage and model."""
        self.known, self._tried = dependencies, True

    def penalty(
        self, training: TrainingContext, by_steps: bool = False, shares: Mapping[str, float] | None = None
    ) -> Penalty:
        """What `sparsify` adds to the losses of a training; with `by_steps` until the stage's schedules end.

        `shares` are as `round` has them.
        """
        block, context = self.prune.sparsify, training.context
        assert block is not None
        choices = self.select(context.model).choices
        last = max(last_step(choice.schedule) for choice in choices.values()) if by_steps else None
        if block.penalty == "l1":
            return L1(block.strength, list(choices), last)
        if block.penalty == "group_lasso":
            return GroupLasso(block.strength, list(choices), last)

        def project() -> Masks:
            number = max(choice.schedule.rounds for choice in choices.values()) if last is None else last
            return self.outcome(context, number, {}, shares=shares).masks

        return ADMM(block.strength, list(choices), last, project, block.frequency or PROJECTION)

    def ranked(self, context: StageContext, number: int) -> tuple[Selection, Scores]:
        """The selection, and the scores of data-driven methods, as they are before round `number`."""
        selection = self.select(context.model)
        return selection, collect(context, selection, self.scoring_steps, (self.index, number), self.path)

    def coupling(self, context: StageContext, selection: Selection) -> ChannelDependencies | None:
        """Which channels go together; None: every module is pruned alone."""
        return self.sound(context, selection) if self.couples else None

    def outcome(
        self,
        context: StageContext,
        number: int,
        scores: Scores | None = None,
        earlier: Sequence[PruneStage] = (),
        shares: Mapping[str, float] | None = None,
        only: frozenset[str] | None = None,
    ) -> RoundOutcome:
        """As `round`, but nothing is pruned; of the modules `only`, None: of all."""
        selection = self.select(context.model)
        dependencies = self.coupling(context, selection)
        if only is not None:
            selection = replace(selection, choices={n: c for n, c in selection.choices.items() if n in only})
        if shares is not None:
            selection = with_shares(selection, shares)
        if scores is None:
            scores = collect(context, selection, self.scoring_steps, (self.index, number), self.path)
        leaving: Masks = {}
        for stage in earlier:
            if stage.known is not None and stage.units is not None:
                cover(leaving, context.model, stage.known, stage.units)
        return round_masks(
            context.model,
            selection,
            dependencies,
            context.masks,
            Round(context.seed, self.index, number, scores, leaving, context.target_device, uniform=context.uniform),
            self.path,
        )

    def check(self, context: StageContext) -> None:
        """Raises whatever `round` would have to say against the stage and this model, which stays as it is."""
        selection = self.select(context.model)
        dependencies = self.coupling(context, selection)
        dry = Round(context.seed, self.index, 0, device=context.target_device, dry=True)
        round_masks(context.model, selection, dependencies, context.masks, dry, self.path)

    def round(
        self,
        context: StageContext,
        number: int,
        scores: Scores | None = None,
        earlier: Sequence[PruneStage] = (),
        shares: Mapping[str, float] | None = None,
    ) -> str:
        """Scores and masks of one round; the masked weights are zero at once. What went is said in a line.

        `scores` are those of the data-driven methods, where somebody has collected them; None: they are collected here.
        What `earlier` stages have pruned and are still to shrink away counts for nothing in this one's shares.
        `shares` are sparsities of modules by name, in place of those that the block asks for; of others nothing goes.

        Modules that get new weights for what they lose are gone through block by block of the model, each with the
        inputs that the ones before give by then, so that no more is held of the data than what one block needs.
        """
        parts: Sequence[frozenset[str] | None] = [None]
        if scores is None:
            parts = in_turn(context.model, self.select(context.model)) or parts
        removed: dict[str, tuple[int, int]] = {}
        for number_of, part in enumerate(parts):
            outcome = self.outcome(context, number, scores, earlier, shares, part)
            if not number_of:
                self.units = outcome.units
            context.masks = ranks.broadcast_tensors(outcome.masks)
            weights = ranks.broadcast_tensors(outcome.weights) if outcome.weights else {}
            apply_outcome(context.model, replace(outcome, masks=context.masks, weights=weights))
            context.note(*outcome.notes)
            removed |= outcome.removed
        return _summary(removed)

    def shrink(self, context: StageContext) -> None:
        """Removes what the masks cover, as far as it is proven; what is not stays wide, with a note.

        Raises:
            CompressionError: a module that is selected by its exact name cannot be shrunk, the
                model cannot be proven at all, or a budget is not met by what is.
        """
        self._shrink(context)
        if self.solved is not None:
            check_met(self, context, self.solved)

    def _shrink(self, context: StageContext) -> None:
        model = context.model
        selection = self.select(model)
        dependencies = self.sound(context, selection)
        apply_masks(model, context.masks)
        removed = removed_units(model, dependencies, context.masks)
        groups = [group for group in dependencies.groups if removed[group.vector].any()]
        if not groups and not dependencies.refuted:
            # The model is a result like any other, and its notes say why it is as large as before.
            context.report("nothing to shrink")
            return
        # What says no more than what goes takes no memory while that is proven.
        context.masks = without_covered(context.masks, model, dependencies, removed)
        give_back()
        left = removed
        try:
            good, bad, figures, moved = ranks.on_rank_zero(lambda: self._proven(context, dependencies, groups, removed))
            left = _only(removed, [groups[index] for index, _ in bad])
        finally:
            cover(context.masks, model, dependencies, left)
        for index, reason in bad:
            self._leave(context, selection, groups[index], reason)
        edits = edits_of(dependencies, _only(removed, [groups[index] for index in good]))
        if not edits:
            context.note(f"Nothing was shrunk by {self.path}: no cut was proven")
            return
        masks: Masks = {name: dict(tensors) for name, tensors in context.masks.items()}
        context.masks = {}  # so that each old mask goes when its smaller one is there
        give_back()
        replay(model, edits, masks)
        give_back()
        context.masks = {
            name: tensors for name, tensors in masks.items() if any(bool((m == 0).any()) for m in tensors.values())
        }
        context.edits += edits
        norms = dependencies.approximated(_only(removed, [groups[index] for index in good]))
        if norms:
            context.note(
                f"Approximate, as {self.path}.exact: false allows: {_listed(norms)} take their statistics over the "
                f"channels that are left; on the dummy input that moves the outputs by {moved:.3g} of their largest "
                "value, before any training"
            )
        before, after, macs, new_macs = figures
        context.report(f"shrunk: {before} -> {after} parameters, {macs} -> {new_macs} MACs")

    def _proven(
        self,
        context: StageContext,
        dependencies: ChannelDependencies,
        groups: list[DependencyGroup],
        removed: torch.Tensor,
    ) -> tuple[list[int], list[tuple[int, str]], list[int], float]:
        """Which groups can be cut, which cannot and why, what it saves (parameters and MACs before and after), and how
        far LayerNorms that lose channels move the outputs."""
        figures: list[int] = []
        moved: list[float] = []

        def proof(part: list[int]) -> None:
            edits = edits_of(dependencies, _only(removed, [groups[index] for index in part]))
            found = prove(context.model, edits, context.dummy_input, loose=not self.prune.exact)
            check_train_mode(context.model, edits, context.dummy_input)
            figures[:] = [*found.parameters, *found.macs]
            moved[:] = [found.approximation or 0.0]

        try:
            good, bad = without_culprits(list(range(len(groups))), proof, self.prune.shrink_timeout_seconds)
        except RunnerError as error:
            raise CompressionError(str(error), f"{self.path}.shrink") from error
        return good, list(bad.items()), figures, moved[0] if moved else 0.0

    def _leave(self, context: StageContext, selection: Selection, group: DependencyGroup, reason: str) -> None:
        """Notes why a group keeps its width; an error if it was asked for by name."""
        members = [name for name in (*group.producers, *group.followers) if name in selection.choices]
        listed = ", ".join(f"'{name}'" for name in members)
        for name in members:
            choice = selection.choices[name]
            if choice.named:
                raise CompressionError(
                    f"{listed}: {reason}; set shrink: false, or leave them out",
                    f"{self.path}.configList[{choice.entry}].opNames",
                )
        count = len(group.units)
        context.note(f"Pruned channels of {listed} are zero, but all {count} stay in the model: {reason}")

    def sound(self, context: StageContext, selection: Selection) -> ChannelDependencies:
        """The dependency analysis, without the units of groups that cannot lose channels, whatever it says.

        Tried is a cut of as many channels as the target asks for, drawn at random: which ones cannot matter if the
        analysis is right. Neither weights nor masks matter, so this gives the same answer throughout a stage.
        """
        dependencies = self._dependencies(context)
        if self._tried:
            return dependencies
        removed = torch.zeros(dependencies.unit_count, dtype=torch.bool)
        groups = []
        for group, choices in prunable(dependencies, selection):
            count = removed_count(len(group.units), min(choice.sparsity for choice in choices))
            if count:
                generator = Round(context.seed, self.index, 0).generator(group.producers[0])
                removed[group.vector[torch.randperm(len(group.units), generator=generator)[:count]]] = True
                groups.append(group)

        def proof(part: list[int]) -> None:
            edits = edits_of(dependencies, _only(removed, [groups[index] for index in part]))
            loose = not self.prune.exact
            prove_structure(context.model, edits, context.dummy_input, draws=_FIRST_DRAWS, loose=loose)

        def bad() -> list[tuple[int, str]]:
            seconds = self.prune.shrink_timeout_seconds
            return list(without_culprits(list(range(len(groups))), proof, seconds)[1].items())

        try:
            found = ranks.on_rank_zero(bad)
        except RunnerError as error:
            raise CompressionError(str(error), f"{self.path}.shrink") from error
        refuted = Reasons((reason, groups[index].units.array) for index, reason in found)
        # The same object where nothing is refuted: it keeps what it has worked out of itself.
        self.known, self._tried = replace(dependencies, refuted=refuted) if refuted else dependencies, True
        return self.known

    def _analysed(self, context: StageContext) -> ChannelDependencies:
        return find_dependencies(context.model, context.dummy_input, self.prune.exact)

    def _dependencies(self, context: StageContext) -> ChannelDependencies:
        if self.known is None:
            if context.dummy_input is None:
                raise InvalidSpecError(NO_DUMMY_INPUT, f"{self.path}.shrink")
            check_copies(context.model, f"{self.path}.shrink")  # a shrink is proven on copies
            try:
                found = ranks.on_rank_zero(lambda: self._analysed(context).to_dict())
                self.known = ChannelDependencies.from_dict(found)
                context.note(*self.known.notes)
            except CompressionError as error:
                raise CompressionError(str(error), f"{self.path}.shrink") from error
        return self.known


def _listed(names: list[str]) -> str:
    return keys_in_words((f"'{name}'" for name in names), 6)


def _only(removed: torch.Tensor, groups: list[DependencyGroup]) -> torch.Tensor:
    """What is removed of these groups."""
    units = torch.zeros_like(removed)
    for group in groups:
        units[group.vector] = removed[group.vector]
    return units


def _summary(of_modules: Mapping[str, tuple[int, int]]) -> str:
    removed, total = (sum(column) for column in zip(*of_modules.values(), strict=True))
    shares = ", ".join(f"{name} {gone}/{of}" for name, (gone, of) in list(of_modules.items())[:8])
    more = "" if len(of_modules) <= 8 else ", ..."
    return f"removed {removed} of {total} ({removed / total:.4f}): {shares}{more}"
