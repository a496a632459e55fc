"""Searches over parts of a recipe: choices, one parameter for each layer, and first trials that the user wants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from modelpress.api.search_space import Space, SpaceError
from modelpress.api.semantic import sweep_problems
from modelpress.api.v1alpha1 import CompressionJob, CompressionSweepSpec, Parameter
from modelpress.search import replay, strategy_for
from modelpress.search.points import Points
from modelpress.search.resolve import resolve
from modelpress.trials import History

MakeSweep = Callable[..., CompressionSweepSpec]
MakeTrial = Callable[..., CompressionJob]
L1 = {"prune": {"algorithm": "l1", "configList": [{"opTypes": ["Conv2d"], "sparsity": 0.5}]}}
LEVEL = {"prune": {"algorithm": "level", "shrink": False, "configList": [{"sparsity": 0.9}]}}
SPARSITY = "/stages/0/prune/configList/0/sparsity"
METHOD = {
    "name": "method",
    "paths": ["/stages/0"],
    "choice": {
        "values": [
            {"name": "filters", "value": L1},
            {
                "name": "weights",
                "value": {"prune": {"algorithm": "level", "shrink": False, "configList": [{"sparsity": 0.9}]}},
            },
        ]
    },
}
CHOICE: list[dict[str, Any]] = [
    METHOD,
    {
        "name": "share",
        "paths": [SPARSITY],
        "float": {"min": 0.2, "max": 0.6, "step": 0.2},
        "when": {"method": ["filters"]},
    },
    {"name": "epochs", "paths": ["/stages/1/finetune/epochs"], "int": {"min": 1, "max": 2}},
]
LAYERS: dict[str, Any] = {
    "model": {"entrypoint": "digits:create"},
    "stages": [
        {
            "prune": {
                "configList": [
                    {"opTypes": ["Conv2d"], "sparsity": 0.5},
                    {"opNames": ["conv1", "layer.0"], "sparsity": 0.3},
                    {"opNames": ["fc"], "exclude": True},
                ]
            }
        },
        {"finetune": {"epochs": 1}},
    ],
}
EACH: dict[str, Any] = {
    "name": "each",
    "paths": ["/stages/0/prune/configList/1/sparsity"],
    "float": {"min": 0.25, "max": 0.75, "step": 0.25},
    "expand": True,
}


def space_of(*parameters: dict[str, Any], template: Any = LAYERS) -> Space:
    """A space from what users write."""
    return Space([Parameter.model_validate(item) for item in parameters], template)


def test_a_choice_puts_a_part_in_and_later_parameters_change_it(make_sweep: MakeSweep) -> None:
    """The alternative stands where the pointer leads; what is conditional on it is set inside, nothing is shared."""
    spec = make_sweep("random", searchSpace=CHOICE)
    first = resolve(spec, {"method": "filters", "share": 0.2, "epochs": 1})
    assert first.stages[0].to_dict()["prune"]["configList"] == [
        {"opTypes": ["Conv2d"], "sparsity": 0.2, "exclude": False}
    ]
    second = resolve(spec, {"method": "weights", "epochs": 2})
    assert second.stages[0].prune is not None
    assert second.stages[0].prune.algorithm == "level"
    assert sweep_problems(spec) == []
    assert METHOD["choice"]["values"][0]["value"] == L1


@pytest.mark.parametrize("algorithm", ["random", "grid", "qmc", "tpe", "nsga2", "cmaes"])
def test_every_sampler_searches_choices(make_sweep: MakeSweep, make_trial: MakeTrial, algorithm: str) -> None:
    """(3 shares or 1) x 2 epochs: eight recipes once each, parameters of the other alternative never; all replay."""
    spec = make_sweep(algorithm, searchSpace=CHOICE, constraints=None)
    strategy, trials = strategy_for(spec), dict[int, CompressionJob]()
    for number in range(20):
        suggestion = strategy.suggest(number, History(tuple(trials)), trials)
        if suggestion.exhausted:
            break
        assert ("share" in suggestion.parameters) == (suggestion.parameters["method"] == "filters")
        score = {"default": 1 / (number + 1)}
        history = History(tuple(trials))
        trials[number] = make_trial(spec, number, dict(suggestion.parameters), compressed=score, history=history)
    recipes = {repr(job.spec.to_dict()) for job in trials.values()}
    assert len(recipes) == len(trials) == 8
    assert replay(spec, list(trials.values())) == []


def test_an_expanded_entry_becomes_one_for_each_layer() -> None:
    """Entries before and after stay where they are, and pointers to them mean what they say."""
    space = space_of(EACH, {"name": "rest", "paths": [SPARSITY], "float": {"min": 0.1, "max": 0.9}})
    assert [dimension.name for dimension in space.dimensions] == ["each.conv1", "each.layer.0", "rest"]
    placed = space.place({"each.conv1": 0.25, "each.layer.0": 0.75, "rest": 0.6})
    assert placed["stages"][0]["prune"]["configList"] == [
        {"opTypes": ["Conv2d"], "sparsity": 0.6},
        {"opNames": ["conv1"], "sparsity": 0.25},
        {"opNames": ["layer.0"], "sparsity": 0.75},
        {"opNames": ["fc"], "exclude": True},
    ]
    assert space.place({"rest": 0.6})["stages"][0]["prune"]["configList"][1] == {
        "opNames": ["conv1", "layer.0"],
        "sparsity": 0.3,
    }
    assert Points(space_of(EACH)).count() == 9


def test_two_parameters_expand_one_entry_together() -> None:
    """Each layer has both of its values."""
    kind = {
        **EACH,
        "name": "kind",
        "paths": ["/stages/0/prune/configList/1/algorithm"],
        "categorical": {"values": ["l1", "l2"]},
    }
    del kind["float"]
    chosen = {"each.conv1": 0.25, "each.layer.0": 0.5, "kind.conv1": "l1", "kind.layer.0": "l2"}
    assert space_of(EACH, kind).place(chosen)["stages"][0]["prune"]["configList"][1:3] == [
        {"opNames": ["conv1"], "sparsity": 0.25, "algorithm": "l1"},
        {"opNames": ["layer.0"], "sparsity": 0.5, "algorithm": "l2"},
    ]


def test_an_entry_without_names_cannot_be_expanded() -> None:
    """The first entry goes by types."""
    with pytest.raises(SpaceError, match=r"searchSpace\[0\]\.expand"):
        space_of({**EACH, "paths": [SPARSITY]})


@pytest.mark.parametrize(
    ("space", "path", "said"),
    [
        # Without a condition the pointer must lead somewhere for every alternative.
        (
            [METHOD, {"name": "x", "paths": ["/stages/0/prune/configList/1/sparsity"], "int": {"min": 1, "max": 2}}],
            "spec.searchSpace[1].paths[0]",
            "where method is filters",
        ),
        ([METHOD, {**CHOICE[1], "when": {"method": ["distil"]}}], "spec.searchSpace[1].when.method[0]", "never"),
        ([{**EACH, "paths": [SPARSITY]}], "spec.searchSpace[0].expand", "same layers"),
        ([{**EACH, "paths": ["/seed"], "float": {"min": 0, "max": 1}}], "spec.searchSpace[0].paths[0]", "configList"),
        (
            [EACH, {"name": "y", "paths": ["/seed"], "int": {"min": 0, "max": 1}, "when": {"each": [0.5]}}],
            "spec.searchSpace[1].when.each",
            "one parameter for each layer",
        ),
        (
            [METHOD, EACH],
            "spec.searchSpace[0].paths[0]",
            "sets the opNames",
        ),
        (
            [{**METHOD, "choice": {"values": [{"name": "broken", "value": {"prune": {"algorithm": "l7"}}}]}}],
            "spec.searchSpace[0].choice.values[0].value",
            "l7",
        ),
    ],
)
def test_what_cannot_be_searched_is_said(
    make_sweep: MakeSweep, space: list[dict[str, Any]], path: str, said: str
) -> None:
    """The problem names the field and what is wrong."""
    spec = make_sweep("random", template={"spec": LAYERS}, searchSpace=space, constraints=None)
    found = {problem.path: str(problem) for problem in sweep_problems(spec)}
    assert said in found[path], found


def test_many_layers_are_too_many(make_sweep: MakeSweep) -> None:
    """64 dimensions are possible; 65 layers are one too many."""
    template = {
        **LAYERS,
        "stages": [{"prune": {"configList": [{"opNames": [f"l{i}" for i in range(65)], "sparsity": 0.5}]}}],
    }
    spec = make_sweep(
        "random", template={"spec": template}, searchSpace=[{**EACH, "paths": [SPARSITY]}], constraints=None
    )
    assert [problem.path for problem in sweep_problems(spec)] == ["spec.searchSpace"]


def with_initial(spec: CompressionSweepSpec, initial: list[dict[str, Any]]) -> CompressionSweepSpec:
    """The sweep with first trials."""
    return spec.model_copy(update={"algorithm": spec.algorithm.model_copy(update={"initial": initial})})


INITIAL: list[dict[str, Any]] = [
    {"algorithm": "l2", "sparsity": 0.5, "epochs": 3},
    {"algorithm": "random"},
    {"sparsity": 0.5},
]


@pytest.mark.parametrize("algorithm", ["random", "grid", "qmc", "tpe", "nsga2"])
def test_first_trials_are_the_users(make_sweep: MakeSweep, make_trial: MakeTrial, algorithm: str) -> None:
    """They come first, the rest drawn at random; then the search begins at its beginning, and all of it replays."""
    plain = make_sweep(algorithm)
    spec = with_initial(plain, INITIAL)
    assert sweep_problems(spec) == []
    strategy, trials = strategy_for(spec), dict[int, CompressionJob]()
    for number in range(5):
        suggestion = strategy.suggest(number, History(tuple(trials)), trials)
        score = {"default": 1 / (number + 1), "macs": 10.0}
        history = History(tuple(trials))
        trials[number] = make_trial(spec, number, dict(suggestion.parameters), compressed=score, history=history)
    given = [strategy.suggest(number, History(tuple(range(number))), trials).parameters for number in range(5)]
    for wanted, found in zip(INITIAL, given, strict=False):
        assert wanted.items() <= dict(found).items()
    if algorithm in ("grid", "qmc"):
        assert given[3] == strategy_for(plain).suggest(0, History(), {}).parameters
    assert replay(spec, list(trials.values())) == []


@pytest.mark.parametrize(
    ("entry", "path", "said"),
    [
        ({"sparsty": 0.5}, "spec.algorithm.initial[0].sparsty", "did you mean sparsity?"),
        ({"sparsity": 0.55}, "spec.algorithm.initial[0].sparsity", "never"),
        ({"epochs": 2}, "spec.algorithm.initial[0].epochs", "give algorithm, too"),
        ({"algorithm": "random", "epochs": 2}, "spec.algorithm.initial[0].epochs", "not sampled where algorithm is"),
    ],
)
def test_a_first_trial_that_the_space_lacks_is_refused(
    make_sweep: MakeSweep, entry: dict[str, Any], path: str, said: str
) -> None:
    """Unknown names, values that are never taken, parameters whose condition does not hold."""
    spec = with_initial(make_sweep("tpe"), [entry])
    found = {problem.path: str(problem) for problem in sweep_problems(spec)}
    assert list(found) == [path]
    assert said in found[path]
