"""The dropLayers and dropExperts stages: rounds in which whole layers or experts go, with training between them."""

from __future__ import annotations

import abc
import copy
import functools
import hashlib
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import torch

from modelpress.api.v1alpha1 import DropExperts, DropLayers
from modelpress_runner.dependency.prove import prove
from modelpress_runner.dependency.train_mode import check_train_mode
from modelpress_runner.edits.base import Edit
from modelpress_runner.edits.bypass import Bypass
from modelpress_runner.edits.copies import check_copies
from modelpress_runner.edits.replay import replay
from modelpress_runner.errors import CompressionError, InvalidModelError, InvalidSpecError
from modelpress_runner.evaluators.base import Score
from modelpress_runner.export.state import state_digest
from modelpress_runner.methods.context import StageContext, Step, Transform
from modelpress_runner.methods.drop import experts, layers
from modelpress_runner.methods.drop.whole import wanted
from modelpress_runner.methods.procedure import Procedure, StepList
from modelpress_runner.methods.prune.budget import first_within
from modelpress_runner.methods.prune.ranking import rounded
from modelpress_runner.passes.run import Sources
from modelpress_runner.runtime import distributed as ranks
from modelpress_runner.runtime import rng
from modelpress_runner.runtime.heap import give_back
from modelpress_runner.stages.base import StageKind
from modelpress_runner.subject.subject import Subject
from modelpress_runner.training.step import Training

B = TypeVar("B", DropLayers, DropExperts)
_COLLECTING = 2**29  # part of the seed: the streams of collecting are others than those of the recipe's steps
_NEAR, _TRIES = 0.02, 8  # of a latency: within so much below the bound, or so many models timed


class Droppable(abc.ABC):
    """What may go of a model as it is, one after the other.

    Attributes:
        total: how many there are: layers, or experts of each layer.
        least: how many of them stay at least.
        notes: on what cannot go.
    """

    total: int
    least: int
    notes: Sequence[str] = ()

    @abc.abstractmethod
    def scores(self, context: StageContext, seed: int) -> list[list[float]]:
        """What each is worth, a list for each ranking; those worth least go first. Alike on every rank."""

    @abc.abstractmethod
    def edits(self, order: list[list[int]], count: int) -> list[Edit]:
        """What takes the first `count` of each ranking out of the model."""

    @abc.abstractmethod
    def names(self, order: list[list[int]], count: int) -> list[str]:
        """Of what goes then."""

    @abc.abstractmethod
    def proven(self, context: StageContext, edits: Sequence[Edit]) -> str:
        """Proves that `edits` do what they are to do; what was saved, as a clause.

        Raises:
            CompressionError: they do not.
        """


class Layers(Droppable):
    """Residual blocks."""

    def __init__(self, context: StageContext, block: DropLayers, path: str) -> None:
        self._block, self._path = block, path
        found, self.notes = ranks.on_rank_zero(
            lambda: layers.layers_of(context.model, block, context.dummy_input, path)
        )
        self._layers: list[Bypass] = found
        self.total, self.least = len(found), 1

    def scores(self, context: StageContext, seed: int) -> list[list[float]]:
        """As Droppable.scores: one ranking."""
        if self._block.by == "loss":
            return [layers.losses(context, self._layers, self._path)]
        steps = None if self._block.scores is None else self._block.scores.steps
        return [layers.influences(context, self._layers, steps, seed, self._path)]

    def edits(self, order: list[list[int]], count: int) -> list[Edit]:
        """As Droppable.edits."""
        return [self._layers[number] for number in sorted(order[0][:count])]

    def names(self, order: list[list[int]], count: int) -> list[str]:
        """As Droppable.names."""
        return [self._layers[number].module for number in sorted(order[0][:count])]

    def proven(self, context: StageContext, edits: Sequence[Edit]) -> str:
        """As Droppable.proven: as a shrink is, beside the model whose blocks give on what they take."""
        found = prove(context.model, edits, context.dummy_input)
        check_train_mode(context.model, edits, context.dummy_input)
        (before, after), (macs, fewer) = found.parameters, found.macs
        return f"{before} -> {after} parameters, {macs} -> {fewer} MACs"


class Experts(Droppable):
    """Experts of mixtures, of each as many."""

    def __init__(self, context: StageContext, block: DropExperts, path: str) -> None:
        self._block, self._path, self._model = block, path, context.model
        self._taken = experts.mixtures_of(context.model, block, path)
        self.total, self.least = self._taken[0].experts, max(each.chosen for each in self._taken)

    def scores(self, context: StageContext, seed: int) -> list[list[float]]:
        """As Droppable.scores: a ranking for each layer."""
        steps = None if self._block.scores is None else self._block.scores.steps
        found = experts.usages(context, self._taken, steps, seed, self._path)
        return [found[each.module] for each in self._taken]

    def edits(self, order: list[list[int]], count: int) -> list[Edit]:
        """As Droppable.edits."""
        out: list[Edit] = []
        for each, numbers in zip(self._taken, order, strict=True):
            out += each.edits(self._model, sorted(numbers[count:]))
        return out + experts.counts_beside(self._model, self._taken, self.total - count)

    def names(self, order: list[list[int]], count: int) -> list[str]:
        """As Droppable.names."""
        return [
            f"{each.module}: {', '.join(map(str, sorted(numbers[:count])))}"
            for each, numbers in zip(self._taken, order, strict=True)
        ]

    def proven(self, context: StageContext, edits: Sequence[Edit]) -> str:
        """As Droppable.proven: layer by layer."""
        before, after = experts.prove(context.model, self._taken, edits, context.dummy_input)
        return f"{before} -> {after} parameters"


class DropStage(Generic[B]):
    """One of the stages at work.

    Attributes:
        total: how many there were when it began; None: it has not begun.
        goal: how many of them are to go.
    """

    def __init__(self, block: B, index: int, path: str, units: type[Layers] | type[Experts]) -> None:
        self.block: B = block
        self.index, self.path = index, path
        self._units: Any = units
        self.total: int | None = None
        self.goal = 0

    def steps(self) -> list[Step]:
        """For each round what goes, and its training."""
        out: list[Step] = []
        rounds = self.block.rounds
        for number in range(1, rounds + 1):
            label = "drop" if rounds == 1 else f"drop round {number} of {rounds}"
            out.append(Transform(label, functools.partial(self._round, number)))
            if self.block.train is not None:
                train = self.block.train
                out.append(Training(f"train after {label}", epochs=train.epochs, max_steps=train.max_steps))
        return out

    def _round(self, number: int, context: StageContext) -> None:
        if context.dummy_input is None:
            raise InvalidSpecError("what goes is found and proven by running the model; give a dummy_input", self.path)
        check_copies(context.model, self.path)
        units: Droppable = self._units(context, self.block, self.path)
        context.note(*units.notes)
        seed = rng.derive(rng.derive(context.seed, _COLLECTING + self.index), number)
        table = self._table(context) if self.total is None else {}
        order: list[list[int]] | None = None
        if self.total is None:
            self.total = units.total
            most = units.total - units.least
            if most < 1:
                raise InvalidSpecError(f"of {units.total} none can go; select more", self.path)
            if self.block.budget is None:
                self.goal = wanted(self.block, units.total, most, "of them", self.path)
            else:
                order = self._order(units, context, seed, table)
                self.goal = ranks.on_rank_zero(lambda: self._solved(units, context, order or [], table))
        count = self.goal * number // self.block.rounds - (self.total - units.total)
        if count < 1:
            context.report("nothing goes in this round")
            return
        order = order or self._order(units, context, seed, table)
        edits: list[Edit] = units.edits(order, count)
        names: list[str] = units.names(order, count)
        try:
            saved = ranks.on_rank_zero(lambda: units.proven(context, edits))
        except (CompressionError, InvalidModelError) as error:
            raise CompressionError(f"without {', '.join(names)}: {error}", self.path) from error
        replay(context.model, edits, context.masks)
        give_back()
        context.edits += edits
        context.record["dropped"] = [*context.record.get("dropped", []), *names]
        context.note(f"{self.path} took out {', '.join(names)}")
        context.report(f"dropped {', '.join(names[:8])}{', ...' if names[8:] else ''}: {saved}")

    def _order(self, units: Droppable, context: StageContext, seed: int, table: dict[str, Any]) -> list[list[int]]:
        """Of each ranking what goes first; of equal ones the later goes first, as later layers are worth less."""
        if "scores" not in table:
            table["scores"] = units.scores(context, seed)
            self._keep(context, table)
        out = []
        for scores in table["scores"]:
            near = rounded(torch.tensor(scores, dtype=torch.float64)).tolist()
            out.append(sorted(range(len(near)), key=lambda number: (near[number], -number)))
        return out

    def _solved(self, units: Droppable, context: StageContext, order: list[list[int]], table: dict[str, Any]) -> int:
        """How few may go for the budget to be met."""
        budget, measures = self.block.budget, context.measures
        assert budget is not None
        if measures is None:
            raise InvalidSpecError("a budget is measured, and nothing here measures", f"{self.path}.budget")
        timed = budget.metric == "latencyMs"
        named = f"{budget.metric} in {measures.conditions}" if timed or budget.metric == "sizeBytes" else budget.metric
        costs: dict[str, list[float]] = table.setdefault(named, {})
        most, made = units.total - units.least, 0

        def value(figures: list[float]) -> float:
            whole, part = figures
            return part if budget.max is not None else part / whole

        def cost(count: int) -> float:
            nonlocal made
            context.stop()
            made += 1
            small = copy.deepcopy(
                context.model, {id(each): each for each in (*context.model.parameters(), *context.model.buffers())}
            )
            if count:
                replay(small, units.edits(order, count))
            costs[str(count)] = measures.of(budget.metric, [context.model, small])
            return value(costs[str(count)])

        bound = budget.max if budget.max is not None else budget.max_ratio
        assert bound is not None
        goal = first_within(
            most,
            bound * (1 - _NEAR / 2) if timed else bound,
            cost,
            {int(count): value(figures) for count, figures in costs.items()},
            near=_NEAR if timed else 0.0,
            tries=_TRIES if timed else 0,
        )
        self._keep(context, table)
        if goal is None:
            least, of = value(costs[str(most)]), "" if budget.max is not None else " of what it is"
            raise InvalidSpecError(
                f"{budget.metric} cannot come down to {bound:g}{of}: with all that may go it is {least:.6g}{of}; "
                "select more, or raise the budget",
                f"{self.path}.budget",
            )
        whole, part = costs[str(goal)]
        text = f"budget: {budget.metric} {whole:.6g} -> {part:.6g} ({part / whole:.4f}), {made} models measured"
        context.report(text)
        context.note(text)
        return goal

    def _table(self, context: StageContext) -> dict[str, Any]:
        """What another run of the same stage on the same model has worked out, with whatever budget."""
        tables = None if context.measures is None else context.measures.tables
        if tables is None:
            return {}
        key = self._key(context)
        found: dict[str, Any] = ranks.on_rank_zero(lambda: tables.get(key) or {})
        return found

    def _keep(self, context: StageContext, table: dict[str, Any]) -> None:
        tables = None if context.measures is None else context.measures.tables
        if tables is not None and self.block.budget is not None and ranks.is_rank_zero():
            tables.put(self._key(context), table)

    def _key(self, context: StageContext) -> str:
        block = self.block.to_dict()
        for field in ("budget", "sparsity", "count", "train", "rounds"):
            block.pop(field, None)
        total = hashlib.sha256(repr((type(self.block).__name__, block, context.seed, self.index)).encode())
        total.update(repr(ranks.world_size()).encode() + state_digest(context.model).encode())
        return total.hexdigest()


class Dropping(Procedure):
    """The steps of a stage; checkpoints hold how many are to go, for a later round finds another model."""

    def __init__(self, stage: DropStage[Any]) -> None:
        self._stage, self._steps = stage, StepList(stage.steps())

    def next(self, score: Score | None) -> Step | None:
        """As Procedure.next."""
        return self._steps.next(score)

    def trainings(self) -> Sequence[Training]:
        """As Procedure.trainings."""
        return self._steps.trainings()

    def state_dict(self) -> dict[str, Any]:
        """That of the steps, how many there were and how many go."""
        return {"steps": self._steps.state_dict(), "total": self._stage.total, "goal": self._stage.goal}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As Procedure.load_state_dict."""
        self._steps.load_state_dict(state["steps"])
        self._stage.total, self._stage.goal = state["total"], state["goal"]


class DropKind(StageKind[B], Generic[B]):
    """Runs them."""

    removes = True
    units: type[Layers] | type[Experts]

    def check(self, block: B, path: str, subject: Subject) -> None:
        """As StageKind.check."""
        if subject.dummy_input is None:
            raise InvalidSpecError("what goes is found and proven by running the model; give a dummy_input", path)
        evaluator = subject.evaluator
        if isinstance(block, DropLayers) and block.by == "loss":
            if evaluator is None or not evaluator.can_evaluate:
                needed = "an evaluator" if evaluator is None else evaluator.evaluate_needs
                raise InvalidSpecError(f"loss is that of the job's score; give {needed}", f"{path}.by")
            return
        missing = Sources(evaluator, subject.calibration_data).missing({"activations"})
        if missing is not None:
            raise InvalidSpecError(f"scores are seen in a pass over data, but {missing}", path)

    def procedure(self, block: B, index: int) -> Procedure:
        """As StageKind.procedure."""
        return Dropping(DropStage(block, index, f"spec.stages[{index}].{self.name}", self.units))

    def record(self, block: B) -> dict[str, Any]:
        """What was asked for."""
        asked = {"sparsityAsked": [block.sparsity]} if block.sparsity is not None else {}
        return asked if block.count is None else {"countAsked": block.count}


class DropLayersKind(DropKind[DropLayers]):
    """Whole layers."""

    name = "dropLayers"
    units = Layers


class DropExpertsKind(DropKind[DropExperts]):
    """Whole experts."""

    name = "dropExperts"
    units = Experts


LAYERS, EXPERTS = DropLayersKind(), DropExpertsKind()
