"""What NSGA-II, CMA-ES and the quasi-random sequence add to the shared contract: they find, and they fill."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from modelpress.api.search_space import Space
from modelpress.api.v1alpha1 import Goal, Parameter
from modelpress.search import pareto
from modelpress.search.samplers import Observation, create
from modelpress.search.samplers.chance import Chance
from modelpress.search.samplers.gaussian import Gaussian, recombination
from modelpress.search.samplers.selection import best, by_rank, crowding
from modelpress.search.samplers.unit import share_of, value_at

LINE: dict[str, Any] = {"name": "x", "paths": ["/x"], "float": {"min": 0.0, "max": 1.0}}
PLANE: dict[str, Any] = {"name": "y", "paths": ["/y"], "float": {"min": 0.0, "max": 1.0}}
KIND: dict[str, Any] = {"name": "kind", "paths": ["/k"], "categorical": {"values": ["bad", "good", "worse"]}}
Result = Callable[[dict[str, Any]], tuple[tuple[float, ...], tuple[float, ...]]]


def space_of(*parameters: dict[str, Any]) -> Space:
    """A space from what users write."""
    return Space([Parameter.model_validate(item) for item in parameters])


def searched(
    name: str, space: Space, goals: tuple[Goal, ...], seed: int, trials: int, result: Result
) -> list[Observation]:
    """A sequential search; `result` gives values and violations of a point."""
    sampler = create(name, space, goals, seed)
    history: list[Observation] = []
    for number in range(trials):
        point = sampler.sample(number, history)
        assert point is not None
        values, violations = result(point)
        history.append(Observation(number, point, "complete", values, violations))
    return history


def bowl(point: dict[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The squared distance from (0.3, 0.8); the wrong kind costs more."""
    extra = {"good": 0.0, "bad": 0.2, "worse": 0.4}[point.get("kind", "good")]
    return ((point["x"] - 0.3) ** 2 + (point["y"] - 0.8) ** 2 + extra,), ()


@pytest.mark.parametrize(("name", "times"), [("cmaes", 10), ("nsga2", 2)])
def test_the_optimum_of_numbers_and_a_category_is_found(name: str, times: int) -> None:
    """After 80 trials the best of each of 15 seeds is so many times nearer, by the median, than random's."""
    space = space_of(LINE, PLANE, KIND)
    best_of: dict[str, list[float]] = {}
    for algorithm in (name, "random"):
        runs = [searched(algorithm, space, ("minimize",), seed, 80, bowl) for seed in range(15)]
        best_of[algorithm] = [min(item.values[0] for item in run) for run in runs]
    assert statistics.median(best_of[name]) < statistics.median(best_of["random"]) / times


@pytest.mark.parametrize("name", ["cmaes", "nsga2"])
def test_infeasible_points_are_left(name: str) -> None:
    """x should grow but must not pass 0.5: most of the last 40 of 80 trials keep that, and come close to it."""

    def result(point: dict[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return (point["x"],), (max(0.0, point["x"] - 0.5),)

    late = searched(name, space_of(LINE, PLANE), ("maximize",), 1, 80, result)[40:]
    kept = [item.values[0] for item in late if item.violations == (0.0,)]
    assert len(kept) >= 20
    assert max(kept) > 0.48


def test_a_front_is_covered() -> None:
    """With x and -(x - 0.6)^2 to maximize the front is [0.6, 1]: NSGA-II puts most late trials all over it."""
    goals: tuple[Goal, ...] = ("maximize", "maximize")
    run = searched("nsga2", space_of(LINE), goals, 0, 80, lambda point: ((point["x"], -((point["x"] - 0.6) ** 2)), ()))
    late = [float(item.parameters["x"]) for item in run[40:]]
    assert sum(x > 0.58 for x in late) >= 32
    assert Counter(min(3, int((x - 0.6) * 10)) for x in late if x >= 0.6).keys() == {0, 1, 2, 3}
    assert len(pareto.front({item.number: item.values for item in run}, goals)) > 30


def test_a_sequence_fills_evenly() -> None:
    """Of the first 36 points of the sequence, each half of x and each third of y has its share, and each cell some."""
    sampler = create("qmc", space_of(LINE, PLANE), ("maximize",), 3)
    points = [sampler.sample(number, []) for number in range(36)]
    xs, ys = ([float(point[name]) for point in points if point] for name in "xy")
    assert Counter(int(x * 2) for x in xs) == {0: 18, 1: 18}
    assert Counter(int(y * 3) for y in ys) == {0: 12, 1: 12, 2: 12}
    cells = Counter((int(x * 4), int(y * 9)) for x, y in zip(xs, ys, strict=True))
    assert set(cells.values()) == {1}  # a Halton net: 4 x 9 cells, one point in each


def test_constrained_domination_orders_trials() -> None:
    """Feasible before infeasible, fronts before what they dominate, the ends of a front before its middle."""

    def trial(number: int, *values: float, missed: float = 0.0) -> Observation:
        return Observation(number, {}, "complete", values, (missed,))

    trials = [
        trial(0, 9.0, 9.0, missed=2.0),
        trial(1, 1.0, 0.0),
        trial(2, 0.0, 1.0),
        trial(3, 0.6, 0.6),
        trial(4, 0.5, 0.5),
        trial(5, 9.0, 9.0, missed=1.0),
        Observation(6, {}, "running"),
    ]
    assert [item.observation.number for item in best(trials, ("maximize", "maximize"), 7)] == [1, 2, 3, 4, 5, 0]
    assert [item.observation.number for item in best(trials, ("maximize", "maximize"), 3)] == [1, 2, 3]


def test_crowding_is_the_width_of_the_gap() -> None:
    """Ends are infinitely far from others; between them the neighbours' distance counts, in shares of the whole."""
    assert crowding([(0.0, 4.0), (1.0, 3.0), (4.0, 0.0)]) == [float("inf"), 2.0, float("inf")]
    assert crowding([(0.0,), (0.0,), (1.0,)]) == [float("inf"), 0.0, float("inf")]
    assert crowding([]) == []


def test_stopped_trials_rank_behind_by_how_far_they_came() -> None:
    """A finished trial, however bad, before a stopped one; those by their last step, then by their last score."""
    trials = [
        Observation(0, {}, "stopped", intermediate=((1, 0.9),)),
        Observation(1, {}, "stopped", intermediate=((1, 0.2), (5, 0.3))),
        Observation(2, {}, "stopped", intermediate=((5, 0.4),)),
        Observation(3, {}, "complete", (0.1,), (0.5,)),
        Observation(4, {}, "stopped"),
        Observation(5, {}, "failed"),
    ]
    assert [item.number for item in by_rank(trials, "maximize")] == [3, 2, 1, 0]


def test_a_gaussian_follows_a_valley() -> None:
    """On a bowl a hundred times longer than wide, turned by 45 degrees, 60 generations come to within 1e-3."""
    chance = Chance(0, 0, "test", 0)
    gaussian = Gaussian([0.5, 0.5], 0.3, 8)

    def height(point: list[float]) -> float:
        along, across = point[0] + point[1] - 1.1, point[0] - point[1] - 0.3
        return along**2 + 1e4 * across**2

    for _ in range(60):
        generation = [gaussian.draw(chance.normal) for _ in range(8)]
        gaussian.tell(sorted(generation, key=height))
    assert height(gaussian.draw(chance.normal)) < 1e-3


def test_foreign_points_do_not_break_a_gaussian() -> None:
    """Points far away from a distribution that has contracted, told again and again, leave it finite and inside."""
    chance = Chance(0, 0, "test", 0)
    gaussian = Gaussian([0.5], 0.3, 4)
    for _ in range(200):
        gaussian.tell([[0.5]] * 4)
    for _ in range(20):
        gaussian.tell([[0.9], [0.9], [0.1], [0.1]])
        assert 0 <= gaussian.draw(chance.normal)[0] <= 1
    assert recombination(8)[0] > recombination(8)[3] > 0


@pytest.mark.parametrize(
    "domain",
    [
        {"float": {"min": 1e-5, "max": 0.1, "log": True}},
        {"float": {"min": -1.0, "max": 1.0}},
        {"float": {"min": 0.1, "max": 0.95, "step": 0.1}},
        {"int": {"min": 1, "max": 1000, "log": True}},
        {"int": {"min": -3, "max": 9, "step": 4}},
        {"int": {"min": 4, "max": 4, "log": True}},
        {"float": {"min": 0.5, "max": 0.5}},
        {"categorical": {"values": ["a", True, 1]}},
    ],
)
def test_shares_lead_back_to_their_value(domain: dict[str, Any]) -> None:
    """Whatever value a share gives, the share of that value gives it again."""
    (dimension,) = space_of({"name": "x", "paths": ["/x"], **domain}).dimensions
    for index in range(101):
        value = value_at(dimension, index / 100)
        again = value_at(dimension, share_of(dimension, value))
        assert again == (value if dimension.size is not None else pytest.approx(value, rel=1e-11, abs=1e-11))
