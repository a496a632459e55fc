"""Tuning: quantizes copies of the model, scores them, and says which layers are to stay as they are.

Trials are kept beside the run's checkpoint, so that a run that goes on after a restart makes none of them again; their
seconds count, and with them what is chosen is the same.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modelpress.api.v1alpha1 import DEFAULT_METRIC, Calibration, Quantize, Tune, TuneCriterion
from modelpress_runner.edits.quantize import dense_class
from modelpress_runner.errors import CompressionError, InvalidSpecError
from modelpress_runner.export.state import state_digest
from modelpress_runner.methods.context import StageContext
from modelpress_runner.methods.quantize.allocation import stored_bytes
from modelpress_runner.methods.quantize.effects import aside
from modelpress_runner.methods.quantize.selection import Selection
from modelpress_runner.methods.quantize.strategies import Choice, Field, Outcome, rounds
from modelpress_runner.runtime import distributed as ranks

_OBSERVERS = ("minMax", "kl", "percentile", "mse")


@dataclass(frozen=True)
class Trial:
    """A choice, the scores with it, and what they are worth."""

    choice: Choice
    scores: Mapping[str, float]
    outcome: Outcome
    seconds: float


@dataclass(frozen=True)
class Judge:
    """Criteria against the scores of the model as it was."""

    criteria: Sequence[TuneCriterion]
    before: Mapping[str, float]
    goal: str
    path: str

    def __post_init__(self) -> None:
        for number, each in enumerate(self.criteria):
            where = f"{self.path}.criteria[{number}]"
            if each.metric not in self.before:
                listed = ", ".join(self.before)
                raise InvalidSpecError(
                    f"the evaluator returns no metric {each.metric!r}; it returns {listed}", f"{where}.metric"
                )
            if each.absolute is None and not self.before[each.metric]:
                raise InvalidSpecError(
                    f"{each.metric} is 0, so no share of it can be lost; write absolute", f"{where}.relative"
                )

    def loss(self, criterion: TuneCriterion, scores: Mapping[str, float]) -> float:
        """What a score lost: relative, or in its own units where the criterion is absolute."""
        before, now = self.before[criterion.metric], scores[criterion.metric]
        goal = criterion.goal or (self.goal if criterion.metric == DEFAULT_METRIC else "maximize")
        lost = before - now if goal == "maximize" else now - before
        lost = math.inf if math.isnan(lost) else lost
        return lost if criterion.absolute is not None else lost / abs(before)

    def outcome(self, scores: Mapping[str, float], saved: int) -> Outcome:
        """What scores are worth."""
        missed = [max(0.0, self.loss(each, scores) - _bound(each)) for each in self.criteria]
        return Outcome(max(missed), self.loss(self.criteria[0], scores), saved)

    def sentences(self, scores: Mapping[str, float]) -> list[str]:
        """One for each criterion that is missed: by how much."""
        out = []
        for each in self.criteria:
            lost, bound = self.loss(each, scores), _bound(each)
            if lost > bound:
                before, now = self.before[each.metric], scores[each.metric]
                unit = "" if each.absolute is not None else " of it"
                out.append(
                    f"{each.metric} {before:.6g} -> {now:.6g} lost {lost:.4g}{unit}, {lost - bound:.4g} more than the "
                    f"{bound:g} of {self.path}"
                )
        return out


def _bound(criterion: TuneCriterion) -> float:
    if criterion.absolute is not None:
        return criterion.absolute
    return 0.01 if criterion.relative is None else criterion.relative


def settings_of(block: Quantize, looks: bool) -> list[Quantize]:
    """The block with each setting of observers that its method knows; its own first.

    Args:
        looks: ranges of activations come from data.
    """
    out = [block]
    if looks:
        own = block.calibration
        for observer in _OBSERVERS:
            fields = {"observer": observer, "steps": None if own is None else own.steps}
            found = Calibration.model_validate({key: value for key, value in fields.items() if value is not None})
            if observer != (own.observer if own is not None else "minMax"):
                out.append(block.model_copy(update={"calibration": found}))
    if block.algorithm != "hqq" and block.weight_observer != "mse":
        out.append(block.model_copy(update={"weight_observer": "mse"}))
    return out


def tune(
    context: StageContext,
    selection: Selection,
    block: Quantize,
    settings: Sequence[Quantize],
    carry_out: Callable[[StageContext, Selection, Quantize], None],
    effects: Callable[[], Mapping[str, float]],
    path: str,
) -> tuple[Selection, Quantize]:
    """What of a selection is to be quantized, and how; the record's `tuning` says what came of it.

    Args:
        context: its model stays as it is.
        selection: all that may be quantized.
        block: with `tune`.
        settings: what is tried of observers, the first being the block itself.
        carry_out: quantizes a context's model.
        effects: what each layer alone does to the outputs.
        path: of the block.

    Raises:
        InvalidSpecError: the evaluator has no such metric.
        CompressionError: no trial could be made.
    """
    assert block.tune is not None
    assert context.score_of is not None
    tuning, model = block.tune, context.model
    judge = Judge(tuning.criteria, context.score_of(model), context.goal, f"{path}.tune")
    types: dict[str, tuple[str, ...]] = {}
    for name in selection.layers:
        kind = dense_class(model.get_submodule(name)).__name__
        types[kind] = (*types.get(kind, ()), name)
    field = Field(types, len(settings), effects, context.seed, tuning.max_trials)
    runner = _Runner(context, selection, settings, carry_out, judge, tuning)
    done = runner.run(field)
    if not done:
        raise CompressionError("no trial of tuning could be made", f"{path}.tune")
    best = min(done, key=lambda trial: trial.outcome.rank)
    missed = judge.sentences(best.scores)
    floats = [name for name in selection.layers if name in best.choice.floats]
    context.record["tuning"] = {
        "strategy": tuning.strategy,
        "trials": len(done),
        "met": not missed,
        "unmet": missed,
        "before": dict(judge.before),
        "after": dict(best.scores),
        "floats": floats,
        "setting": best.choice.setting,
    }
    listed = ", ".join(floats) or "nothing"
    met = "within bounds" if not missed else "; ".join(missed)
    context.note(f"tuning: {len(done)} trials, {listed} left as it was: {met}")
    layers = {name: targets for name, targets in selection.layers.items() if name not in best.choice.floats}
    return Selection(layers, selection.notes), settings[best.choice.setting]


@dataclass
class _Runner:
    """Makes trials, each choice once."""

    context: StageContext
    selection: Selection
    settings: Sequence[Quantize]
    carry_out: Callable[[StageContext, Selection, Quantize], None]
    judge: Judge
    tuning: Tune

    def run(self, field: Field) -> list[Trial]:
        done: dict[Choice, Trial] = {}
        began = self._digest()
        for name, trials in rounds(field, self.tuning.strategy, self.tuning.quant_level):
            told: Outcome | None = None
            while True:
                try:
                    choice = next(trials) if told is None else trials.send(told)
                except StopIteration:
                    break
                if choice not in done:
                    if self._over(done):
                        return list(done.values())
                    done[choice] = self._trial(choice, began, len(done) + 1)
                told = done[choice].outcome
                if name != "types" and not told.miss and not self.tuning.timeout:
                    return list(done.values())
            if name == "types" and (found := done.get(Choice())) is not None and not found.outcome.miss:
                break  # everything is quantized
        return list(done.values())

    def _over(self, done: Mapping[Choice, Trial]) -> bool:
        seconds = sum(trial.seconds for trial in done.values())
        timeout = self.tuning.timeout
        return len(done) >= self.tuning.max_trials or bool(timeout and done and seconds >= timeout)

    def _trial(self, choice: Choice, began: str, number: int) -> Trial:
        context = self.context
        context.stop()
        label = f"{began} {sorted(choice.floats)} {choice.setting}"
        name = f"tune/{hashlib.sha256(label.encode()).hexdigest()[:32]}"
        found: dict[str, Any] | None = None if context.parts is None else context.parts.get(name)
        if found is None:
            begin = time.monotonic()
            twin = aside(context)
            layers = {key: each for key, each in self.selection.layers.items() if key not in choice.floats}
            if layers:
                self.carry_out(twin, Selection(layers), self.settings[choice.setting])
            assert context.score_of is not None
            scores = dict(context.score_of(twin.model))
            made: dict[str, Any] = {"scores": scores, "seconds": time.monotonic() - begin}
            found = ranks.broadcast_object(made)
            if context.parts is not None:
                context.parts.put(name, found)
        outcome = self.judge.outcome(found["scores"], self._saved(choice))
        met = "within bounds" if not outcome.miss else f"missed by {outcome.miss:.4g}"
        context.report(f"tune: trial {number}, {len(choice.floats)} layers left as they are: {met}")
        return Trial(choice, found["scores"], outcome, found["seconds"])

    def _saved(self, choice: Choice) -> int:
        saved = 0
        for name, targets in self.selection.layers.items():
            if name not in choice.floats and "weight" in targets:
                weight = self.context.model.get_submodule(name).get_parameter("weight")
                saved += weight.numel() * weight.element_size() - stored_bytes(weight, targets["weight"])
        return saved

    def _digest(self) -> str:
        if self.context.parts is None:
            return ""
        plain = [each.to_dict() for each in self.settings]
        total = hashlib.sha256(repr((plain, self.selection.layers, self.context.seed)).encode())
        total.update(state_digest(self.context.model).encode())
        return total.hexdigest()
