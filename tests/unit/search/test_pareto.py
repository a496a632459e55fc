"""The Pareto front is that of the definition, and the winner that of the documented order."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelpress.api.v1alpha1 import Goal
from modelpress.search.pareto import Candidate, best, front, thin

BOTH: tuple[Goal, Goal] = ("maximize", "minimize")


def dominates(one: tuple[float, ...], other: tuple[float, ...], goals: tuple[Goal, ...]) -> bool:
    """At least as good everywhere, better somewhere."""
    signs = [1 if goal == "maximize" else -1 for goal in goals]
    gains = [sign * (a - b) for sign, a, b in zip(signs, one, other, strict=True)]
    return min(gains) >= 0 and max(gains) > 0


def test_a_front_by_hand() -> None:
    """Accuracy up, latency down: 1 beats 0, 3 ties 1 in accuracy but is slower, 4 equals 2 and stays."""
    points = {0: (0.90, 9.0), 1: (0.95, 8.0), 2: (0.80, 2.0), 3: (0.95, 8.5), 4: (0.80, 2.0), 5: (0.79, 2.0)}
    assert front(points, BOTH) == [1, 2, 4]


def test_one_objective_keeps_all_equal_winners() -> None:
    """With one objective the front is every trial with the best value."""
    assert front({3: (1.0,), 1: (2.0,), 7: (2.0,)}, ("maximize",)) == [1, 7]
    assert front({3: (1.0,), 1: (2.0,)}, ("minimize",)) == [3]
    assert front({}, BOTH) == []


def test_infinite_values_and_signed_zeros_compare_as_numbers() -> None:
    """-0.0 equals 0.0; infinity is just the end of the scale."""
    assert front({0: (0.0, 1.0), 1: (-0.0, 1.0), 2: (-math.inf, 0.5)}, BOTH) == [0, 1, 2]


def test_points_that_cannot_be_compared_are_refused() -> None:
    """NaN and a wrong number of values are errors that name the trial."""
    with pytest.raises(ValueError, match="trial 4 has NaN"):
        front({4: (math.nan, 1.0)}, BOTH)
    with pytest.raises(ValueError, match="trial 4 has 1 values for 2 objectives"):
        front({4: (1.0,)}, BOTH)


@given(
    goals=st.lists(st.sampled_from(["maximize", "minimize"]), min_size=1, max_size=5).map(tuple),
    data=st.data(),
)
@settings(deadline=None)
def test_the_front_is_the_brute_force_one(goals: tuple[Goal, ...], data: st.DataObject) -> None:
    """For one to five objectives, with many ties and doubles, exactly the non-dominated points are kept."""
    coordinate = st.integers(0, 4).map(float) | st.floats(-2, 2)
    vectors = data.draw(st.lists(st.tuples(*[coordinate] * len(goals)), max_size=40))
    points = dict(enumerate(vectors))
    expected = [i for i in points if not any(dominates(points[j], points[i], goals) for j in points)]
    assert front(points, goals) == expected


@pytest.mark.parametrize("objectives", [2, 3])
def test_long_fronts_of_many_points(objectives: int) -> None:
    """10,000 points that do not dominate each other, between 10,000 that they dominate, are all found."""
    rng = random.Random(0)
    goals: tuple[Goal, ...] = ("minimize",) * objectives
    points: dict[int, tuple[float, ...]] = {}
    for i in range(10_000):
        first, second = rng.random(), rng.random()
        good = (first, 1.0 - first) if objectives == 2 else (first, second, 2.0 - first - second)
        points[2 * i] = good
        points[2 * i + 1] = (*good[:-1], good[-1] + 1.5)
    assert front(points, goals) == list(range(0, 20_000, 2))


def test_the_best_is_lexicographic_among_the_feasible() -> None:
    """The first objective decides, the second breaks ties, then the lowest number; infeasible ones do not count."""
    candidates = [
        Candidate(0, (0.99, 1.0), violation=0.001),
        Candidate(3, (0.95, 7.0)),
        Candidate(5, (0.95, 6.0)),
        Candidate(4, (0.95, 6.0)),
        Candidate(1, (0.90, 1.0)),
    ]
    assert best(candidates, BOTH) == candidates[3]
    assert best(list(reversed(candidates)), BOTH) == candidates[3]


def test_without_a_feasible_one_the_least_violation_wins() -> None:
    """Amounts come first, an unknown (infinite) one last; where they are equal the objectives decide."""
    near, far, unknown = (
        Candidate(2, (0.1, 9.0), 0.01),
        Candidate(0, (0.9, 1.0), 0.5),
        Candidate(1, (1.0, 0.0), math.inf),
    )
    assert best([far, unknown, near], BOTH) == near
    assert best([far, unknown], BOTH) == far
    assert best([Candidate(0, (0.1, 1.0), 0.5), Candidate(1, (0.2, 1.0), 0.5)], BOTH) == Candidate(1, (0.2, 1.0), 0.5)
    assert best([], BOTH) is None


def test_a_thinned_front_keeps_its_ends_and_spreads() -> None:
    """Of 11 points in order of the first objective, 3 are the two ends and the middle."""
    points = {number: (float(10 - number), 0.0) for number in range(11)}
    assert thin(list(points), points, 3) == [0, 5, 10]
    assert thin([7, 2], points, 2) == [2, 7]
    assert thin([], points, 2) == []
    assert len(set(thin(list(points), points, 10))) == 10
