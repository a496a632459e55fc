"""TPE learns from results, constraints and running trials, and leaves no trace in the process."""

from __future__ import annotations

import logging
import random
import statistics
import warnings
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelpress.api.search_space import Space
from modelpress.api.v1alpha1 import Parameter
from modelpress.search.samplers import Observation, create

GRID: dict[str, Any] = {"name": "x", "paths": ["/x"], "float": {"min": 0.0, "max": 1.0, "step": 0.01}}
LINE: dict[str, Any] = {"name": "x", "paths": ["/x"], "float": {"min": 0.0, "max": 1.0}}
PLANE: dict[str, Any] = {"name": "y", "paths": ["/y"], "float": {"min": 0.0, "max": 1.0}}


def space_of(*parameters: dict[str, Any]) -> Space:
    """A space from what users write."""
    return Space([Parameter.model_validate(item) for item in parameters])


def spread(count: int) -> list[float]:
    """Evenly spread values of x, in an order that is not theirs."""
    values = [(i + 0.5) / count for i in range(count)]
    random.Random(1).shuffle(values)
    return values


def suggestions(history: list[Observation], space: Space, goals: Any = ("maximize",), count: int = 40) -> list[float]:
    """x of `count` suggestions, each on its own for the next trial, by different seeds."""
    found = [create("tpe", space, goals, seed).sample(len(history), history) for seed in range(count)]
    return [float(item["x"]) for item in found if item is not None]


def test_it_comes_closer_than_random_search() -> None:
    """After 40 trials on a bowl in two dimensions, TPE's best of each of 8 seeds is nearer on average than random's."""
    space = space_of(LINE, PLANE)

    def run(name: str, seed: int) -> float:
        sampler = create(name, space, ("minimize",), seed)
        history: list[Observation] = []
        for number in range(40):
            point = sampler.sample(number, history)
            assert point is not None
            distance = (float(point["x"]) - 0.3) ** 2 + (float(point["y"]) - 0.8) ** 2
            history.append(Observation(number, point, "complete", (distance,), ()))
        return min(item.values[0] for item in history)

    tpe, chance = (statistics.mean(run(name, seed) for seed in range(8)) for name in ("tpe", "random"))
    assert tpe < chance / 3


def test_it_follows_the_goal() -> None:
    """From the same history it goes up to maximize and down to minimize."""
    history = [Observation(i, {"x": x}, "complete", (x,), ()) for i, x in enumerate(spread(40))]
    assert statistics.mean(suggestions(history, space_of(LINE))) > 0.8
    assert statistics.mean(suggestions(history, space_of(LINE), ("minimize",))) < 0.2


def test_it_stays_where_constraints_are_met() -> None:
    """x should grow but must not pass 0.5: without the constraint it goes above, with it below."""
    free = [Observation(i, {"x": x}, "complete", (x,), ()) for i, x in enumerate(spread(40))]
    bound = [Observation(i.number, i.parameters, i.state, i.values, (max(0.0, i.values[0] - 0.5),)) for i in free]
    assert statistics.mean(suggestions(free, space_of(LINE))) > 0.8
    within = suggestions(bound, space_of(LINE))
    assert statistics.mean(within) < 0.55
    assert statistics.mean(within) > 0.3


def test_where_nothing_is_feasible_it_goes_where_least_is_missed() -> None:
    """All trials miss the constraint, the less the smaller x is; the objective pulls the other way."""
    history = [Observation(i, {"x": x}, "complete", (x,), (1.0 + x,)) for i, x in enumerate(spread(40))]
    assert statistics.mean(suggestions(history, space_of(LINE))) < 0.2


def test_two_objectives_are_weighed() -> None:
    """With x and -(x - 0.6)^2 to maximize, the front is [0.6, 1], and most suggestions lie there."""
    history = [Observation(i, {"x": x}, "complete", (x, -((x - 0.6) ** 2)), ()) for i, x in enumerate(spread(60))]
    found = suggestions(history, space_of(LINE), ("maximize", "maximize"))
    assert sum(x > 0.55 for x in found) >= 32


def test_running_trials_repel() -> None:
    """With 20 trials running at the optimum, fewer suggestions fall close to it than without them."""
    history = [Observation(i, {"x": x}, "complete", (-abs(x - 0.5),), ()) for i, x in enumerate(spread(30))]
    running = [Observation(30 + i, {"x": 0.5}, "running") for i in range(20)]
    alone, beside = suggestions(history, space_of(LINE)), suggestions([*history, *running], space_of(LINE))
    assert sum(abs(x - 0.5) < 0.02 for x in beside) < sum(abs(x - 0.5) < 0.02 for x in alone)


def test_failed_trials_teach_nothing() -> None:
    """The same suggestion comes with failed trials in the history and without."""
    history = [Observation(i, {"x": x}, "complete", (x,), ()) for i, x in enumerate(spread(20))]
    failed = [Observation(20 + i, {"x": 0.99}, "failed") for i in range(5)]
    sampler = create("tpe", space_of(GRID), ("maximize",), 0)
    on_grid = [Observation(i.number, {"x": round(float(i.parameters["x"]), 2)}, i.state, i.values) for i in history]
    assert sampler.sample(25, [*on_grid, *failed]) == sampler.sample(25, on_grid)


def test_conditional_parameters_are_learned_too() -> None:
    """y exists for kind b only, where larger is better: b is chosen mostly, with a large y."""
    space = space_of(
        {"name": "kind", "paths": ["/k"], "categorical": {"values": ["a", "b"]}},
        {**PLANE, "when": {"kind": ["b"]}},
    )
    history = []
    for number, value in enumerate(spread(40)):
        point: dict[str, Any] = {"kind": "b", "y": value} if number % 2 else {"kind": "a"}
        history.append(Observation(number, point, "complete", (point.get("y", 0.2),), ()))
    found = [create("tpe", space, ("maximize",), seed).sample(40, history) or {} for seed in range(30)]
    large = [float(point["y"]) for point in found if point["kind"] == "b"]
    assert len(large) >= 20
    assert statistics.mean(large) > 0.75


def test_values_of_a_stepped_grid_are_exact() -> None:
    """Suggestions are the decimals 0.01 * i, not floats near them."""
    history = [Observation(i, {"x": i / 100}, "complete", (float(i),), ()) for i in range(30)]
    assert all(x == round(x, 2) for x in suggestions(history, space_of(GRID)))


def test_it_leaves_no_trace(capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing is printed or logged, and warning filters, log levels and the global generator stay as they were."""
    import optuna

    space = space_of(GRID, {**PLANE, "when": {"x": [0.0, 0.5, 1.0]}})
    history = [Observation(i, {"x": 0.5, "y": y}, "complete", (y, y), (0.1,)) for i, y in enumerate(spread(20))]

    def state() -> tuple[Any, ...]:
        root = logging.getLogger("optuna")
        return (
            list(warnings.filters),
            random.getstate(),
            optuna.logging.get_verbosity(),
            root.handlers[:],
            root.disabled,
        )

    before = state()
    sampler = create("tpe", space, ("maximize", "minimize"), 0)
    for number in (20, 21):
        assert sampler.sample(number, history) is not None
    assert state() == before
    assert capfd.readouterr() == ("", "")


@given(
    low=st.floats(-1e9, 1e9),
    width=st.floats(1e-6, 1e9),
    extreme=st.booleans(),
    xs=st.lists(st.floats(0, 1), min_size=10, max_size=25),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_range_and_any_history_give_a_value_inside(
    low: float, width: float, extreme: bool, xs: list[float]
) -> None:
    """Ranges far from zero and histories stuck at one point neither warn nor leave the range."""
    high = low + width
    space = space_of({"name": "x", "paths": ["/x"], "float": {"min": low, "max": high}})
    points = [low if extreme else min(max(low + share * (high - low), low), high) for share in xs]
    history = [Observation(i, {"x": point}, "complete", (float(i % 3),), ()) for i, point in enumerate(points)]
    found = create("tpe", space, ("maximize",), 0).sample(len(history), history)
    assert found is not None
    assert space.holds(found)
