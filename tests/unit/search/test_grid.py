"""Grid search lists every effective combination exactly once."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from modelpress.api.search_space import Space, active
from modelpress.api.v1alpha1 import Parameter
from modelpress.search.samplers.grid import GridSampler
from modelpress.search.testing import exact


def space_of(parameters: list[dict[str, Any]]) -> Space:
    """A space from what users write, paths apart."""
    return Space([Parameter.model_validate({"paths": ["/x"], **item}) for item in parameters])


def enumerate_all(sampler: GridSampler, limit: int = 10_000) -> list[dict[str, Any]]:
    """All answers until the sampler is exhausted."""
    answers = (sampler.sample(number, []) for number in range(limit))
    return list(itertools.takewhile(lambda answer: answer is not None, answers))


def brute_force(space: Space) -> list[dict[str, Any]]:
    """Every combination of all values, inactive ones struck out, without repetitions, in order."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for combination in itertools.product(*([d.at(i) for i in range(d.size or 0)] for d in space.dimensions)):
        chosen: dict[str, Any] = {}
        for item, value in zip(space.dimensions, combination, strict=True):
            if active(item, chosen):
                chosen[item.name] = value
        found.setdefault(tuple(sorted((exact(chosen) or {}).items())), chosen)
    return list(found.values())


def test_the_last_parameter_varies_fastest() -> None:
    """Two algorithms, of which one has two rounds: three combinations, in this order, then the end."""
    sampler = GridSampler(
        space_of(
            [
                {"name": "algorithm", "categorical": {"values": ["agp", "once"]}},
                {"name": "rounds", "int": {"min": 2, "max": 3}, "when": {"algorithm": ["agp"]}},
                {"name": "sparsity", "float": {"min": 0.1, "max": 0.3, "step": 0.2}},
            ]
        ),
        ("maximize",),
        0,
    )
    assert enumerate_all(sampler) == [
        {"algorithm": "agp", "rounds": 2, "sparsity": 0.1},
        {"algorithm": "agp", "rounds": 2, "sparsity": 0.3},
        {"algorithm": "agp", "rounds": 3, "sparsity": 0.1},
        {"algorithm": "agp", "rounds": 3, "sparsity": 0.3},
        {"algorithm": "once", "sparsity": 0.1},
        {"algorithm": "once", "sparsity": 0.3},
    ]
    assert sampler.sample(6, []) is None
    assert sampler.sample(123_456, []) is None


SCALARS: list[Any] = ["a", "b", True, False, 0, 1, 1.0, 2, 0.5]


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    """Up to five small dimensions with conditions on earlier ones, some of which can never hold."""
    parameters: list[dict[str, Any]] = []
    for position in range(draw(st.integers(1, 5))):
        kind = draw(st.sampled_from(["categorical", "int", "float"]))
        low, width, step = draw(st.integers(-1, 2)), draw(st.integers(0, 3)), draw(st.integers(1, 2))
        domain: dict[str, Any]
        if kind == "categorical":
            values = draw(
                st.lists(st.sampled_from(SCALARS), min_size=1, max_size=4, unique_by=lambda v: (type(v) is bool, v))
            )
            domain = {"values": values}
        elif kind == "int":
            domain = {"min": low, "max": low + width, "step": step}
        else:
            domain = {"min": low / 2, "max": (low + width) / 2, "step": step / 2}
        item: dict[str, Any] = {"name": f"p{position}", kind: domain}
        if position and draw(st.booleans()):
            names = draw(st.lists(st.integers(0, position - 1), min_size=1, max_size=2, unique=True))
            wanted = st.lists(st.sampled_from(SCALARS), min_size=1, max_size=4)
            item["when"] = {f"p{name}": draw(wanted) for name in names}
        parameters.append(item)
    return space_of(parameters)


@given(spaces())
@settings(max_examples=150, deadline=None)
def test_the_grid_is_the_brute_force_enumeration(space: Space) -> None:
    """Same combinations, same order, each exactly once, whatever the conditions."""
    expected = brute_force(space)
    found = enumerate_all(GridSampler(space, ("maximize",), 0), limit=len(expected) + 1)
    assert [exact(item) for item in found] == [exact(item) for item in expected]


def test_huge_spaces_are_counted_not_listed() -> None:
    """64 conditional parameters of 2^54 values each answer at once; the digits of the number are the values."""
    parameters: list[dict[str, Any]] = [{"name": "p0", "int": {"min": -(2**53), "max": 2**53}}]
    for position in range(1, 64):
        when = {f"p{position - 1}": [7, 9]}
        parameters.append({"name": f"p{position}", "int": {"min": 0, "max": 2**53}, "when": when})
    sampler = GridSampler(space_of(parameters), ("maximize",), 0)
    assert sampler.sample(9_999, []) == {"p0": -(2**53) + 9_999}
    assert sampler.sample(10**12, []) == {"p0": -(2**53) + 10**12}
    start_of_conditions = 2**53 + 7  # p0 = 7 is the first value with a p1
    assert sampler.sample(start_of_conditions + 5, []) == {"p0": 7, "p1": 5}


def test_many_independent_conditions_stay_cheap() -> None:
    """31 binary switches, each with a dependent parameter after them all: 2^31 states, none of them listed."""
    switches = [{"name": f"s{i}", "categorical": {"values": [False, True]}} for i in range(31)]
    followers = [
        {"name": f"f{i}", "categorical": {"values": ["a", "b", "c"]}, "when": {f"s{i}": [True]}} for i in range(31)
    ]
    sampler = GridSampler(space_of([*switches, *followers]), ("maximize",), 0)
    off = {f"s{i}": False for i in range(31)}
    assert sampler.sample(0, []) == off
    assert sampler.sample(1, []) == {**off, "s30": True, "f30": "a"}
    assert sampler.sample(3, []) == {**off, "s30": True, "f30": "c"}
    assert sampler.sample(4, []) == {**off, "s29": True, "f29": "a"}
    # s27 to s30 have (1 + 3)^4 = 256 combinations, so number 256 is the first with s26
    assert sampler.sample(256, []) == {**off, "s26": True, "f26": "a"}
