"""Two rungs: what the first one runs and is ranked by, who goes on, and how far both rankings agree. Pure.

Before recovery the accuracy of every trial is poor, so a bound on it says nothing yet, and without one the smallest
model would lead. What a later stage may bring back is therefore an objective of the first rung, in place of a bound.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from modelpress.api.v1alpha1 import MEASURED, CompressionJobSpec, CompressionSweepSpec, Constraint, Goal

from .constraints import goal_of
from .outcomes import Objectives, TrialOutcome
from .samplers import Observation
from .samplers.selection import best

# Stages that change weights, and neither counts nor sizes nor times.
_TRAINING = frozenset({"finetune", "distill", "distillBlocks"})
_STAGE = re.compile(r"/stages(?:/(\d+))?")


class Screen:
    """The first rung of a sweep.

    Attributes:
        stages: how many stages it runs.
        objectives: what its trials are ranked by: those of the sweep, and the metrics of bounds that are not judged.
        constraints: those that are judged already.
    """

    def __init__(self, spec: CompressionSweepSpec, stages: int) -> None:
        template, final = spec.template.spec, Objectives.of(spec)
        everything = [*(template.constraints or ()), *(spec.constraints or ())]
        settled = _only_trained_behind(spec, stages)
        self.stages = stages
        self.constraints = [item for item in everything if settled and item.metric in MEASURED]
        later = dict.fromkeys(item.metric for item in everything if item not in self.constraints)
        added = [metric for metric in later if metric not in final.metrics]
        self.objectives = Objectives(
            (*final.metrics, *added), (*final.goals, *(goal_of(metric, template.metrics) for metric in added))
        )

    def cut(self, spec: CompressionJobSpec) -> CompressionJobSpec:
        """What a trial of the first rung runs, of its whole recipe."""
        kept: list[Constraint] = [item for item in spec.constraints or () if item in self.constraints]
        stages = (spec.stages or [])[: self.stages]
        return spec.model_copy(update={"stages": stages, "constraints": kept or None})


def ordered(outcomes: Sequence[TrialOutcome], goals: Sequence[Goal]) -> list[int]:
    """Numbers of the trials that have a value for every objective, best first.

    Feasible before infeasible, infeasible ones by what they miss. One objective decides by itself; of several the
    Pareto front that a trial is on, then how little crowded it lies there. Equal ones by their number.
    """
    found = [item for item in outcomes if item.values is not None]
    if len(goals) == 1:
        sign = 1.0 if goals[0] == "minimize" else -1.0
        return [
            number
            for *_, number in sorted((item.violation, sign * (item.values or (0.0,))[0], item.number) for item in found)
        ]
    seen = [
        Observation(item.number, item.parameters, "complete", item.values or (), item.violations)
        for item in sorted(found, key=lambda item: item.number)
    ]
    return [ranked.observation.number for ranked in best(seen, goals, len(seen))]


def spearman(one: Sequence[int], other: Sequence[int]) -> float | None:
    """Spearman's correlation of two orders of the same numbers, from -1 to 1; None with fewer than two."""
    count = len(one)
    if count < 2:
        return None
    places = {number: place for place, number in enumerate(other)}
    squares = math.fsum((place - places[number]) ** 2 for place, number in enumerate(one))
    return round(1 - 6 * squares / (count * (count**2 - 1)), 4)


def _only_trained_behind(spec: CompressionSweepSpec, stages: int) -> bool:
    """Whether no recipe has anything but training behind the first stages."""
    for parameter in spec.search_space:
        for path in parameter.paths if parameter.choice is not None else ():
            place = _STAGE.fullmatch(path)
            if place is not None and (place[1] is None or int(place[1]) >= stages):
                return False
    documents = spec.template.spec.to_dict().get("stages") or []
    return all(_TRAINING & stage.keys() for stage in documents[stages:])
