"""Schedules that count the optimizer steps of a loop: numbers by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpress.api.v1alpha1 import Schedule
from modelpress_runner.methods.prune.schedule import last_step, next_step, prunes_at, sparsity_at


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # agp: 0.8 * (1 - (1 - t/8)^3) with t counted from startStep 2
        (
            {"type": "agp", "startStep": 2, "endStep": 10, "frequency": 4},
            {0: 0.0, 1: 0.0, 2: 0.0, 5: 0.0, 6: 0.8 * (1 - 0.5**3), 9: 0.8 * (1 - 0.5**3), 10: 0.8, 11: 0.8},
        ),
        ({"type": "linear", "startStep": 0, "endStep": 4}, {0: 0.0, 1: 0.2, 2: 0.4, 3: 0.6, 4: 0.8, 9: 0.8}),
        (
            {"type": "linear", "startStep": 4, "endStep": 8, "initialSparsity": 0.4},
            {3: 0.0, 4: 0.4, 6: 0.6, 8: 0.8},
        ),
        ({"startStep": 3}, {0: 0.0, 2: 0.0, 3: 0.8, 4: 0.8}),
        ({}, {0: 0.8, 1: 0.8}),
    ],
)
def test_sparsity_after_so_many_steps(schedule, expected):
    """Nothing before startStep, the initial sparsity there, the target from endStep on, the formula between."""
    schedule = Schedule.model_validate(schedule)
    for step, sparsity in expected.items():
        assert sparsity_at(schedule, 0.8, step) == pytest.approx(sparsity, abs=1e-15)


def test_it_prunes_at_each_frequency_and_at_the_end():
    """startStep, then every frequency-th step, and endStep although it is off that beat."""
    schedule = Schedule.model_validate({"type": "agp", "startStep": 2, "endStep": 9, "frequency": 3})
    assert [step for step in range(20) if prunes_at(schedule, step)] == [2, 5, 8, 9]
    assert last_step(schedule) == 9


@given(st.integers(0, 30), st.integers(1, 30), st.integers(1, 12), st.integers(1, 12), st.integers(-1, 70))
def test_the_next_step_is_the_first_one_that_prunes(start, length, frequency, parts, step):
    """next_step agrees with prunes_at on every step; at those and at no others does the sparsity grow."""
    given = {"startStep": start, "endStep": start + length, "frequency": frequency}
    schedule = Schedule.model_validate({"type": "linear", **given, "progressiveSteps": min(parts, frequency)})
    grows = [each for each in range(1, 100) if sparsity_at(schedule, 0.5, each) > sparsity_at(schedule, 0.5, each - 1)]
    assert grows == [each for each in range(1, 100) if prunes_at(schedule, each) and each != start]
    later = [other for other in range(step + 1, 100) if prunes_at(schedule, other)]
    assert next_step(schedule, step) == (later[0] if later else None)
