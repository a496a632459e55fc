"""No recipe twice: every sampler draws another point, and ends when a small space is used up."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from modelpress.api.v1alpha1 import CompressionJob, CompressionSweepSpec
from modelpress.search import replay, strategy_for
from modelpress.trials import History, Suggestion

MakeSweep = Callable[..., CompressionSweepSpec]
MakeTrial = Callable[..., CompressionJob]
SPARSITY = "/stages/0/prune/configList/0/sparsity"
SMALL: dict[str, list[dict[str, Any]]] = {
    "4 recipes": [
        {"name": "algorithm", "paths": ["/stages/0/prune/algorithm"], "categorical": {"values": ["l1", "l2"]}},
        {"name": "epochs", "paths": ["/stages/1/finetune/epochs"], "int": {"min": 1, "max": 2}},
    ],
    # l1 with 3 epochs, or l2 with 1 to 3: a parameter that is not active is none
    "conditions": [
        {"name": "algorithm", "paths": ["/stages/0/prune/algorithm"], "categorical": {"values": ["l1", "l2"]}},
        {
            "name": "epochs",
            "paths": ["/stages/1/finetune/epochs"],
            "int": {"min": 1, "max": 3},
            "when": {"algorithm": ["l2"]},
        },
    ],
    # of a constant there is one value, whatever its kind
    "constants": [
        {"name": "sparsity", "paths": [SPARSITY], "float": {"min": 0.4, "max": 0.4}},
        {"name": "epochs", "paths": ["/stages/1/finetune/epochs"], "int": {"min": 3, "max": 3, "log": True}},
        {"name": "seed", "paths": ["/seed"], "int": {"min": 0, "max": 3}},
    ],
    "one recipe": [{"name": "sparsity", "paths": [SPARSITY], "float": {"min": 0.4, "max": 0.4, "log": True}}],
}
SIZES = {"4 recipes": 4, "conditions": 4, "constants": 4, "one recipe": 1}
TEMPLATE: dict[str, Any] = {
    "model": {"entrypoint": "digits:create"},
    "stages": [
        {"prune": {"algorithm": "l1", "configList": [{"opTypes": ["Conv2d"], "sparsity": 0.5}]}},
        {"finetune": {"epochs": 3}},
    ],
    "seed": 0,
}


def small(make_sweep: MakeSweep, algorithm: str, space: str, seed: int = 0) -> CompressionSweepSpec:
    """A sweep over one of SMALL."""
    template = {"spec": TEMPLATE | {"seed": 0}}
    spec = make_sweep(algorithm, template=template, searchSpace=SMALL[space], constraints=None)
    return spec.model_copy(update={"algorithm": spec.algorithm.model_copy(update={"seed": seed})})


def run(
    spec: CompressionSweepSpec,
    make_trial: MakeTrial,
    *,
    parallelism: int = 1,
    phases: Callable[[int], str] = lambda number: "Succeeded",
    lost: frozenset[int] = frozenset(),
    most: int = 40,
) -> tuple[dict[int, CompressionJob], list[Suggestion]]:
    """Trials until the space is exhausted, and what was suggested; `lost` ones were deleted by somebody."""
    strategy = strategy_for(spec)
    trials: dict[int, CompressionJob] = {}
    suggestions: list[Suggestion] = []
    for number in range(most):
        done = max(0, number - parallelism + 1)
        there = [other for other in range(number) if other in trials]
        history = History(
            tuple(other for other in there if other < done), tuple(other for other in there if other >= done)
        )
        suggestion = strategy.suggest(number, history, trials)
        if suggestion.exhausted:
            break
        suggestions.append(suggestion)
        if number in lost or suggestion.spec is None:
            continue
        score = {"default": 1.0 / (number + 1), "macs": 10.0 + number}
        trials[number] = make_trial(
            spec, number, dict(suggestion.parameters), compressed=score, phase=phases(number), history=history
        )
    return trials, suggestions


def recipes(suggestions: list[Suggestion]) -> list[str]:
    """The specifications as texts."""
    return [json.dumps(item.spec.to_dict(), sort_keys=True) for item in suggestions if item.spec is not None]


@pytest.mark.parametrize("parallelism", [1, 3])
@pytest.mark.parametrize("space", SMALL)
@pytest.mark.parametrize("algorithm", ["random", "grid", "qmc", "tpe", "nsga2", "cmaes"])
def test_a_small_space_is_gone_through_once(
    make_sweep: MakeSweep, make_trial: MakeTrial, algorithm: str, space: str, parallelism: int
) -> None:
    """On three seeds every recipe comes exactly once, then the space is exhausted; every trial replays."""
    for seed in range(3):
        spec = small(make_sweep, algorithm, space, seed)
        trials, suggestions = run(spec, make_trial, parallelism=parallelism)
        found = recipes(suggestions)
        assert len(found) == len(set(found)) == SIZES[space]
        assert replay(spec, list(trials.values())) == []


@pytest.mark.parametrize("algorithm", ["random", "tpe"])
def test_no_recipe_comes_twice_in_a_larger_space(make_sweep: MakeSweep, make_trial: MakeTrial, algorithm: str) -> None:
    """81 recipes, failed and stopped trials among them: 60 trials are 60 recipes."""
    phases = lambda number: ("Failed", "Stopped", "Succeeded", "Succeeded")[number % 4]  # noqa: E731
    trials, suggestions = run(make_sweep(algorithm), make_trial, parallelism=2, phases=phases, most=60)
    assert len(set(recipes(suggestions))) == len(trials) == 60


@pytest.mark.parametrize("algorithm", ["random", "grid", "qmc", "tpe", "nsga2", "cmaes"])
def test_a_search_that_dies_after_every_trial_goes_on_alike(
    make_sweep: MakeSweep, make_trial: MakeTrial, algorithm: str
) -> None:
    """A new strategy for every trial of 30 gives the same ones; four at a time there is no recipe twice."""
    spec = make_sweep(algorithm)
    whole, _ = run(spec, make_trial, most=30)
    died: dict[int, CompressionJob] = {}
    for number in range(30):
        history = History(tuple(died))
        found = strategy_for(spec).suggest(number, history, died)
        score = {"default": 1.0 / (number + 1), "macs": 10.0 + number}
        died[number] = make_trial(spec, number, dict(found.parameters), compressed=score, history=history)
    assert [job.spec for job in died.values()] == [job.spec for job in whole.values()]
    _, suggestions = run(spec, make_trial, parallelism=4, most=40)
    assert len(set(recipes(suggestions))) == 40


def test_a_continuum_beside_a_used_up_value_is_found(make_sweep: MakeSweep, make_trial: MakeTrial) -> None:
    """l1 is one recipe, l2 is a continuum: after the first l1 only l2 comes, and never an end."""
    space = [
        {"name": "algorithm", "paths": ["/stages/0/prune/algorithm"], "categorical": {"values": ["l1", "l2"]}},
        {"name": "share", "paths": [SPARSITY], "float": {"min": 0.1, "max": 0.9}, "when": {"algorithm": ["l2"]}},
    ]
    for algorithm in ("random", "tpe"):
        spec = make_sweep(algorithm, template={"spec": TEMPLATE}, searchSpace=space, constraints=None)
        _, suggestions = run(spec, make_trial, most=16)
        assert len(set(recipes(suggestions))) == 16
        assert sum(item.parameters["algorithm"] == "l1" for item in suggestions) <= 1


@pytest.mark.parametrize("algorithm", ["random", "grid"])
def test_a_disturbed_sweep_is_an_undisturbed_one(make_sweep: MakeSweep, make_trial: MakeTrial, algorithm: str) -> None:
    """Trials that are lost, parallelism and another process change no trial, though points must not repeat."""
    spec = small(make_sweep, algorithm, "constants")
    calm = run(spec, make_trial)[1]
    assert run(spec, make_trial, parallelism=3, lost=frozenset({0, 2}))[1] == calm
    fresh = [strategy_for(spec).suggest(number, History(), {}) for number in range(4)]
    assert fresh == calm
    assert strategy_for(spec).suggest(4, History(), {}).exhausted


def test_an_invalid_recipe_is_refused_and_does_not_come_again(make_sweep: MakeSweep, make_trial: MakeTrial) -> None:
    """3 valid recipes and an invalid one (taylor scores by gradients, and none is trained for): random refuses it once,
    and both end when the valid ones are used up."""
    space = [
        {"name": "algorithm", "paths": ["/stages/0/prune/algorithm"], "categorical": {"values": ["l1", "l2", "none"]}},
        {"name": "seed", "paths": ["/seed"], "int": {"min": 0, "max": 1}},
    ]
    for algorithm in ("random", "tpe"):
        spec = make_sweep(algorithm, template={"spec": TEMPLATE}, searchSpace=space, constraints=None)
        _, suggestions = run(spec, make_trial, most=200)
        assert len(set(recipes(suggestions))) == 4
        refused = [item for item in suggestions if item.problem]
        assert all("none" in str(item.problem) for item in refused)
        if algorithm == "random":
            assert [item.parameters["seed"] for item in refused] in ([0, 1], [1, 0])
        assert len(suggestions) < 60


@pytest.mark.parametrize("algorithm", ["random", "grid", "qmc", "tpe", "nsga2", "cmaes"])
def test_equal_recipes_of_different_parameters_are_one(
    make_sweep: MakeSweep, make_trial: MakeTrial, algorithm: str
) -> None:
    """A parameter that another overwrites changes no recipe: of 2 x 2 points 2 are tried."""
    space = [
        {"name": "first", "paths": ["/seed"], "int": {"min": 0, "max": 1}},
        {"name": "second", "paths": ["/seed"], "int": {"min": 4, "max": 5}},
    ]
    spec = make_sweep(algorithm, template={"spec": TEMPLATE}, searchSpace=space, constraints=None)
    _, suggestions = run(spec, make_trial)
    assert len(set(recipes(suggestions))) == len(suggestions) == 2


def test_a_thousand_independent_trials_are_cheap_to_tell(make_sweep: MakeSweep) -> None:
    """After a restart trial 1,000 is found without the others' recipes being validated."""
    space = [
        *({"name": f"x{index}", "paths": [f"/model/args/x{index}"], "int": {"min": 0, "max": 9}} for index in range(4)),
    ]
    args = {f"x{index}": 0 for index in range(4)}
    template = {"spec": TEMPLATE | {"model": {"entrypoint": "digits:create", "args": args}}}
    spec = make_sweep("random", template=template, searchSpace=space, constraints=None)
    strategy = strategy_for(spec)
    late = strategy.suggest(1000, History(), {})
    assert late == strategy_for(spec).suggest(1000, History(), {})
    assert late.parameters not in [strategy.suggest(number, History(), {}).parameters for number in range(0, 1000, 37)]
