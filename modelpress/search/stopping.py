"""Early stopping: which running trials are so far behind that they are not worth going on with. Pure.

Trials are compared at equal steps, by the first objective: it names the winner of a sweep. How many are better is a
sample: of few trials, one that is the second may be among the best tenth of all that the sweep will have, or in the
middle. So a rule that halves stops a trial only if it is certain enough that it is not among the best. With several
objectives the best in another goes on too, if by the first one it is in the better half.
"""

from __future__ import annotations

import functools
import math
import statistics
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from modelpress.api.v1alpha1 import EarlyStopping, Goal

# Brackets of hyperband: each begins to stop one rung later than the one before.
BRACKETS = 3
CERTAIN = 0.95  # how probable it must be that a trial is not among the best share
# Of 1/reductionFactor: the share that a trial may belong to. What an eager bracket of hyperband misses the later ones
# make up for; so much of it saves two fifths (benchmarks/search_quality.py).
_SHARES = {"asha": 1.0, "hyperband": 0.55}


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
    - asha (after Li et al. 2020, the stopping form): at the last rung (minSteps, times reductionFactor, ...) that it
      has reached it is, with a probability of 0.95, not among the best 1/reductionFactor of all that will reach it.
    - hyperband (after Li et al. 2018): as asha, with the first rung put off by 0, 1 or 2 places: slow starters have a
      chance. As many trials are in each of these brackets as in the paper, where the eager ones are the larger; which
      one a trial is in follows from its number. Scores at equal steps compare whatever the bracket. The share is about
      half as large as asha's.

    With several objectives the first one counts. The best trial at a step by it is never stopped there, nor is the best
    by another one that is by the first no worse than the median; and none before `minTrials` others have come as far.
    """
    judge = _median if rule.name == "median" else _halved
    return sorted(
        curve.number for curve in curves if curve.running and curve.points and judge(rule, goals, curve, curves)
    )


def _median(rule: EarlyStopping, goals: Sequence[Goal], curve: Curve, curves: Sequence[Curve]) -> bool:
    step = curve.reached
    finished = [other for other in curves if not other.running and other.number != curve.number]
    there = [_sign(goals[0]) * values[0] for other in finished if (values := other.at(step)) is not None]
    if step < rule.min_steps or len(there) < rule.min_trials or _leads(goals, curve, curves, step):
        return False
    return min(_sign(goals[0]) * values[0] for _, values in curve.points) > statistics.median(there)


def _halved(rule: EarlyStopping, goals: Sequence[Goal], curve: Curve, curves: Sequence[Curve]) -> bool:
    bracket = bracket_of(curve.number, rule.reduction_factor) if rule.name == "hyperband" else 0
    rung = max(_rungs(rule, bracket, curve.reached), default=None)
    there = {other.number: values for other in curves if rung is not None and (values := other.at(rung)) is not None}
    if rung is None or len(there) <= max(rule.min_trials, rule.reduction_factor - 1):
        return False
    sign, own = _sign(goals[0]), there[curve.number]
    better = sum(sign * values[0] < sign * own[0] for values in there.values())
    if probably_worse(better, len(there), _SHARES[rule.name] / rule.reduction_factor) < CERTAIN:
        return False
    return not _leads(goals, curve, curves, rung)


@functools.lru_cache(65_536)
def probably_worse(better: int, count: int, share: float) -> float:
    """The probability that a trial is not among the best `share` of many, where `better` of `count` - 1 others are.

    Before anything is seen every rank is as probable; the share of all trials that are better then has the distribution
    Beta(better + 1, count - better), whose tail is that of a binomial distribution: of `count` trials at most `better`
    lie in that share.
    """
    return math.fsum(math.comb(count, k) * share**k * (1 - share) ** (count - k) for k in range(better + 1))


def _leads(goals: Sequence[Goal], curve: Curve, others: Sequence[Curve], step: int) -> bool:
    """Whether nobody is better at a step in one of the objectives, ties decided by the others in their order.

    In another than the first that counts for the better half by the first alone: the extreme of a front that is of no
    use otherwise.
    """
    if (values := curve.at(step)) is None:
        return False
    own = _costs(goals, values)
    there = [_costs(goals, values) for other in others if (values := other.at(step)) is not None]
    axes = range(len(goals) if own[0] <= statistics.median(costs[0] for costs in there) else 1)
    return any(all((own[axis], own) <= (costs[axis], costs) for costs in there) for axis in axes)


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


def _costs(goals: Sequence[Goal], values: Sequence[float]) -> tuple[float, ...]:
    """Of each objective; less is better."""
    return tuple(_sign(goal) * value for goal, value in zip(goals, values, strict=True))


def _sign(goal: Goal) -> float:
    """What turns a value so that less is better."""
    return 1.0 if goal == "minimize" else -1.0
