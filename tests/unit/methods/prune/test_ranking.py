"""Counts, rounding, ties, rankings across layers, and schedules."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modelpress.api.v1alpha1 import EntrySchedule
from modelpress_runner.methods.prune.ranking import Candidates, remove_global, remove_local, removed_count, rounded
from modelpress_runner.methods.prune.schedule import sparsity_at


def candidates(
    scores: list[float], weights: list[float] | None = None, already_pruned: list[int] | None = None
) -> Candidates:
    """Ranked together."""
    vector = torch.tensor(scores, dtype=torch.float64)
    mask = torch.zeros(len(scores), dtype=torch.bool)
    mask[already_pruned or []] = True
    return Candidates(vector, torch.tensor(weights or [1.0] * len(scores), dtype=torch.float64), mask)


def indices(removed: torch.Tensor) -> list[int]:
    """Where True."""
    return torch.nonzero(removed).flatten().tolist()


@pytest.mark.parametrize(
    ("size", "sparsity", "count"),
    [(10, 0.6, 6), (10, 0.3, 3), (100, 0.29, 29), (5, 0.2, 1), (8, 0.1, 0), (5, 0.99, 4), (1, 0.9, 0), (3, 0.0, 0),
     (10_000_000, 0.57, 5_700_000)],
)  # fmt: skip
def test_removed_is_the_floor_without_float_noise(size: int, sparsity: float, count: int) -> None:
    """floor(n s) as on paper, although 100 * 0.29 is 28.999999999999996 in floats; one is always left."""
    assert removed_count(size, sparsity) == count


@given(st.integers(1, 10_000), st.integers(0, 9999))
def test_removed_is_exact_for_every_four_digit_sparsity(size: int, parts: int) -> None:
    """Equal to the floor in integers."""
    assert removed_count(size, parts / 10_000) == min(size - 1, size * parts // 10_000)


def test_equal_scores_go_by_index() -> None:
    """Of equal scores the lower index goes first."""
    assert indices(remove_local(candidates([2, 1, 1, 1, 2]), 0.4)) == [1, 2]
    assert indices(remove_local(candidates([1.0] * 4), 0.5)) == [0, 1]


def test_noise_below_one_in_a_hundred_thousand_is_no_order() -> None:
    """Sums in another order give the same decision; a difference of 1e-4 is one."""
    assert indices(remove_local(candidates([1.0 + 1e-7, 1.0, 3.0]), 0.34)) == [0]
    assert indices(remove_local(candidates([1.0 + 1e-4, 1.0, 3.0]), 0.34)) == [1]


@given(st.floats(1e-30, 1e30))
def test_rounding_is_small_relative_to_each_score(value: float) -> None:
    """At most half a step of 2^-16 away, and rounding twice changes nothing."""
    once = rounded(torch.tensor([value], dtype=torch.float64))
    assert math.isclose(float(once), value, rel_tol=2**-17)
    assert torch.equal(rounded(once), once)
    assert float(rounded(torch.zeros(1, dtype=torch.float64))) == 0.0


def test_what_is_gone_stays_and_counts() -> None:
    """The best channel was removed before: it stays removed and is one of the three."""
    assert indices(remove_local(candidates([1, 2, 3, 4, 5, 9], already_pruned=[5]), 0.5)) == [0, 1, 5]
    assert indices(remove_local(candidates([1, 2, 3, 4], already_pruned=[1, 2, 3]), 0.25)) == [1, 2, 3]


def test_global_ranking_compares_layers_by_their_norm() -> None:
    """(1, 2, 2) / 3 and (30, 40) / 50 are (1/3, 2/3, 2/3) and (0.6, 0.8): two of five are 1/3 and 0.6.

    Unscaled, both would have come from the first layer.
    """
    first, second = remove_global([candidates([1, 2, 2]), candidates([30, 40])], 0.4)
    assert indices(first) == [0]
    assert indices(second) == [0]


def test_global_ranking_leaves_one_of_each_layer() -> None:
    """A layer with many small channels keeps its best; the rest comes from elsewhere."""
    first, second = remove_global([candidates([1.0, 1.0]), candidates([1, 1, 1, 1, 1, 1, 1, 100.0])], 0.8)
    assert indices(first) == [0]
    assert indices(second) == [0, 1, 2, 3, 4, 5, 6]
    first, second = remove_global([candidates([0.0, 0.0]), candidates([0.0])], 0.9)
    assert (indices(first), indices(second)) == ([0], [])


def test_global_ranking_counts_channels_not_units() -> None:
    """A unit of two layers weighs 2: of 8 channels half is 4, units 0 and 1 of the first pool."""
    first, second = remove_global([candidates([1, 1, 10], weights=[2, 2, 2]), candidates([5, 5])], 0.5)
    assert indices(first) == [0, 1]
    assert indices(second) == []


@given(
    st.lists(st.lists(st.floats(0, 100), min_size=1, max_size=12), min_size=1, max_size=4),
    st.floats(0, 0.99),
    st.floats(0, 0.99),
)
def test_rankings_grow_with_sparsity_and_never_empty_a_layer(
    layers: list[list[float]], one: float, other: float
) -> None:
    """More sparsity removes a superset, never more than asked for, and something of every layer is left."""
    low, high = sorted((one, other))
    pools = [candidates(scores) for scores in layers]
    few, many = (remove_global(pools, share) for share in (low, high))
    for a, b in zip(few, many, strict=True):
        assert not bool((a & ~b).any())
        assert not bool(b.all())
    total = sum(len(scores) for scores in layers)
    assert sum(int(b.sum()) for b in many) <= high * total + 1e-6
    for pool in pools:
        a, b = (remove_local(pool, share) for share in (low, high))
        assert not bool((a & ~b).any())
        assert int(b.sum()) == removed_count(len(pool.scores), high)


def test_agp_by_hand() -> None:
    """0 to 0.9 in 10 rounds: 0.9 (1 - (1 - t/10)^3)."""
    schedule = EntrySchedule(type="agp", rounds=10)
    assert sparsity_at(schedule, 0.9, 5) == pytest.approx(0.7875, abs=1e-12)
    assert sparsity_at(schedule, 0.9, 1) == pytest.approx(0.9 * 0.271, abs=1e-12)
    assert sparsity_at(schedule, 0.9, 10) == 0.9


def test_linear_and_one_shot_by_hand() -> None:
    """0.2 to 0.6 in 4 rounds: 0.3, 0.4, 0.5, 0.6; one shot is there at once."""
    schedule = EntrySchedule(type="linear", rounds=4, initialSparsity=0.2)
    assert [sparsity_at(schedule, 0.6, t) for t in (1, 2, 3, 4)] == pytest.approx([0.3, 0.4, 0.5, 0.6])
    assert sparsity_at(EntrySchedule(), 0.6, 1) == 0.6


def test_a_shorter_schedule_holds_its_target() -> None:
    """Rounds behind a schedule's own last keep its target exactly."""
    assert [sparsity_at(EntrySchedule(type="agp", rounds=2), 0.7, t) for t in (2, 3, 9)] == [0.7] * 3
    assert [sparsity_at(EntrySchedule(), 0.7, t) for t in (1, 9)] == [0.7] * 2
