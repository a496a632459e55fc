"""Which parameters set good trials apart: PED-ANOVA (Watanabe, Bansal and Hutter 2023), by Optuna."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from modelpress.api.v1alpha1 import Goal
from modelpress.api.v1alpha1.base import Scalar

from .pareto import Candidate

FEWEST = 10  # trials; below, what is said would be chance


def importances(
    candidates: Sequence[Candidate], parameters: Mapping[int, Mapping[str, Scalar]], goals: Sequence[Goal]
) -> dict[str, float]:
    """Shares that sum to 1, greatest first: how differently a parameter is spread among the best tenth of the trials.

    Best is by the objective; with several by Pareto front, then hypervolume. Trials that miss a constraint rank behind
    all others. Ranges are those that were tried. Empty with fewer than 10 trials, and where no parameter was varied.

    Args:
        candidates: trials that have a value for every objective.
        parameters: of each of them, by number.
    """
    told = [item for item in candidates if parameters.get(item.number)]
    if len(told) < FEWEST:
        return {}
    from optuna.importance import PedAnovaImportanceEvaluator
    from optuna.pruners import NopPruner
    from optuna.samplers import RandomSampler
    from optuna.study import Study
    from optuna.trial import TrialState

    from .samplers.history import STUDY_NAME, HistoryStorage, frozen

    ranges = {name: found for name, found in _ranges(parameters).items() if found is not None}
    if not ranges:
        return {}
    worst = [
        (min if goal == "maximize" else max)(item.values[axis] for item in told) for axis, goal in enumerate(goals)
    ]
    trials = [
        frozen(
            item.number,
            TrialState.COMPLETE,
            given := {name: parameters[item.number][name] for name in ranges if name in parameters[item.number]},
            {name: ranges[name] for name in given},
            item.values if item.violation == 0 else worst,
        )
        for item in told
    ]
    storage = HistoryStorage(goals, trials, max(item.number for item in told) + 1)
    study = Study(STUDY_NAME, storage, RandomSampler(seed=0), NopPruner())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls itself experimental, and says what it leaves out
        found = PedAnovaImportanceEvaluator().evaluate(study)
    total = sum(found.values())
    if not total > 0:
        return {}
    return {name: value / total for name, value in sorted(found.items(), key=lambda item: (-item[1], item[0]))}


def _ranges(parameters: Mapping[int, Mapping[str, Scalar]]) -> dict[str, Any]:
    """What was tried of each parameter, as Optuna's distributions; None: one value."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    tried: dict[str, dict[tuple[str, Scalar], Scalar]] = {}
    for given in parameters.values():
        for name, value in given.items():
            tried.setdefault(name, {})[type(value).__name__, value] = value
    out: dict[str, Any] = {}
    for name, distinct in sorted(tried.items()):
        values = sorted(distinct.values(), key=lambda value: (isinstance(value, str), str(value)))
        if len(values) < 2:
            out[name] = None
        elif any(isinstance(value, str | bool) for value in values):
            out[name] = CategoricalDistribution(values)
        elif all(isinstance(value, int) for value in values):
            out[name] = IntDistribution(int(min(values)), int(max(values)))
        else:
            numbers = [float(value) for value in values]
            log = min(numbers) > 0 and max(numbers) / min(numbers) >= 100
            out[name] = FloatDistribution(min(numbers), max(numbers), log=log)
    return out
