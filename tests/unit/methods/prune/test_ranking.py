"""Counts, rounding, ties, rankings across layers, and schedules."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modelpress.api.v1alpha1 import EntrySchedule
from modelpress_runner.methods.prune.ranking import (
    Candidates,
    remove_below,
    remove_by_row,
    remove_global,
    remove_local,
    removed_count,
    rounded,
)
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


def bounded(scores: list[float], **bounds: float) -> Candidates:
    """Candidates of one channel each, with bounds."""
    return replace(candidates(scores), **bounds)  # type: ignore[arg-type]


def test_bounds_of_a_layer_alone() -> None:
    """At least and at most so much, whatever is asked; the last one stays."""
    ten = [float(number) for number in range(10)]
    assert indices(remove_local(bounded(ten, most=0.3), 0.8)) == [0, 1, 2]
    assert indices(remove_local(bounded(ten, least=0.4), 0.1)) == [0, 1, 2, 3]
    assert len(indices(remove_local(bounded(ten, least=1.0), 0.1))) == 9
    assert len(indices(remove_local(bounded(ten, keep=0), 1.0))) == 10


@pytest.mark.parametrize(
    ("size", "multiple", "sparsity", "kept"),
    [(20, 8, 0.5, 16), (20, 8, 0.7, 8), (20, 8, 0.1, 20), (64, 16, 0.5, 32), (64, 16, 0.45, 48), (6, 8, 0.9, 6)],
)
def test_what_is_kept_is_a_multiple(size: int, multiple: int, sparsity: float, kept: int) -> None:
    """Rounded up, so that no more goes than asked; a layer that is narrower, or would keep more than it has, stays."""
    removed = remove_local(bounded([float(number) for number in range(size)], multiple=multiple), sparsity)
    assert indices(removed) == list(range(size - kept))


def test_bounds_in_a_ranking_of_all() -> None:
    """Scores 0 to 3 and 10 to 13 (as they are), half of all: the first layer would go but for its best one.

    With at most a half of it, and at least a quarter of the other; with multiples of two, three of one are two.
    """
    low, high = [0.0, 1.0, 2.0, 3.0], [10.0, 11.0, 12.0, 13.0]

    def both(first: dict[str, float], second: dict[str, float], sparsity: float = 0.5) -> list[list[int]]:
        found = remove_global([bounded(low, **first), bounded(high, **second)], sparsity, True)
        return [indices(each) for each in found]

    assert both({}, {}) == [[0, 1, 2], [0]]
    assert both({"most": 0.5}, {}) == [[0, 1], [0, 1]]
    assert both({}, {"least": 0.5}) == [[0, 1], [0, 1]]
    assert both({}, {"least": 0.75}, 0.125) == [[], [0, 1, 2]]
    assert both({"multiple": 2}, {"multiple": 2}) == [[0, 1], []]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.integers(0, 100), st.integers(1, 9), st.data())
def test_bounds_hold_whatever_is_ranked(scores: list[float], percent: int, multiple: int, data: st.DataObject) -> None:
    """In a global ranking of two layers: shares between least and most but for the multiple, which takes less."""
    least, most = sorted(data.draw(st.tuples(st.floats(0, 1), st.floats(0, 1))))
    one = bounded(scores, least=least, most=most, multiple=multiple)
    parts = remove_global([one, bounded(scores, least=least, most=most)], percent / 100)
    for part, rounds in zip(parts, (multiple, 1), strict=True):
        gone, size = int(part.sum()), len(scores)
        assert gone <= size * most + 1e-3
        assert gone < size
        kept = size - gone
        assert kept % rounds == 0 or kept == size
        if rounds == 1:
            assert gone >= min(math.floor(size * least), math.floor(size * most), size - 1)


def test_a_threshold_takes_what_is_below_it() -> None:
    """Not what equals it; the best one stays even if all are below; what was pruned stays so."""
    assert indices(remove_below(candidates([0.5, 0.1, 0.3, 0.2]), 0.3)) == [1, 3]
    assert indices(remove_below(candidates([0.5, 0.1, 0.3, 0.2]), 1.0)) == [1, 2, 3]
    assert indices(remove_below(candidates([0.5, 0.1], None, [0]), 0.1)) == [0]
    assert indices(remove_below(bounded([0.5, 0.1, 0.3, 0.2], most=0.25), 1.0)) == [1]


def test_rows_are_ranked_by_themselves() -> None:
    """Two rows of four: half of each; three of eight are one of each and the lowest next one."""
    scores = candidates([1.0, 2.0, 3.0, 4.0, 40.0, 10.0, 30.0, 20.0])
    assert indices(remove_by_row(scores, 2, 0.5)) == [0, 1, 5, 7]
    assert indices(remove_by_row(scores, 2, 0.375)) == [0, 1, 5]
    again = replace(scores, already_pruned=remove_by_row(scores, 2, 0.375))
    assert indices(remove_by_row(again, 2, 0.375)) == [0, 1, 5]


HALF = [("exp", 0.6838), ("cos", 0.2636), ("linear", 0.45), ("cube", 0.1125), ("agp", 0.7875)]


@pytest.mark.parametrize(("type_", "half"), HALF)
def test_schedules_at_the_first_middle_and_last_step(type_: str, half: float) -> None:
    """From 0 to .9 over 100 steps, half way to four digits; from .2 it begins there. By rounds as by steps."""
    by_steps = EntrySchedule.model_validate({"type": type_, "startStep": 10, "endStep": 110})
    assert [sparsity_at(by_steps, 0.9, step) for step in (9, 10, 110, 200)] == [0.0, 0.0, 0.9, 0.9]
    assert round(sparsity_at(by_steps, 0.9, 60), 4) == half
    by_rounds = EntrySchedule.model_validate({"type": type_, "rounds": 2})
    assert round(sparsity_at(by_rounds, 0.9, 1), 4) == half
    assert sparsity_at(by_rounds, 0.9, 2) == 0.9
    later = EntrySchedule.model_validate({"type": type_, "startStep": 0, "endStep": 4, "initialSparsity": 0.2})
    values = [sparsity_at(later, 0.9, step) for step in range(5)]
    assert values[0] == pytest.approx(0.2, abs=1e-15)
    assert values == sorted(values)
    assert values[4] == 0.9


def test_a_progressive_schedule_goes_the_same_way_in_smaller_parts() -> None:
    """linear to .8 by 8 steps, pruning each 4th: .4 at 4. In two parts it prunes at 2 and 6 too, half way between."""
    schedule = EntrySchedule.model_validate(
        {"type": "linear", "startStep": 0, "endStep": 8, "frequency": 4, "progressiveSteps": 2}
    )
    assert [sparsity_at(schedule, 0.8, step) for step in range(9)] == pytest.approx(
        [0, 0, 0.2, 0.2, 0.4, 0.4, 0.6, 0.6, 0.8], abs=1e-15
    )
    cube = EntrySchedule.model_validate(
        {"type": "cube", "startStep": 10, "endStep": 30, "frequency": 10, "progressiveSteps": 4}
    )
    # .9/8 at step 20: a quarter of it at 12, half of it at 15, three quarters at 17
    assert [sparsity_at(cube, 0.9, step) for step in (11, 12, 15, 17, 20)] == pytest.approx(
        [0, 0.1125 / 4, 0.1125 / 2, 0.1125 * 3 / 4, 0.1125]
    )
    assert sparsity_at(cube, 0.9, 25) == pytest.approx((0.1125 + 0.9) / 2)
