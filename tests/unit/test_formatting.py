"""Numbers as people read them."""

from __future__ import annotations

import pytest

from modelpress import formatting


@pytest.mark.parametrize(
    ("metric", "value", "expected"),
    [
        ("macs", 999, "999"),
        ("macs", 1250, "1.25k"),
        ("parameters", 25_557_032, "25.6M"),
        ("sizeBytes", 4.1e9, "4.1G"),
        ("macs", 0, "0"),
        ("latencyMs", 12.3456, "12.35"),
        ("default", 0.97, "0.97"),
        ("default", 1e-7, "1e-07"),
    ],
)
def test_numbers(metric: str, value: float, expected: str) -> None:
    """Counts have units, others four significant digits."""
    assert formatting.number(metric, value) == expected


@pytest.mark.parametrize(
    ("value", "baseline", "expected"),
    [
        (50.0, 100.0, "-50.0%"),
        (150.0, 100.0, "+50.0%"),
        (100.0, 100.0, "0.0%"),
        (99.99, 100.0, "0.0%"),
        (-1.0, -2.0, "+50.0%"),
        (0.5, 1e-4, ""),
        (1.0, 0.0, ""),
        (1.0, None, ""),
    ],
)
def test_changes(value: float, baseline: float | None, expected: str) -> None:
    """Percent of the dense model's absolute value; nothing where that makes no sense."""
    assert formatting.change(value, baseline) == expected


def test_a_number_with_its_change() -> None:
    """Both in one cell, or the number alone, or nothing."""
    assert formatting.with_change("macs", {"macs": 500.0}, {"macs": 1000.0}) == "500 (-50.0%)"
    assert formatting.with_change("macs", {"macs": 500.0}, {}) == "500"
    assert formatting.with_change("macs", {}, {"macs": 1000.0}) == ""


def test_parameters_are_short() -> None:
    """Floats are cut to four digits, others stand as they are."""
    assert formatting.parameters({"a": "l1", "b": 0.123456, "c": 3, "d": True}) == "a=l1 b=0.1235 c=3 d=True"


@pytest.mark.parametrize(("seconds", "expected"), [(0, "0:00"), (65.9, "1:05"), (3723, "1:02:03"), (-1, "0:00")])
def test_durations(seconds: float, expected: str) -> None:
    """Minutes and seconds, hours when there are any."""
    assert formatting.duration(seconds) == expected
