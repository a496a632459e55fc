"""Verdicts on latencies that have a spread."""

from __future__ import annotations

import pytest

from modelpress.api.v1alpha1 import Constraint
from modelpress.search import ConstraintError, Spread, verdict

BASELINE = {"latencyMs": 2.0, "throughput": 500.0, "default": 0.9}
COMPRESSED = {"latencyMs": 1.0, "throughput": 1000.0, "speedup": 2.0, "default": 0.8}
# The compressed model takes 0.8 to 1.5 ms, and 0.4 to 0.6 of the dense one's time.
SPREAD = Spread((0.8, 1.5), (0.4, 0.6), 500)


def judged(spread: Spread | None = SPREAD, **constraint: object) -> str:
    given = Constraint.model_validate(constraint)
    found = verdict([given], None, BASELINE, COMPRESSED, spread)
    assert found.met is (not found.missed and not found.uncertain)
    assert not (found.missed and found.uncertain)
    return "missed" if found.missed else "uncertain" if found.uncertain else "met"


@pytest.mark.parametrize(
    ("metric", "bound", "value", "wanted"),
    [
        ("latencyMs", "max", 1.5, "met"),
        ("latencyMs", "max", 1.4, "uncertain"),
        ("latencyMs", "max", 0.9, "uncertain"),
        ("latencyMs", "max", 0.79, "missed"),
        ("latencyMs", "maxRatio", 0.6, "met"),  # by the ratio of both, whatever the latency itself does
        ("latencyMs", "maxRatio", 0.59, "uncertain"),
        ("latencyMs", "maxRatio", 0.4, "uncertain"),
        ("latencyMs", "maxRatio", 0.39, "missed"),
        ("latencyMs", "maxAbsoluteLoss", 0.0, "met"),
        ("throughput", "min", 660.0, "met"),  # 1000 a second at 1 ms: 667 at 1.5 ms, 1250 at 0.8 ms
        ("throughput", "min", 700.0, "uncertain"),
        ("throughput", "min", 1251.0, "missed"),
        ("throughput", "minRatio", 1.66, "met"),
        ("throughput", "minRatio", 1.7, "uncertain"),
        ("throughput", "minRatio", 2.51, "missed"),
        ("speedup", "min", 1.66, "met"),
        ("speedup", "min", 2.0, "uncertain"),
        ("speedup", "min", 2.51, "missed"),
        ("default", "min", 0.8, "met"),
        ("default", "min", 0.81, "missed"),
    ],
)
def test_a_verdict_needs_all_of_the_spread(metric: str, bound: str, value: float, wanted: str) -> None:
    """Met or missed at both ends and in between; else it is uncertain. Other metrics have no spread."""
    assert judged(metric=metric, **{bound: value}) == wanted


def test_without_a_spread_the_median_decides() -> None:
    """Results of earlier versions, and metrics.json without a timing."""
    assert judged(None, metric="latencyMs", max=1.0) == "met"
    assert judged(None, metric="latencyMs", max=0.9) == "missed"
    assert Spread.of(None) is None
    assert Spread.of({"dense": {}}) is None
    assert Spread.of({"spread": {"latencyMs": "x"}}) is None


def test_a_median_beyond_its_own_spread_is_uncertain() -> None:
    """The ratio of the medians says one thing, the ratios of the batches another."""
    assert judged(Spread((0.9, 1.1), (0.55, 0.6), 10), metric="latencyMs", maxRatio=0.52) == "uncertain"


def test_the_sentence_has_the_numbers() -> None:
    """Both ends, the calls, and what is open."""
    found = verdict(
        [Constraint(metric="latencyMs", max_ratio=0.5), Constraint(metric="default", min=0.85)],
        None,
        BASELINE,
        COMPRESSED,
        SPREAD,
    )
    assert found.uncertain == (
        "latencyMs lies between 0.8 and 1.2 after 500 calls of each model, which leaves maxRatio 0.5 open",
    )
    assert [violation.constraint.metric for violation in found.missed] == ["default"]
    assert not found.met


def test_errors_are_those_of_judge() -> None:
    """With the constraint's place among all of them."""
    given = [Constraint(metric="latencyMs", max=9.0), Constraint(metric="recall", min=0.5)]
    with pytest.raises(ConstraintError, match=r"spec.constraints\[1\].metric"):
        verdict(given, None, BASELINE, COMPRESSED, SPREAD)


def test_a_spread_goes_through_plain_data() -> None:
    """As metrics.json keeps it."""
    assert Spread.of({"spread": SPREAD.to_dict()}) == SPREAD
