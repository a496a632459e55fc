"""Values of dimensions are exact, and conditions decide which parameters a point has."""

from __future__ import annotations

import itertools
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelpress.api.search_space import Dimension, Space, SpaceError, active
from modelpress.api.v1alpha1 import Parameter
from modelpress.search.samplers import derive
from modelpress.search.samplers.unit import value_of

FULL = 2**128


def dimension(**domain: Any) -> Dimension:
    """A dimension x over a domain as users write it."""
    return Space([Parameter.model_validate({"name": "x", "paths": ["/x"], **domain})]).dimensions[0]


def test_a_stepped_float_grid_is_exact_decimal() -> None:
    """Steps of 0.1 give 0.3 and 0.7, not the sums of binary fractions next to them."""
    grid = dimension(float={"min": 0.1, "max": 0.9, "step": 0.1})
    assert [grid.at(i) for i in range(9)] == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    assert 0.1 + 2 * 0.1 != 0.3  # what plain sums would give
    assert [repr(grid.at(i)) for i in (2, 6)] == ["0.3", "0.7"]


def test_a_step_that_does_not_divide_the_range_stops_below_max() -> None:
    """0, 0.3, 0.6, 0.9 lie in [0, 1]; 1.2 does not."""
    grid = dimension(float={"min": 0.0, "max": 1.0, "step": 0.3})
    assert [grid.at(i) for i in range(grid.size or 0)] == [0.0, 0.3, 0.6, 0.9]
    whole = dimension(int={"min": 1, "max": 10, "step": 4})
    assert [whole.at(i) for i in range(whole.size or 0)] == [1, 5, 9]


def test_sizes() -> None:
    """Categories, integers and grids are counted; a continuum is not; a range of one point has one value."""
    assert dimension(categorical={"values": ["a", "b"]}).size == 2
    assert dimension(int={"min": -2, "max": 2}).size == 5
    assert dimension(int={"min": 1, "max": 1000, "log": True}).size == 1000
    assert dimension(float={"min": 0.05, "max": 0.5, "step": 0.05}).size == 10
    assert dimension(float={"min": 0.0, "max": 1.0}).size is None
    assert dimension(float={"min": 0.4, "max": 0.4}).size == 1


def test_there_is_no_value_past_the_last() -> None:
    """A number out of range is an IndexError, also below zero."""
    grid = dimension(int={"min": 1, "max": 3})
    for index in (-1, 3):
        with pytest.raises(IndexError, match="x has 3 values"):
            grid.at(index)
    with pytest.raises(IndexError, match="no numbered values"):
        dimension(float={"min": 0.0, "max": 1.0}).at(0)


def test_equal_looking_categories_keep_their_types() -> None:
    """true, 1 and "1" are three values; 2.0 finds 2, because JSON knows one kind of number."""
    mixed = dimension(categorical={"values": [True, 1, 2, "1"]})
    assert [mixed.index_of(value) for value in (True, 1, 2.0, "1")] == [0, 1, 2, 3]
    assert not mixed.contains(False)


@pytest.mark.parametrize("value", [0.15, 0.0, 1.0, True, "0.1", 0.1 + 2 * 0.1, float("inf")])
def test_what_is_not_on_the_grid_has_no_number(value: Any) -> None:
    """Neither values between the steps nor beyond the ends nor of another type."""
    with pytest.raises(ValueError):
        dimension(float={"min": 0.1, "max": 0.9, "step": 0.1}).index_of(value)


@given(
    low=st.decimals(-1000, 1000, places=3),
    step=st.decimals("0.001", 10, places=3),
    count=st.integers(0, 500),
)
@settings(deadline=None)
def test_grids_hold_every_decimal_and_nothing_else(low: Decimal, step: Decimal, count: int) -> None:
    """Value i is the float that the decimal low + i * step is written as, and its number is i again."""
    high = low + count * step
    grid = dimension(float={"min": float(low), "max": float(high), "step": float(step)})
    assert grid.size == count + 1
    for index in {0, 1, count // 2, count} & set(range(count + 1)):
        assert grid.at(index) == float(low + index * step)
        assert grid.index_of(grid.at(index)) == index


@given(
    low=st.floats(-1e6, 1e6),
    width=st.floats(0, 1e6),
    bits=st.integers(0, FULL - 1) | st.sampled_from([0, FULL - 1]),
)
@settings(deadline=None)
def test_continuous_draws_stay_inside(low: float, width: float, bits: int) -> None:
    """Whatever the bits, the value lies in [min, max] although it is rounded to 12 digits."""
    continuum = dimension(float={"min": low, "max": low + width})
    value = value_of(continuum, bits)
    assert low <= value <= low + width
    assert continuum.contains(value)


@given(low=st.integers(1, 10**6), width=st.integers(0, 10**9), bits=st.integers(0, FULL - 1))
@settings(deadline=None)
def test_integer_draws_stay_inside(low: int, width: int, bits: int) -> None:
    """Uniform and logarithmic draws are integers in [min, max]; the ends of the bits give the ends of the range."""
    for log in (False, True):
        whole = dimension(int={"min": low, "max": low + width, "log": log})
        value = value_of(whole, bits)
        assert type(value) is int
        assert low <= value <= low + width
        assert value_of(whole, 0) == low
        assert value_of(whole, FULL - 1) == low + width


def test_draws_follow_the_distribution() -> None:
    """Halves of the bits are halves of the range: in value, and with log in the logarithm."""
    half = FULL // 2
    assert value_of(dimension(float={"min": 2.0, "max": 4.0}), half) == 3.0
    assert value_of(dimension(float={"min": 1e-4, "max": 1.0, "log": True}), half) == 0.01
    assert value_of(dimension(int={"min": 0, "max": 9}), half) == 5
    # [0.5, 200.5] halves at sqrt(0.5 * 200.5) = 10.01
    assert value_of(dimension(int={"min": 1, "max": 200, "log": True}), half) == 10
    assert [value_of(dimension(categorical={"values": ["a", "b", "c"]}), i * FULL // 3 + 1) for i in range(3)] == [
        "a",
        "b",
        "c",
    ]


def test_derived_bits_are_a_stable_hash() -> None:
    """They are the head of SHA-256 of a text, so that every platform and version draws alike."""
    # printf modelpress/3/7/x | sha256sum
    assert f"{derive(3, 7, 'x'):032x}" == "9c39fd77bb1d38de59b8a81c23c85193"
    assert len({derive(seed, number, name) for seed, number, name in itertools.product((1, 12), (1, 21), "xy")}) == 8


CHAIN: list[dict[str, Any]] = [
    {"name": "a", "paths": ["/a"], "categorical": {"values": ["x", "y"]}},
    {"name": "b", "paths": ["/b"], "int": {"min": 1, "max": 3}, "when": {"a": ["x"]}},
    {"name": "c", "paths": ["/c"], "categorical": {"values": [True, 1]}, "when": {"b": [2.0, 3]}},
    {"name": "d", "paths": ["/d"], "categorical": {"values": [0]}, "when": {"c": [1], "a": ["x", "y"]}},
]


def chain() -> Space:
    """Four parameters, each conditional on earlier ones."""
    return Space([Parameter.model_validate(item) for item in CHAIN])


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({"a": "y"}, [True, False, False, False]),
        ({"a": "x", "b": 1}, [True, True, False, False]),
        ({"a": "x", "b": 2, "c": True}, [True, True, True, False]),
        ({"a": "x", "b": 3, "c": 1, "d": 0}, [True, True, True, True]),
    ],
)
def test_conditions_reach_through_parameters_that_were_not_sampled(
    chosen: dict[str, Any], expected: list[bool]
) -> None:
    """A parameter is active if all it names were sampled with a listed value; 2.0 is 2, but true is not 1."""
    space = chain()
    assert [active(item, chosen) for item in space.dimensions] == expected
    assert space.holds(chosen)


@pytest.mark.parametrize(
    "parameters",
    [{}, {"a": "y", "b": 1}, {"a": "x"}, {"a": "x", "b": 4}, {"a": "z"}, {"a": "y", "unknown": 1}],
)
def test_holds_refuses_what_is_no_point(parameters: dict[str, Any]) -> None:
    """A missing, superfluous, inactive or out-of-range parameter is not a point of the space."""
    assert not chain().holds(parameters)


def test_walk_asks_only_for_active_parameters() -> None:
    """The inactive ones are never chosen."""
    asked: list[str] = []

    def choose(item: Dimension) -> Any:
        asked.append(item.name)
        return item.at(0)

    assert chain().walk(choose) == {"a": "x", "b": 1}
    assert asked == ["a", "b"]


def test_a_space_that_contradicts_itself_is_refused() -> None:
    """Doubled names and conditions on later or unknown parameters are named with their place."""
    a, b = (Parameter.model_validate(item) for item in CHAIN[:2])
    with pytest.raises(SpaceError, match=r"^spec\.searchSpace\[1\]\.name: 'a' stands twice; give"):
        Space([a, a])
    with pytest.raises(SpaceError, match=r"^spec\.searchSpace\[0\]\.when\.a: there is no earlier parameter"):
        Space([b, a])
