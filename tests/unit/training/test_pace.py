"""When a training stops for a checkpoint: the seconds that one costs, wherever they are spent, bound how often."""

from __future__ import annotations

import pytest

from modelpress_runner.training.pace import Pace


class Clock:
    """A clock that is set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def first_due(pace: Pace, clock: Clock) -> float:
    """Seconds, in tenths, until it is due."""
    begun = clock.now
    for tenth in range(1, 10_000):
        clock.now = begun + tenth / 10
        if pace.is_due(tenth):
            return tenth / 10
    raise AssertionError("it was never due")


@pytest.mark.parametrize(("cost", "beside", "seconds"), [(0.0, 0.0, 1.1), (0.2, 0.0, 20.0), (0.05, 0.15, 20.0)])
def test_what_it_costs_beside_counts_like_what_holds_the_training_up(cost, beside, seconds):
    """At one per cent, 0.2 s of cost are 20 s of training; what costs nothing is done about once a second."""
    clock = Clock()
    pace = Pace(0.01, cost, clock=clock)
    pace.beside = beside
    assert first_due(pace, clock) == pytest.approx(seconds)


def test_steps_that_were_asked_for_are_kept_to_whatever_it_costs():
    """Every five steps, and none in between."""
    pace = Pace(0.01, 100.0, every=5, clock=Clock())
    pace.beside = 100.0
    assert [step for step in range(1, 12) if pace.is_due(step) and pace.done(step, 100.0) is None] == [5, 10]
