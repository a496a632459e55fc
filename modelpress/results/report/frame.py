"""What a report says about a sweep besides its trials: objectives, constraints, the front and the best trial.

When a sweep publishes it knows its objectives and its front. A report that is written again later, or while the sweep
runs, has only the store: the objectives come from the report that stands there, all else from the trials.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from modelpress.api import yaml_loader
from modelpress.api.load import MAX_FILE_BYTES
from modelpress.api.v1alpha1 import DEFAULT_METRIC, CompressionJobSpec, Constraint, Goal, Metric, Objective
from modelpress.api.v1alpha1.sweep import ScreeningStatus
from modelpress.plainjson import json_of
from modelpress.request import PublishRequest
from modelpress.results.errors import ResultsError
from modelpress.results.trials import Trial
from modelpress.search import ConstraintError, goal_of, judge, pareto
from modelpress.search.uncertain import OPEN
from modelpress.store import ArtifactStore, ObjectMissingError, StoreError, TooLargeError, layout

log = logging.getLogger("modelpress")
# What a sweep is most likely about where nothing says it: the first of these that the trials changed.
_COSTS = ("latencyMs", "macs", "sizeBytes", "parameters")
_DATA = '<script type="application/json" id="sweep">'


class ReportError(ResultsError):
    """No report can be made of what is there; the message says what to do."""


@dataclass(frozen=True)
class Frame:
    """What is known of a sweep as a whole.

    Attributes:
        title: name of the sweep.
        uri: of its folder.
        objectives: metric and goal, the most important first.
        metrics: goals of the evaluator's metrics.
        constraints: what every trial has to keep.
        best: number of the best trial.
        front: numbers of the Pareto front's trials.
        screening: both rankings of a sweep with two rungs, as it published them.
    """

    title: str
    uri: str
    objectives: tuple[tuple[str, Goal], ...]
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    constraints: tuple[Constraint, ...] = ()
    best: int | None = None
    front: frozenset[int] = frozenset()
    screening: ScreeningStatus | None = None

    def goal(self, metric: str) -> Goal:
        """Which direction of a metric is better."""
        return dict(self.objectives).get(metric) or goal_of(metric, self.metrics)

    def missed(self, trial: Trial) -> list[str]:
        """A sentence for each constraint that a trial misses; empty if it keeps all, or has no result."""
        if trial.state != "Succeeded":
            return []
        if self.uncertain(trial):
            return []
        try:
            return [item.sentence for item in judge(self.constraints, self.metrics, trial.baseline, trial.compressed)]
        except ConstraintError:  # a metric is missing; the runner judged while it had everything
            return list(trial.record.unmet) if trial.record is not None else []

    def uncertain(self, trial: Trial) -> list[str]:
        """A sentence for each constraint that is open, where a trial misses none."""
        record = trial.record
        return [] if record is None or trial.state != "Succeeded" or record.unmet else list(record.uncertain)

    def to_json(self) -> str:
        """What a later report cannot know from the trials, as JSON that is safe inside of HTML."""
        data = {"objectives": [{"metric": metric, "goal": goal} for metric, goal in self.objectives]}
        text = json.dumps(data, sort_keys=True)
        return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def published_frame(
    store: ArtifactStore, root: str, name: str, spec: CompressionJobSpec, wanted: PublishRequest, trials: list[Trial]
) -> Frame:
    """The frame of a sweep that publishes.

    Args:
        name: of the sweep.
        spec: its template's.
        wanted: what the sweep decided.
        trials: as read from the store.
    """
    spec = _spec_of(store, trials, wanted.best) or spec
    return Frame(
        title=name,
        uri=f"{store.uri}/{root}".rstrip("/"),
        objectives=_with_goals(wanted.objectives, spec),
        metrics=spec.metrics or {},
        constraints=tuple(spec.constraints or ()),
        best=wanted.best,
        front=frozenset(wanted.front),
        screening=wanted.screening,
    )


def standing_frame(
    store: ArtifactStore, root: str, trials: list[Trial], objectives: Iterable[Objective] | None = None
) -> Frame:
    """The frame of a sweep as its folder shows it now; front and best trial are found anew.

    Args:
        objectives: instead of those in the report that stands there. Without either, the score is set against the
            first measured cost that the trials have.

    Raises:
        StoreError: the store refused or failed.
    """
    spec = _spec_of(store, trials, None)
    wanted = list(objectives or ()) or _standing_objectives(store, root) or _likely_objectives(trials)
    uri = f"{store.uri}/{root}".rstrip("/")
    known = {} if spec is None else spec.metrics or {}
    frame = Frame(
        title=re.sub(r"-[0-9a-f]{8}$", "", uri.rpartition("/")[2]),
        uri=uri,
        objectives=tuple((item.metric, item.goal or goal_of(item.metric, known)) for item in wanted),
        metrics=known,
        constraints=() if spec is None else tuple(spec.constraints or ()),
    )
    best, front = _ranked(frame, trials)
    return Frame(**{**vars(frame), "best": best, "front": front})


def _with_goals(objectives: Iterable[Objective], spec: CompressionJobSpec) -> tuple[tuple[str, Goal], ...]:
    return tuple((item.metric, item.goal or goal_of(item.metric, spec.metrics)) for item in objectives)


def candidates(frame: Frame, trials: Sequence[Trial]) -> list[pareto.Candidate]:
    """The trials that succeeded with a value for every objective; with two rungs those of the second."""
    found = []
    rungs = any(trial.screened is not None for trial in trials)
    for trial in trials:
        if rungs and trial.screened is None:
            continue  # of the first rung: its model is not recovered
        values = tuple(trial.compressed.get(metric, math.nan) for metric, _ in frame.objectives)
        if trial.state == "Succeeded" and all(map(math.isfinite, values)):
            found.append(pareto.Candidate(trial.number, values, _violation(frame, trial)))
    return found


def _ranked(frame: Frame, trials: list[Trial]) -> tuple[int | None, frozenset[int]]:
    goals = [goal for _, goal in frame.objectives]
    found = candidates(frame, trials)
    feasible = {item.number: item.values for item in found if item.violation == 0}
    best = pareto.best(found, goals)
    return (None if best is None else best.number), frozenset(pareto.front(feasible, goals))


def _violation(frame: Frame, trial: Trial) -> float:
    if frame.uncertain(trial):
        return OPEN
    try:
        found = judge(frame.constraints, frame.metrics, trial.baseline, trial.compressed)
    except ConstraintError:
        return math.inf if trial.record is None or trial.record.constraints_met is not True else 0.0
    return math.fsum(item.amount for item in found)


def _spec_of(store: ArtifactStore, trials: list[Trial], best: int | None) -> CompressionJobSpec | None:
    """The recipe of the best trial, or of any: template and sweep have their constraints in it together."""
    finished = [trial for trial in trials if trial.manifest is not None]
    for trial in sorted(finished, key=lambda trial: (trial.number != best, trial.screened is None))[:3]:
        entry = trial.manifest.find(layout.JOB) if trial.manifest is not None else None
        if entry is None:
            continue
        try:
            text = store.get_bytes(layout.join(trial.prefix, entry.path), MAX_FILE_BYTES).decode()
            documents, problems = yaml_loader.parse(text)
            if problems:
                raise ValueError(str(problems[0]))
            return CompressionJobSpec.model_validate(documents[0].data["spec"])
        except (ObjectMissingError, TooLargeError, ValueError, IndexError, KeyError, TypeError) as error:
            log.warning("the recipe of trial %d cannot be read: %s", trial.number, type(error).__name__)
    return None


def _standing_objectives(store: ArtifactStore, root: str) -> list[Objective]:
    try:
        page = store.get_bytes(layout.join(root, layout.REPORT)).decode("utf-8", "replace")
    except (ObjectMissingError, TooLargeError):
        return []
    _, opened, rest = page.partition(_DATA)
    text, closed, _ = rest.partition("</script>")
    try:
        data = json_of(text) if opened and closed else {}
        return [Objective.model_validate(item) for item in data.get("objectives") or ()]
    except (ValueError, AttributeError, TypeError):
        return []


def _likely_objectives(trials: list[Trial]) -> list[Objective]:
    metrics = {name for trial in trials for name in trial.compressed}
    cost = next((name for name in _COSTS if name in metrics), None)
    score = DEFAULT_METRIC if DEFAULT_METRIC in metrics else None
    return [Objective(metric=name) for name in (score, cost) if name is not None]


__all__ = ["Frame", "ReportError", "StoreError", "published_frame", "standing_frame"]
