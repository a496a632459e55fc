"""The volume that a front dominates: exact in small cases, and the same as by counting."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpress.search.hypervolume import hypervolume


def test_rectangles_and_boxes() -> None:
    """Overlaps count once; what is not better than the reference counts nothing."""
    assert hypervolume([(1.0, 3.0), (3.0, 1.0)], (0.0, 0.0), ("maximize", "maximize")) == 5.0
    assert hypervolume([(0.9, 40.0)], (0.5, 100.0), ("maximize", "minimize")) == pytest.approx(24.0)
    assert hypervolume([(9.0, 0.0), (-1.0, 9.0)], (0.0, 0.0), ("maximize", "maximize")) == 0.0
    assert hypervolume([(1.0, 1.0, 2.0), (2.0, 1.0, 1.0)], (0.0,) * 3, ("maximize",) * 3) == 3.0
    assert hypervolume([], (0.0,), ("maximize",)) == 0.0


@given(st.lists(st.tuples(*[st.integers(0, 5)] * 3), max_size=8))
def test_the_volume_is_the_number_of_cells(points: list[tuple[int, int, int]]) -> None:
    """On whole numbers the volume is the count of unit cells below some point."""
    cells = itertools.product(range(5), repeat=3)
    counted = sum(any(all(c < p for c, p in zip(cell, point, strict=True)) for point in points) for cell in cells)
    assert hypervolume(points, (0, 0, 0), ("maximize",) * 3) == counted
