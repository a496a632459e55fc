"""Axes of a report: ticks are round, and every value has its place."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpress.results.report.scale import Scale


def test_even_ticks() -> None:
    """1, 2 or 5 times a power of ten apart."""
    assert Scale(0.0, 1.0, 0, 100, False).ticks(5) == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert Scale(0.985, 1.001, 0, 100, False).ticks(6) == [0.985, 0.99, 0.995, 1.0]
    assert Scale(-30.0, 30.0, 0, 100, False).ticks(5) == [-20, 0, 20]


def test_values_far_apart_are_drawn_by_logarithm() -> None:
    """From a hundred times on; 100 then lies half way between 10 and 1000."""
    scale = Scale.over([10.0, 1000.0], 0, 100)
    assert scale.log
    assert scale.at(100.0) == pytest.approx(50)
    assert scale.ticks() == [10, 20, 50, 100, 200, 500, 1000]
    assert not Scale.over([10.0, 999.0], 0, 100).log
    assert not Scale.over([0.0, 999.0], 0, 100).log


@given(st.lists(st.floats(-1e12, 1e12).filter(lambda v: v == 0 or abs(v) > 1e-9), min_size=1, max_size=20))
def test_every_value_lies_on_its_axis(values: list[float]) -> None:
    """Within the ends, in order, with at most some twenty ticks."""
    scale = Scale.over(values, 10, 90)
    places = [scale.at(value) for value in sorted(values)]
    assert places == sorted(places)
    assert places[0] > 10
    assert places[-1] < 90
    assert len(scale.ticks()) <= 20
