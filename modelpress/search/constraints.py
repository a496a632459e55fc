"""Hard constraints: a compressed model's metrics judged against those of the measured dense baseline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic.alias_generators import to_camel

from modelpress.api.v1alpha1 import MEASURED, Constraint, Goal, Metric

# A value is at its bound if it misses it by no more than this share of the numbers compared: the epsilon of float32, in
# which most evaluators compute. So 0.99 against 1.0 is a loss of 0.01, although 1.0 - 0.99 is 0.010000000000000009.
TOLERANCE = 2.0**-23


class ConstraintError(ValueError):
    """A constraint that cannot be judged. The text is `path: message`; the message says what is wrong and what to do.

    Attributes:
        path: of the bound or metric in a job, as in spec.constraints[0].maxRelativeLoss.
        message: the sentence.
    """

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path, self.message = path, message


@dataclass(frozen=True)
class Violation:
    """A constraint that is missed. `amount` is |value - nearest allowed value| / scale (> 0, no unit).

    scale is |baseline|; where that is 0 or was not measured, |nearest allowed value|; where that is 0 too, 1. For
    relative losses and ratios the amount is thus the excess itself: 0.019 lost with 0.01 allowed gives 0.009.
    """

    constraint: Constraint
    amount: float
    sentence: str


def goal_of(metric: str, metrics: Mapping[str, Metric] | None = None) -> Goal:
    """Which direction of a metric is better: a measured metric's own, else what `metrics` says, else maximize."""
    if metric in MEASURED:
        return MEASURED[metric]
    if metrics and metric in metrics:
        return metrics[metric].goal
    return "maximize"


def judge(
    constraints: Sequence[Constraint] | None,
    goals: Mapping[str, Metric | Goal] | None,
    baseline: Mapping[str, float],
    compressed: Mapping[str, float],
) -> list[Violation]:
    """The constraints that are missed, in their order; a value exactly at its bound keeps it.

    Args:
        constraints: what must hold; None: nothing.
        goals: goals of the evaluator's metrics (`metrics` of a spec, or plain goals); measured metrics have their own.
        baseline: metrics of the dense model. Only relative bounds need theirs.
        compressed: metrics of the compressed model; those of all constraints must be there.

    Raises:
        ConstraintError: a metric is missing or no finite number, or a relative bound meets a baseline of 0.
    """
    violations = []
    for position, constraint in enumerate(constraints or ()):
        violation = _judge_one(f"spec.constraints[{position}]", constraint, goals or {}, baseline, compressed)
        if violation is not None:
            violations.append(violation)
    return violations


def limit(constraint: Constraint, goal: Goal, dense: float) -> float:
    """The value that just keeps a constraint, where the dense model has `dense`; min and max do not ask for that.

    A loss of a maximized metric goes down from the dense model's value, that of a minimized one up.
    """
    kind = constraint.bound
    bound = float(getattr(constraint, kind))
    worse = 1.0 if goal == "minimize" else -1.0
    if kind == "max_relative_loss":
        return dense + worse * bound * abs(dense)
    if kind == "max_absolute_loss":
        return dense + worse * bound
    return bound if kind in ("min", "max") else bound * dense


def _judge_one(
    where: str,
    constraint: Constraint,
    goals: Mapping[str, Metric | Goal],
    baseline: Mapping[str, float],
    compressed: Mapping[str, float],
) -> Violation | None:
    metric, kind = constraint.metric, constraint.bound
    bound = float(getattr(constraint, kind))
    value = _number(where, metric, compressed, "the compressed model")
    given = goals.get(metric)
    goal = goal_of(metric, {metric: given if isinstance(given, Metric) else Metric(goal=given)} if given else None)
    if kind in ("min", "max"):
        dense = baseline.get(metric, 0.0)
        dense = dense if math.isfinite(dense) else 0.0
        allowed, excess = bound, (value - bound if kind == "max" else bound - value)
        # Counts are exact: one parameter too many is one too many.
        slack = 0.0 if value.is_integer() and bound.is_integer() else max(abs(value), abs(bound))
    else:
        dense = _number(where, metric, baseline, "the dense model")
        if dense == 0 and kind != "max_absolute_loss":
            raise ConstraintError(
                f"{where}.{to_camel(kind)}",
                f"{metric} of the dense model is 0, so nothing is relative to it; use maxAbsoluteLoss, min or max",
            )
        allowed = limit(constraint, goal, dense)
        if kind in ("max_relative_loss", "max_absolute_loss"):
            excess = (1.0 if goal == "minimize" else -1.0) * (value - allowed)
            slack = max(abs(value), abs(dense))
        else:
            excess = (value - allowed) * math.copysign(1.0, dense) * (1.0 if kind == "max_ratio" else -1.0)
            slack = max(abs(value), abs(allowed))
    if excess <= TOLERANCE * slack:
        return None
    amount = excess / (abs(dense) or abs(allowed) or 1.0)
    return Violation(constraint, amount, _sentence(metric, goal, kind, bound, value, dense))


def _number(where: str, metric: str, metrics: Mapping[str, float], whose: str) -> float:
    value = metrics.get(metric)
    if value is None:
        known = ", ".join(sorted(metrics)) or "none"
        raise ConstraintError(
            f"{where}.metric",
            f"{whose} has no metric {metric!r} (it has: {known}); name one of these or return it from the evaluator",
        )
    if not math.isfinite(value):
        raise ConstraintError(
            f"{where}.metric", f"{metric} of {whose} is {value}, which is no finite number; correct the evaluator"
        )
    return float(value)


def _sentence(metric: str, goal: Goal, kind: str, bound: float, value: float, dense: float) -> str:
    verb = "lost" if goal == "maximize" else "rose by"
    change = dense - value if goal == "maximize" else value - dense
    if kind == "max_relative_loss":
        found, limit = _pair(100 * change / abs(dense), 100 * bound)
        return f"{metric} {verb} {found} % against {_text(dense)}; at most {limit} % is allowed"
    if kind == "max_absolute_loss":
        found, limit = _pair(change, bound)
        return f"{metric} {verb} {found} against {_text(dense)}; at most {limit} is allowed"
    if kind == "min":
        found, limit = _pair(value, bound)
        return f"{metric} is {found}; at least {limit} is needed"
    if kind == "max":
        found, limit = _pair(value, bound)
        return f"{metric} is {found}; at most {limit} is allowed"
    found, limit = _pair(value / dense, bound)
    need = f"at least {limit} times is needed" if kind == "min_ratio" else f"at most {limit} times is allowed"
    return f"{metric} is {found} times the dense model's {_text(dense)}; {need}"


def _pair(found: float, limit: float) -> tuple[str, str]:
    """Both numbers as short as possible, but never looking equal."""
    for digits in range(3, 17):
        texts = _text(found, digits), _text(limit, digits)
        if texts[0] != texts[1]:
            return texts
    return repr(found), repr(limit)


def _text(number: float, digits: int = 6) -> str:
    """Counts in full, all else with few digits."""
    if number == int(number) and abs(number) < 1e15:
        return str(int(number))
    return f"{number:.{digits}g}"
