"""Constraints are judged by the numbers, with amounts that can be compared and sentences that say them."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelpress.api.v1alpha1 import MEASURED, Constraint, Metric
from modelpress.search import ConstraintError, goal_of, judge


def verdict(bound: dict[str, float], value: float, baseline: float | None, metric: str = "default") -> Any:
    """The violation of one bound on one metric, or None."""
    constraint = Constraint.model_validate({"metric": metric, **bound})
    dense = {} if baseline is None else {metric: baseline}
    found = judge([constraint], {"perplexity": Metric(goal="minimize")}, dense, {metric: value})
    assert [item.constraint for item in found] == [constraint] * len(found)
    return found[0] if found else None


def test_goals() -> None:
    """Measured metrics have their own goal, whatever is said; others follow the spec, else they are maximized."""
    metrics = {"perplexity": Metric(goal="minimize"), "macs": Metric(goal="maximize")}
    assert goal_of("macs", metrics) == "minimize"
    assert goal_of("speedup") == "maximize"
    assert goal_of("perplexity", metrics) == "minimize"
    assert goal_of("perplexity") == "maximize"
    assert goal_of("default", metrics) == "maximize"
    assert {metric: goal_of(metric) for metric in MEASURED} == MEASURED


@pytest.mark.parametrize(
    ("metric", "bound", "baseline", "value", "amount", "sentence"),
    [
        # (0.9972 - 0.97825) / 0.9972 = 0.019003; minus 0.01
        (
            "default",
            {"maxRelativeLoss": 0.01},
            0.9972,
            0.97825,
            0.009003209,
            "default lost 1.9 % against 0.9972; at most 1 % is allowed",
        ),
        # (14 - 12.5) / 12.5 = 0.12
        (
            "perplexity",
            {"maxRelativeLoss": 0.1},
            12.5,
            14.0,
            0.02,
            "perplexity rose by 12 % against 12.5; at most 10 % is allowed",
        ),
        # a baseline below zero: (-2 - -3) / 2 = 0.5
        (
            "likelihood",
            {"maxRelativeLoss": 0.25},
            -2.0,
            -3.0,
            0.25,
            "likelihood lost 50 % against -2; at most 25 % is allowed",
        ),
        # (0.8 - 0.7 - 0.05) / 0.8
        (
            "default",
            {"maxAbsoluteLoss": 0.05},
            0.8,
            0.7,
            0.0625,
            "default lost 0.1 against 0.8; at most 0.05 is allowed",
        ),
        # a baseline of 0: the scale is the nearest allowed value, 3
        (
            "perplexity",
            {"maxAbsoluteLoss": 3.0},
            0.0,
            4.5,
            0.5,
            "perplexity rose by 4.5 against 0; at most 3 is allowed",
        ),
        ("default", {"min": 0.95}, 0.5, 0.9, 0.1, "default is 0.9; at least 0.95 is needed"),
        ("speedup", {"min": 2.0}, None, 1.5, 0.25, "speedup is 1.5; at least 2 is needed"),
        ("macs", {"max": 500_000}, 1_000_000, 1_200_000, 0.7, "macs is 1200000; at most 500000 is allowed"),
        ("margin", {"min": 0.0}, None, -0.25, 0.25, "margin is -0.25; at least 0 is needed"),
        (
            "macs",
            {"maxRatio": 0.5},
            1_000_000,
            750_000,
            0.25,
            "macs is 0.75 times the dense model's 1000000; at most 0.5 times is allowed",
        ),
        (
            "throughput",
            {"minRatio": 1.5},
            80.0,
            100.0,
            0.25,
            "throughput is 1.25 times the dense model's 80; at least 1.5 times is needed",
        ),
        # value / baseline = -3 / -2 = 1.5
        (
            "likelihood",
            {"maxRatio": 1.25},
            -2.0,
            -3.0,
            0.25,
            "likelihood is 1.5 times the dense model's -2; at most 1.25 times is allowed",
        ),
    ],
)
def test_violations(
    metric: str, bound: dict[str, float], baseline: float | None, value: float, amount: float, sentence: str
) -> None:
    """Each bound gives |value - nearest allowed value| / scale and its sentence."""
    violation = verdict(bound, value, baseline, metric)
    assert violation.amount == pytest.approx(amount, rel=1e-5)
    assert violation.sentence == sentence


@pytest.mark.parametrize(
    ("bound", "baseline", "value"),
    [
        ({"maxRelativeLoss": 0.01}, 1.0, 0.99),  # 1.0 - 0.99 = 0.010000000000000009
        ({"maxRelativeLoss": 0.1}, 0.3, 0.27),  # 0.3 - 0.27 = 0.02999999999999997
        ({"maxRelativeLoss": 0.0}, 0.7, 0.7),
        ({"maxRelativeLoss": 0.05}, 1.0, 0.949999988079071),  # 0.95 in float32
        ({"maxAbsoluteLoss": 0.1}, 0.8, 0.7000000000000001 - 2e-16),
        ({"min": 0.95}, None, 0.949999988079071),
        ({"max": 3.0}, None, 3.0),
        ({"maxRatio": 0.3}, 10.0, 3.0000000000000004),
        ({"minRatio": 0.7}, 10.0, 6.999999999999999),
        ({"maxRelativeLoss": 0.01}, 0.5, 0.9),  # better than before is no loss
    ],
)
def test_at_the_bound_is_within_it(bound: dict[str, float], baseline: float | None, value: float) -> None:
    """Neither binary fractions nor float32 turn a value at its bound into a violation."""
    assert verdict(bound, value, baseline) is None


@pytest.mark.parametrize(
    ("bound", "baseline", "value"),
    [
        ({"maxRelativeLoss": 0.01}, 1.0, 0.989999),
        ({"min": 0.95}, None, 0.949999),
        ({"min": 0.95}, 1e9, 0.949999),
        ({"max": 2_000_000_000}, None, 2_000_000_001),
        ({"maxRatio": 0.5}, 1_000_000, 500_001),
    ],
)
def test_just_beyond_the_bound_is_a_violation(bound: dict[str, float], baseline: float | None, value: float) -> None:
    """A millionth too much is too much, and so is one count; a great baseline does not blur a plain bound."""
    violation = verdict(bound, value, baseline)
    assert violation is not None
    assert violation.amount > 0


def test_the_numbers_of_a_sentence_never_look_equal() -> None:
    """So many digits are given that the reader sees the difference."""
    violation = verdict({"maxRelativeLoss": 0.01}, 0.989998, 1.0)
    assert violation.sentence == "default lost 1.0002 % against 1; at most 1 % is allowed"


def test_all_violations_come_in_order() -> None:
    """Met constraints are passed over; plain goals do as well as those of a spec."""
    constraints = [
        Constraint(metric="default", min=0.9),
        Constraint(metric="macs", max_ratio=0.5),
        Constraint(metric="loss", max_relative_loss=0.1),
    ]
    baseline, compressed = {"macs": 100.0, "loss": 1.0}, {"default": 0.8, "macs": 40.0, "loss": 1.2}
    found = judge(constraints, {"loss": "minimize"}, baseline, compressed)
    assert [item.constraint.metric for item in found] == ["default", "loss"]
    assert judge(None, None, {}, {}) == []
    assert judge([], None, {}, {}) == []


@pytest.mark.parametrize(
    ("bound", "baseline", "compressed", "message"),
    [
        (
            {"maxRelativeLoss": 0.1},
            {"default": 0.0},
            {"default": 0.5},
            r"^spec\.constraints\[0\]\.maxRelativeLoss: default of the dense model is 0, .*; use maxAbsoluteLoss",
        ),
        (
            {"maxRatio": 0.1},
            {"default": 0.0},
            {"default": 0.5},
            r"^spec\.constraints\[0\]\.maxRatio: default of the dense model is 0",
        ),
        (
            {"min": 0.1},
            {},
            {"acc": 0.5, "macs": 3.0},
            r"^spec\.constraints\[0\]\.metric: the compressed model has no metric 'default' \(it has: acc, macs\); ",
        ),
        ({"min": 0.1}, {}, {}, r"\(it has: none\)"),
        (
            {"maxAbsoluteLoss": 0.1},
            {"acc": 1.0},
            {"default": 0.5},
            r"the dense model has no metric 'default' \(it has: acc\)",
        ),
        ({"max": 1.0}, {}, {"default": math.nan}, r"default of the compressed model is nan, which is no finite number"),
        ({"minRatio": 1.0}, {"default": math.inf}, {"default": 1.0}, r"default of the dense model is inf"),
    ],
)
def test_what_cannot_be_judged_is_an_error(
    bound: dict[str, float], baseline: dict[str, float], compressed: dict[str, float], message: str
) -> None:
    """A missing metric, a value that is no finite number, a relative bound on 0: never a silent pass."""
    with pytest.raises(ConstraintError, match=message) as caught:
        judge([Constraint.model_validate({"metric": "default", **bound})], None, baseline, compressed)
    assert str(caught.value) == f"{caught.value.path}: {caught.value.message}"


BOUNDS = st.sampled_from(["maxRelativeLoss", "maxAbsoluteLoss", "min", "max", "minRatio", "maxRatio"])
NUMBERS = st.floats(-1e6, 1e6).filter(lambda number: number == 0 or abs(number) > 1e-3)


@given(kind=BOUNDS, bound=st.floats(0.01, 5), baseline=NUMBERS.filter(bool), value=NUMBERS)
@settings(deadline=None)
def test_amounts_follow_the_formula(kind: str, bound: float, baseline: float, value: float) -> None:
    """The verdict is that of the definition, and the amount is the excess over |baseline|, away from the bound."""
    change = (baseline - value) / abs(baseline)
    excess = {
        "maxRelativeLoss": change - bound,
        "maxAbsoluteLoss": (baseline - value - bound) / abs(baseline),
        "min": (bound - value) / abs(baseline),
        "max": (value - bound) / abs(baseline),
        "minRatio": bound - value / baseline,
        "maxRatio": value / baseline - bound,
    }[kind]
    found = verdict({kind: bound}, value, baseline)
    size = max(abs(value), abs(baseline), bound, bound * abs(baseline)) / abs(baseline)
    if found is None:
        assert excess <= 2e-7 * size
    else:
        assert found.amount == pytest.approx(excess, rel=1e-6, abs=1e-9 * size)
        assert excess > 0
