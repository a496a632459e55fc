"""Units and reasons in few bytes."""

import numpy as np
import pytest
import torch

from modelpress_runner.dependency.unit_lists import Reasons, UnitList
from modelpress_runner.dependency.units import Units, labels_of


@pytest.mark.parametrize("units", [(), (7,), (3, 4, 5, 6), (3, 4, 4, 5), (9, 2, 3)])
def test_a_list_of_units_is_a_sequence(units: tuple[int, ...]) -> None:
    listed = UnitList(units)
    assert (len(listed), tuple(listed), list(listed[1:]), list(listed[::-1])) == (
        len(units),
        units,
        list(units[1:]),
        list(units[::-1]),
    )
    assert [listed[place] for place in range(len(units))] == list(units)
    assert [unit for unit in range(12) if unit in listed] == sorted(set(units))
    assert listed.vector.dtype == torch.int64
    assert listed.vector.tolist() == listed.array.tolist() == list(units)
    assert UnitList.from_plain(listed.to_plain()) == listed == UnitList(listed)
    assert UnitList.from_plain(list(units)) == listed


def test_lists_are_equal_if_their_units_are_in_order() -> None:
    """However they were made: one that counts up is a range, whatever it is given as."""
    counted, others = UnitList(range(4, 7)), [UnitList([4, 5, 6]), UnitList(np.array([4, 5, 6]))]
    assert [other == counted and hash(other) == hash(counted) for other in others] == [True, True]
    assert UnitList([4, 6, 5]) != counted
    assert UnitList([4, 6, 5]) == UnitList([4, 6, 5])
    assert len({UnitList([4, 6, 5]), UnitList([4, 6, 5]), counted}) == 2
    assert counted != (4, 5, 6)
    assert counted.to_plain() == {"start": 4, "stop": 7}


def test_a_list_of_units_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        UnitList([4, 6, 5]).array[0] = 1


def test_of_two_reasons_for_one_unit_the_first_holds() -> None:
    reasons = Reasons([("norm", [5, 6]), ("output", np.array([1, 5])), ("norm", [2])])
    assert dict(reasons) == {1: "output", 2: "norm", 5: "norm", 6: "norm"}
    assert (len(reasons), list(reasons), list(reasons.units)) == (4, [1, 2, 5, 6], [1, 2, 5, 6])
    assert [unit in reasons for unit in (-1, 0, 1, 7)] == [False, False, True, False]
    assert {text: list(units) for text, units in reasons.by_text().items()} == {"output": [1], "norm": [2, 5, 6]}
    assert Reasons.from_plain(reasons.to_plain()) == reasons
    assert not Reasons()


def test_more_texts_than_a_byte_tells() -> None:
    """300 units, each with a reason of its own."""
    reasons = Reasons((f"line {unit}", [unit]) for unit in range(300))
    assert [reasons[unit] for unit in (0, 255, 256, 299)] == ["line 0", "line 255", "line 256", "line 299"]


def test_the_smallest_atom_stands_for_what_is_joined_in_any_order() -> None:
    """A chain 1-4-2-5-3 and a pair 6-7; 8 meets what is no channel."""
    units = Units()
    units.fresh(8)
    chain = torch.tensor([4, 2, 5, 3, 7, 8]), torch.tensor([1, 4, 2, 5, 6, 0])
    units.join(*chain, "it meets a constant")
    atoms = labels_of(range(1, 9))
    assert units.roots(atoms).tolist() == [1, 1, 1, 1, 1, 6, 6, 8]
    assert [units.texts[number] for number in units.reasons(units.roots(atoms).numpy())] == [
        *[""] * 7,
        "it meets a constant",
    ]


def test_what_is_joined_to_something_frozen_stays_for_the_same_reason() -> None:
    """5 and 3 are frozen, then all of 1 to 6 but for 2 become one: of two reasons that of the smaller atom is told."""
    units = Units(room=2)  # less than there will be
    units.fresh(6)
    units.freeze(torch.tensor([5]), "fifth")
    units.freeze(torch.tensor([3]), "third")
    units.freeze(torch.tensor([3]), "again")
    units.join(torch.tensor([6, 5, 4, 3]), torch.tensor([5, 4, 3, 1]), "")
    roots = units.roots(labels_of(range(1, 7))).numpy()
    assert roots.tolist() == [1, 2, 1, 1, 1, 1]
    assert [units.texts[number] for number in units.reasons(roots)] == ["third", "", *["third"] * 4]


def test_axes_that_are_joined_whole_and_in_part_find_their_roots() -> None:
    """Axes of 64 and 100 begin where a page of 64 atoms does: the second one's first page goes whole."""
    units = Units()
    few, first, second, pair = units.fresh(8), units.fresh(64), units.fresh(100), units.fresh(2)
    assert (few, first, second, pair) == (range(1, 9), range(64, 128), range(128, 228), range(228, 230))
    units.join(labels_of(second[:64]), labels_of(first), "")
    assert units.roots(labels_of(second)).tolist() == [*first, *second[64:]]
    units.join(labels_of(second[64:]), labels_of(first[:36]), "")
    units.join(labels_of(first[:8]), labels_of(few), "")
    units.join(labels_of(pair), torch.tensor([229, 228]), "")
    assert units.roots(labels_of(first)).tolist() == [*few, *first[8:]]
    assert units.roots(labels_of(second)).tolist() == [*few, *first[8:], *few, *first[8:36]]
    assert units.roots(labels_of(pair)).tolist() == [228, 228]
