"""Constraints on latency that its spread leaves open: neither met nor missed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic.alias_generators import to_camel

from modelpress.api.v1alpha1 import Constraint, Goal, Metric

from .constraints import ConstraintError, Violation, judge

TIMED = ("latencyMs", "throughput", "speedup")
OPEN = 2.0**-23  # the amount by which an open constraint counts as missed in a search: less than any real miss

Interval = tuple[float, float]


@dataclass(frozen=True)
class Spread:
    """Where a measured latency lies.

    Attributes:
        compressed: of the compressed model's median, ms.
        ratio: of the compressed model's median over the dense model's.
        calls: timed calls of each model.
    """

    compressed: Interval
    ratio: Interval
    calls: int

    @classmethod
    def of(cls, timing: Mapping[str, Any] | None) -> Spread | None:
        """That in the `timing` of a metrics.json; None: there is none."""
        found = (timing or {}).get("spread")
        if not isinstance(found, Mapping):
            return None
        try:
            compressed, ratio = ((float(low), float(high)) for low, high in (found["latencyMs"], found["ratio"]))
            return cls(compressed, ratio, int(found["calls"]))
        except (KeyError, TypeError, ValueError):
            return None

    def to_dict(self) -> dict[str, Any]:
        """The inverse of `of`, as `spread` of a timing."""
        return {"latencyMs": list(self.compressed), "ratio": list(self.ratio), "calls": self.calls}

    def ends(self, constraint: Constraint, baseline: Mapping[str, float], compressed: Mapping[str, float]) -> Interval:
        """The two values of a constraint's metric between which it lies; metrics as for `judge`.

        A bound relative to the dense model asks where the ratio of both lies: they were timed in turn, so that what
        slowed down one slowed down the other.
        """
        relative = constraint.bound not in ("min", "max")
        (low, high), (least, most) = self.compressed, self.ratio
        if constraint.metric == "speedup":
            return 1 / most, 1 / least
        if constraint.metric == "latencyMs":
            dense = baseline.get("latencyMs", 0.0)
            return (dense * least, dense * most) if relative else (low, high)
        rows = compressed["throughput"] * compressed["latencyMs"]
        dense = baseline.get("throughput", 0.0)
        return (dense / most, dense / least) if relative else (rows / high, rows / low)


@dataclass(frozen=True)
class Judgement:
    """What metrics say of constraints: which are missed, and a sentence for each that is open."""

    missed: tuple[Violation, ...]
    uncertain: tuple[str, ...]

    @property
    def met(self) -> bool:
        """Every constraint is kept, whatever a latency is within its spread."""
        return not self.missed and not self.uncertain


def verdict(
    constraints: Sequence[Constraint] | None,
    goals: Mapping[str, Metric | Goal] | None,
    baseline: Mapping[str, float],
    compressed: Mapping[str, float],
    spread: Spread | None,
) -> Judgement:
    """As `judge`, where a constraint on a latency is missed, or met, only if it is so for all of its spread.

    Raises:
        ConstraintError: as `judge`.
    """
    judge(constraints, goals, baseline, compressed)  # errors name the constraint by its place among all
    missed: list[Violation] = []
    uncertain: list[str] = []
    for constraint in constraints or ():
        found = judge([constraint], goals, baseline, compressed)
        if spread is None or constraint.metric not in TIMED or constraint.metric not in compressed:
            missed += found
            continue
        low, high = spread.ends(constraint, baseline, compressed)
        ends = [judge([constraint], goals, baseline, {**compressed, constraint.metric: end}) for end in (low, high)]
        if bool(ends[0]) == bool(ends[1]) == bool(found):
            missed += found
        else:
            uncertain.append(_sentence(constraint, low, high, spread.calls))
    return Judgement(tuple(missed), tuple(uncertain))


def _sentence(constraint: Constraint, low: float, high: float, calls: int) -> str:
    bound = f"{to_camel(constraint.bound)} {getattr(constraint, constraint.bound):g}"
    return (
        f"{constraint.metric} lies between {low:.4g} and {high:.4g} after {calls} calls of each model, "
        f"which leaves {bound} open"
    )


__all__ = ["OPEN", "TIMED", "ConstraintError", "Judgement", "Spread", "verdict"]
