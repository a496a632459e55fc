"""The prune stage: rounds of masks, with training between them, and the shrink."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, field
from typing import Any

import torch

from modelpress.api.v1alpha1 import Prune
from modelpress_runner.dependency.analyse import find_coupling
from modelpress_runner.dependency.groups import Coupling
from modelpress_runner.dependency.prove import prove
from modelpress_runner.edits.axes import axis_of
from modelpress_runner.edits.cuts import Cut, replay
from modelpress_runner.edits.masks import Masks
from modelpress_runner.errors import CompressionError, InvalidSpecError, RunnerError
from modelpress_runner.methods.context import StageContext, Step, Transform
from modelpress_runner.methods.prune.registry import method
from modelpress_runner.methods.prune.round import Outcome, Round, apply_masks, removed_units, round_masks
from modelpress_runner.methods.prune.selection import select
from modelpress_runner.methods.prune.statistics import (
    DEFAULT_STEPS,
    NO_DUMMY_INPUT,
    Scores,
    check_needs,
    collect,
    is_data_driven,
)
from modelpress_runner.runtime import distributed as ranks
from modelpress_runner.stages.base import StageKind
from modelpress_runner.subject.subject import Subject
from modelpress_runner.training.step import Training

CULPRIT_SECONDS = 60  # spent at most, after a failed proof, on finding out which layers to name


def steps(prune: Prune, index: int) -> list[Step]:
    """The steps of prune stage number `index`: for each round its masks and, if asked for, training; then the shrink.

    The dependency analysis runs once, in whichever step comes first (after a restart that may be a later one): until
    the shrink the model keeps its shape, so it gives the same answer.

    Raises:
        InvalidSpecError: an entry's schedule has more rounds than the stage.
    """
    stage = PruneStage(prune, index)
    rounds, train = prune.schedule.rounds, prune.schedule.train
    for number, entry in enumerate(prune.config_list):
        if entry.schedule is not None and entry.schedule.rounds > rounds:
            raise InvalidSpecError(
                f"{entry.schedule.rounds} rounds are more than the {rounds} of the stage, so the target would never be "
                f"reached; raise {stage.path}.schedule.rounds",
                f"{stage.path}.configList[{number}].schedule.rounds",
            )
    out: list[Step] = []
    for number in range(1, rounds + 1):
        label = "prune" if rounds == 1 else f"prune round {number} of {rounds}"
        out.append(Transform(label, lambda context, number=number: stage.round(context, number)))
        if train is not None:
            out.append(Training(f"train after {label}", epochs=train.epochs, max_steps=train.max_steps))
    if stage.shrinks:
        out.append(Transform("shrink", stage.shrink))
    return out


class PruneKind(StageKind[Prune]):
    """Prune stages as a recipe has them."""

    name = "prune"
    removes = True

    def algorithm(self, block: Prune) -> str | None:
        """The stage's; entries may have others."""
        return block.algorithm

    def check(self, block: Prune, path: str, subject: Subject) -> None:
        """As StageKind.check."""
        check_needs(block, path, subject.evaluator, subject.dummy_input)

    def steps(self, block: Prune, index: int) -> list[Step]:
        """As `steps`."""
        return steps(block, index)

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
    path: str = field(init=False)
    known: Coupling | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.path = f"spec.stages[{self.index}].prune"

    @property
    def shrinks(self) -> bool:
        """Single weights leave nothing to shrink."""
        algorithms = {entry.algorithm or self.prune.algorithm for entry in self.prune.config_list if not entry.exclude}
        return self.prune.speedup and any(method(name).structured for name in algorithms)

    @property
    def scoring_steps(self) -> int:
        """How many training steps data-driven methods score by."""
        return self.prune.scores.steps if self.prune.scores else DEFAULT_STEPS

    def check(self, context: StageContext) -> None:
        """Raises whatever `round` would have to say against the stage and this model, which stays as it is."""
        selection = select(context.model, self.prune, self.path)
        coupling = self._coupling(context) if self.shrinks else None
        equal = {
            choice.module: torch.ones(axis_of(context.model, choice.module, "out").size, dtype=torch.float64)
            if method(choice.algorithm).structured
            else torch.ones_like(context.model.get_submodule(choice.module).weight, dtype=torch.float64, device="cpu")
            for choice in selection.choices.values()
            if is_data_driven(choice)
        }
        dry = Round(context.seed, self.index, 0, equal)
        round_masks(context.model, selection, coupling, context.masks, dry, self.path)

    def round(self, context: StageContext, number: int, scores: Scores | None = None) -> None:
        """Scores and masks of one round; the masked weights are zero at once.

        `scores` are those of the data-driven methods, where somebody has collected them; None: they are collected here.
        """
        selection = select(context.model, self.prune, self.path)
        coupling = self._coupling(context) if self.shrinks else None
        if scores is None:
            scores = collect(context, selection, self.scoring_steps, (self.index, number), self.path)
        outcome = round_masks(
            context.model,
            selection,
            coupling,
            context.masks,
            Round(context.seed, self.index, number, scores),
            self.path,
        )
        context.masks = ranks.agreed_tensors(outcome.masks)
        apply_masks(context.model, context.masks)
        context.notes += [note for note in outcome.notes if note not in context.notes]
        context.report(_summary(outcome))

    def shrink(self, context: StageContext) -> None:
        """Removes what the masks cover, on a copy first, and on the model once the copy is proven."""
        coupling = self._coupling(context)
        model = context.model
        apply_masks(model, context.masks)
        removed = removed_units(model, coupling, context.masks)
        cuts = _cuts(coupling, removed)
        if not cuts:
            raise CompressionError(
                "nothing to shrink: the sparsity of every selected layer is less than one of its channels; raise it",
                f"{self.path}.sparsity",
            )
        try:
            small = copy.deepcopy(model)
        except Exception as error:
            raise CompressionError(
                f"the model cannot be copied, so a shrink cannot be proven: {type(error).__name__}: {error}; "
                "set speedup: false",
                f"{self.path}.speedup",
            ) from error
        try:
            replay(small, cuts)
            proof = prove(model, small, context.dummy_input)
        except RunnerError as error:
            raise CompressionError(
                f"{error}{_culprits(model, coupling, removed, context.dummy_input)}", f"{self.path}.speedup"
            ) from error
        masks = _sliced(model, context.masks, cuts)
        replay(model, cuts)
        context.masks = masks
        context.cuts += cuts
        (before, after), (macs, new_macs) = proof.parameters, proof.macs
        context.report(f"shrunk: {before} -> {after} parameters, {macs} -> {new_macs} MACs")

    def _coupling(self, context: StageContext) -> Coupling:
        if self.known is None:
            if context.dummy_input is None:
                raise InvalidSpecError(NO_DUMMY_INPUT, f"{self.path}.speedup")

            def note(text: str) -> None:
                if text not in context.notes:
                    context.notes.append(text)

            try:
                limit = self.prune.speedup_timeout_seconds
                found = ranks.by_main(lambda: find_coupling(context.model, context.dummy_input, limit, note).to_dict())
                self.known = Coupling.from_dict(found)
            except CompressionError as error:
                raise CompressionError(str(error), f"{self.path}.speedup") from error
        return self.known


def _cuts(coupling: Coupling, removed: torch.Tensor) -> list[Cut]:
    return [
        Cut(axis.module, axis.axis, tuple(torch.nonzero(kept).flatten().tolist()))
        for axis, kept in coupling.kept(removed)
    ]


def _culprits(model: torch.nn.Module, coupling: Coupling, removed: torch.Tensor, dummy_input: object) -> str:
    """Which dependency groups fail even when they are shrunk alone, as the end of a message."""
    end = time.monotonic() + CULPRIT_SECONDS
    names: list[str] = []
    for group in coupling.groups:
        alone = torch.zeros_like(removed)
        alone[list(group.units)] = removed[list(group.units)]
        cuts = _cuts(coupling, alone)
        if not cuts or time.monotonic() > end:
            continue
        small = copy.deepcopy(model)
        try:
            replay(small, cuts)
            prove(model, small, dummy_input)
        except RunnerError:
            names += [name for name in group.producers if name not in names]
    if not names:
        return "; set speedup: false, or exclude layers until it holds"
    listed = ", ".join(f"'{name}'" for name in names[:8]) + (" and others" if len(names) > 8 else "")
    return f"; the layers at fault are {listed}: exclude them, or set speedup: false"


def _sliced(model: torch.nn.Module, masks: Masks, cuts: list[Cut]) -> Masks:
    """The masks cut like the model; those of modules that keep everything they have left are dropped."""
    twin = copy.deepcopy(model)
    modules = dict(twin.named_modules())
    with torch.no_grad():
        for name, tensors in masks.items():
            for tensor, mask in tensors.items():
                getattr(modules[name], tensor).copy_(mask)
    replay(twin, cuts)
    out: Masks = {}
    for name, tensors in masks.items():
        left = {tensor: getattr(modules[name], tensor).detach().clone() for tensor in tensors}
        if any(bool((mask == 0).any()) for mask in left.values()):
            out[name] = left
    return out


def _summary(outcome: Outcome) -> str:
    removed, total = (sum(column) for column in zip(*outcome.removed.values(), strict=True))
    shares = ", ".join(f"{name} {gone}/{of}" for name, (gone, of) in list(outcome.removed.items())[:8])
    more = "" if len(outcome.removed) <= 8 else ", ..."
    return f"removed {removed} of {total} ({removed / total:.4f}): {shares}{more}"
