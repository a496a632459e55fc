"""What the search reads from a trial's CompressionJob."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass

from modelpress.api.v1alpha1 import CompressionJob, CompressionSweepSpec, Goal, MetricsPair
from modelpress.api.v1alpha1.base import Scalar
from modelpress.api.v1alpha1.metrics import DEFAULT_METRIC
from modelpress.api.v1alpha1.reasons import CONSTRAINTS_MET
from modelpress.trials import parameters_of

from .constraints import ConstraintError, goal_of, judge
from .uncertain import OPEN, TIMED


@dataclass(frozen=True)
class Objectives:
    """Metrics to optimise, in their order, and the better direction of each."""

    metrics: tuple[str, ...]
    goals: tuple[Goal, ...]

    @classmethod
    def of(cls, spec: CompressionSweepSpec) -> Objectives:
        """The objectives of a sweep; goals that it does not give come from the template's metrics."""
        known = spec.template.spec.metrics
        return cls(
            tuple(objective.metric for objective in spec.objectives),
            tuple(objective.goal or goal_of(objective.metric, known) for objective in spec.objectives),
        )

    def values(self, metrics: Mapping[str, float]) -> tuple[float, ...] | None:
        """One value for each objective; None if one is missing or no finite number."""
        values = tuple(metrics.get(metric, math.nan) for metric in self.metrics)
        return values if all(math.isfinite(value) for value in values) else None


@dataclass(frozen=True)
class TrialOutcome:
    """A trial as the search sees it. `values` is None unless it succeeded with a value for every objective."""

    number: int
    name: str
    parameters: dict[str, Scalar]
    metrics: dict[str, float]
    values: tuple[float, ...] | None
    violations: tuple[float, ...]  # one per constraint, 0 where it is met
    stopped: bool = False  # ended early by the sweep
    scores: tuple[tuple[int, tuple[float, ...]], ...] = ()  # (step, one value per objective) on the way, ascending

    @property
    def violation(self) -> float:
        """0 exactly if every constraint is met; infinite if one is missed by an unknown amount."""
        return math.fsum(self.violations)


def read_outcome(job: CompressionJob, number: int, objectives: Objectives, names: Container[str]) -> TrialOutcome:
    """The outcome of a trial. Of its parameters those called `names` are read, where they are scalars."""
    status = job.status
    pair = status.metrics or MetricsPair()
    succeeded = status.phase == "Succeeded"
    return TrialOutcome(
        number=number,
        name=job.metadata.name,
        parameters={
            name: value
            for name, value in (parameters_of(job) or {}).items()
            if name in names and isinstance(value, bool | int | float | str) and value not in (math.inf, -math.inf)
        },
        metrics=dict(pair.compressed),
        values=objectives.values(pair.compressed) if succeeded else None,
        violations=_violations(job, pair) if succeeded else (),
        stopped=status.phase == "Stopped",
        scores=_scores(job, objectives),
    )


def _scores(job: CompressionJob, objectives: Objectives) -> tuple[tuple[int, tuple[float, ...]], ...]:
    """The objectives on the way, where all of them were known; the last ones of each step."""
    found: dict[int, tuple[float, ...]] = {}
    for point in job.status.intermediate or ():
        values = objectives.values({**(point.metrics or {}), DEFAULT_METRIC: point.value})
        if values is not None:
            found[point.step] = values
    return tuple(sorted(found.items()))


def _violations(job: CompressionJob, pair: MetricsPair) -> tuple[float, ...]:
    """One amount per constraint, from the metrics; where they do not tell, from the condition that the runner set.

    A constraint on a latency that is open counts as missed by the least amount: behind those that are met, and before
    all that are missed.
    """
    constraints = job.spec.constraints or []
    if any(item.type == CONSTRAINTS_MET and item.status == "Unknown" for item in job.status.conditions):
        return tuple(OPEN if constraint.metric in TIMED else 0.0 for constraint in constraints)
    try:
        return tuple(
            sum(violation.amount for violation in judge([constraint], job.spec.metrics, pair.baseline, pair.compressed))
            for constraint in constraints
        )
    except ConstraintError:
        met = any(item.type == CONSTRAINTS_MET and item.status == "True" for item in job.status.conditions)
        return (0.0 if met else math.inf,)
