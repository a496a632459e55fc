"""Early stopping: which running trials are so far behind that they are not worth going on with. Pure.

Trials are compared at equal steps. With one objective by its score; with several by the number of the Pareto front that
a trial is on among all that came so far (as a front's rank is one number, every rule works with it). The first of
several objectives names the winner of a sweep, so whoever leads in it goes on, whatever its front.
"""

from __future__ import annotations

import functools
import math
import statistics
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from modelpress.api.v1alpha1 import EarlyStopping, Goal

from . import pareto

# Brackets of hyperband: each begins to stop one rung later than the one before.
BRACKETS = 3
# With several objectives, so many by the first one go on whatever their front: a share of those that go on at a rung,
# of median a share of all. Chosen on recorded curves, and reported on others (benchmarks/search_quality.py).
_LEADERS = {"median": 0.25, "asha": 0.75, "hyperband": 0.3}
# Fronts are few and large, so these rules would stop hardly anybody: trials on one front go by the first objective.
_SPLIT = frozenset({"median", "hyperband"})


@dataclass(frozen=True)
class Curve:
    """A trial's scores on the way.

    Attributes:
        number: of the trial.
        points: (step, one value for each objective), ascending by step.
        running: it may be stopped.
    """

    number: int
    points: Sequence[tuple[int, tuple[float, ...]]]
    running: bool = False

    @property
    def reached(self) -> int:
        """The last step with a score; -1: there is none."""
        return self.points[-1][0] if self.points else -1

    def at(self, step: int) -> tuple[float, ...] | None:
        """The values at a step that the trial reached, between two scores in proportion; None: it has none there.

        Scores are taken at a stated share of the time, so two trials rarely have theirs at the same steps.
        """
        index = bisect_right(self.points, step, key=lambda point: point[0])
        if index == 0 or self.reached < step:
            return None
        before, old = self.points[index - 1]
        if before == step:
            return old
        after, new = self.points[index]
        share = (step - before) / (after - before)
        return tuple(a + share * (b - a) for a, b in zip(old, new, strict=True))


def stopped_early(rule: EarlyStopping, goals: Sequence[Goal], curves: Sequence[Curve]) -> list[int]:
    """Numbers of the running trials that are to be stopped, ascending.

    - median (after Golovin et al. 2017, section 3.2): its best value so far is worse than the median of what finished
      trials had at that step. Their running means, as in the paper, lag behind curves that rise, and stop a tenth less.
    - asha (Li et al. 2020, the stopping form): at the last rung (minSteps, times reductionFactor, ...) that it has
      reached it is not among the best 1/reductionFactor of all that reached the rung so far.
    - hyperband (Li et al. 2018): as asha, with the first rung put off by 0, 1 or 2 places: slow starters have a chance.
      As many trials are in each of these brackets as in the paper, where the eager ones are the larger; which one a
      trial is in follows from its number. Scores at equal steps compare whatever the bracket.

    With several objectives a trial is compared by the number of its front, by median and hyperband within a front by
    the first objective; and it goes on if few are better in the first objective alone.

    The best trial at a step, with several objectives the best in each, is never stopped there, and none before
    `minTrials` others have come as far.
    """
    judge = _median if rule.name == "median" else _halved
    return sorted(
        curve.number for curve in curves if curve.running and curve.points and judge(rule, goals, curve, curves)
    )


def _median(rule: EarlyStopping, goals: Sequence[Goal], curve: Curve, curves: Sequence[Curve]) -> bool:
    step = curve.reached
    others = [other for other in curves if not other.running and other.number != curve.number]
    others = [other for other in others if other.at(step) is not None]
    if step < rule.min_steps or len(others) < rule.min_trials:
        return False
    if len(goals) > 1:
        ranks = _ranks([curve, *others], step, goals, split=True)
        if ranks[curve.number] <= statistics.median(ranks[other.number] for other in others):
            return False
        if _leads(goals, curve, others, step):
            return False
        return _ahead(goals, curve, others, step, so_far=True) >= _LEADERS["median"] * len(others)
    sign = _sign(goals[0])
    there = [sign * values[0] for other in others if (values := other.at(step)) is not None]
    best = min(sign * values[0] for at, values in curve.points if at <= step)
    return best > statistics.median(there)


def _halved(rule: EarlyStopping, goals: Sequence[Goal], curve: Curve, curves: Sequence[Curve]) -> bool:
    bracket = bracket_of(curve.number, rule.reduction_factor) if rule.name == "hyperband" else 0
    rung = max(_rungs(rule, bracket, curve.reached), default=None)
    there = [other for other in curves if rung is not None and other.at(rung) is not None]
    if rung is None or len(there) <= max(rule.min_trials, rule.reduction_factor - 1):
        return False
    ranks = _ranks(there, rung, goals, split=rule.name in _SPLIT)
    places = math.floor(len(there) / rule.reduction_factor)
    if sum(ranks[other.number] < ranks[curve.number] for other in there) < places:
        return False
    if len(goals) == 1:
        return True
    return not _leads(goals, curve, there, rung) and _ahead(goals, curve, there, rung) >= _LEADERS[rule.name] * places


def _leads(goals: Sequence[Goal], curve: Curve, others: Sequence[Curve], step: int) -> bool:
    """Whether nobody is better in one of the objectives at a step, ties decided by the others in their order."""
    if (values := curve.at(step)) is None:
        return False
    own = _costs(goals, values)
    there = [_costs(goals, values) for other in others if (values := other.at(step)) is not None]
    return any(all((own[axis], own) <= (costs[axis], costs) for costs in there) for axis in range(len(goals)))


def _ahead(goals: Sequence[Goal], curve: Curve, others: Sequence[Curve], step: int, *, so_far: bool = False) -> int:
    """How many are better in the first objective at a step. `so_far`: than the best that the trial had until then."""
    sign = _sign(goals[0])
    own = [sign * values[0] for at, values in curve.points if at <= step] if so_far else []
    if (now := curve.at(step)) is not None:
        own.append(sign * now[0])
    there = [sign * values[0] for other in others if (values := other.at(step)) is not None]
    return sum(value < min(own) for value in there)


def bracket_of(number: int, factor: int) -> int:
    """The bracket of hyperband that a trial is in, from 0, the most eager one."""
    order = _brackets(factor)
    return order[number % len(order)]


@functools.cache
def _brackets(factor: int) -> tuple[int, ...]:
    """The brackets of trials 0, 1, ...: n = ceil(B / (s + 1) factor^s) of each (Li et al. 2018, algorithm 1), mixed."""
    sizes = [math.ceil(BRACKETS / (place + 1) * factor**place) for place in reversed(range(BRACKETS))]
    owed, order = [0] * BRACKETS, list[int]()
    for _ in range(sum(sizes)):
        owed = [old + size for old, size in zip(owed, sizes, strict=True)]
        next_ = owed.index(max(owed))
        owed[next_] -= sum(sizes)
        order.append(next_)
    return tuple(order)


def _rungs(rule: EarlyStopping, bracket: int, reached: int) -> Iterator[int]:
    rung = rule.min_steps * rule.reduction_factor**bracket
    while rung <= reached:
        yield rung
        rung *= rule.reduction_factor


def _ranks(curves: Sequence[Curve], step: int, goals: Sequence[Goal], *, split: bool) -> Mapping[int, float]:
    """Less is better: the cost of the one objective, or the number of the front; `split`: a place of its own within it,
    by the first objective, then the others, where equal trials share one."""
    values = {curve.number: found for curve in curves if (found := curve.at(step)) is not None}
    if len(goals) == 1:
        sign = _sign(goals[0])
        return {number: sign * found[0] for number, found in values.items()}
    ranks: dict[int, float] = {}
    depth = 0
    while values:
        front = {number: values.pop(number) for number in pareto.front(values, goals)}
        costs = {number: _costs(goals, found) for number, found in front.items()}
        for number, cost in costs.items():
            ranks[number] = float(depth + (sum(other < cost for other in costs.values()) if split else 0))
        depth += len(front)
    return ranks


def _costs(goals: Sequence[Goal], values: Sequence[float]) -> tuple[float, ...]:
    """Of each objective; less is better."""
    return tuple(_sign(goal) * value for goal, value in zip(goals, values, strict=True))


def _sign(goal: Goal) -> float:
    """What turns a value so that less is better."""
    return 1.0 if goal == "minimize" else -1.0
