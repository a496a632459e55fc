"""The search behind sweeps: space, samplers, constraints, Pareto front. Pure and seeded; Optuna loads with tpe only."""

from __future__ import annotations

from modelpress.api.search_space import SpaceError
from modelpress.api.v1alpha1 import CompressionSweepSpec
from modelpress.trials import Strategy

from .constraints import ConstraintError, Violation, goal_of, judge
from .strategy import SearchStrategy, replay
from .uncertain import Judgement, Spread, verdict

__all__ = [
    "ConstraintError",
    "Judgement",
    "SpaceError",
    "Spread",
    "Violation",
    "goal_of",
    "judge",
    "replay",
    "strategy_for",
    "verdict",
]


def strategy_for(spec: CompressionSweepSpec) -> Strategy:
    """The search of a sweep. Keep it as long as the spec stands: it remembers the trials that it has read.

    Raises:
        SpaceError: the algorithm cannot search this space; the message names the field and what to do.
    """
    return SearchStrategy(spec)
