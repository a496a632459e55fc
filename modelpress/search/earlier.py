"""What trials of earlier sweeps teach: observations that stand before those of the sweep itself. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from modelpress.api.search_space import Space
from modelpress.api.v1alpha1 import CompressionSweepSpec, Constraint

from .constraints import ConstraintError, judge
from .outcomes import Objectives
from .samplers import Observation


def earlier_observations(
    spec: CompressionSweepSpec, space: Space, objectives: Objectives, constraints: Sequence[Constraint]
) -> list[Observation]:
    """The trials of algorithm.warmStart, numbered from 0. Those that are no points of the space, or lack an objective,
    are passed over.

    Args:
        objectives: what the sampler follows.
        constraints: what it takes violations of, judged anew, by the earlier sweep's dense model.
    """
    given = spec.algorithm.warm_start
    found: list[Observation] = []
    for trial in given.trials if given is not None else ():
        values = objectives.values(trial.metrics)
        if values is None or not space.holds(trial.parameters):
            continue
        missed = tuple(
            _missed(spec, item, given.baseline or {} if given else {}, trial.metrics) for item in constraints
        )
        found.append(Observation(len(found), dict(trial.parameters), "complete", values, missed))
    return found


def _missed(
    spec: CompressionSweepSpec, constraint: Constraint, baseline: dict[str, float], metrics: dict[str, float]
) -> float:
    try:
        return math.fsum(item.amount for item in judge([constraint], spec.template.spec.metrics, baseline, metrics))
    except ConstraintError:  # not measured there
        return math.inf
