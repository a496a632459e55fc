"""shrink.json."""

from __future__ import annotations

import json

import pytest
from torch import nn

from modelpress_runner.edits.cuts import Cut, read, replay, write
from modelpress_runner.errors import ArtifactError, InvalidModelError


def test_cuts_survive_json() -> None:
    """Order, axes and indices come back."""
    cuts = [Cut("a.b", "out", (0, 2)), Cut("c", "in", (1,))]
    text = json.dumps(write(cuts))
    assert json.loads(text) == {
        "version": 1,
        "cuts": [{"module": "a.b", "axis": "out", "kept": [0, 2]}, {"module": "c", "axis": "in", "kept": [1]}],
    }
    assert read(json.loads(text)) == cuts


@pytest.mark.parametrize("data", [None, [], {}, {"version": 2, "cuts": []}, {"version": 1}, {"version": 1, "cuts": {}}])
def test_another_version_is_refused(data: object) -> None:
    """What is not of version 1 is not guessed at."""
    with pytest.raises(ArtifactError, match="not of version 1"):
        read(data)


@pytest.mark.parametrize(
    "cut",
    [
        None,
        {},
        {"module": 1, "axis": "in", "kept": [0]},
        {"module": "a", "axis": "up", "kept": [0]},
        {"module": "a", "axis": "in", "kept": []},
        {"module": "a", "axis": "in", "kept": [1, 0]},
        {"module": "a", "axis": "in", "kept": [0, 0]},
        {"module": "a", "axis": "in", "kept": [-1]},
        {"module": "a", "axis": "in", "kept": [True]},
        {"module": "a", "axis": "in", "kept": ["0"]},
    ],
)
def test_damaged_cuts_are_refused(cut: object) -> None:
    """The message names the damaged cut."""
    with pytest.raises(ArtifactError, match=r"cuts\[1\] is damaged"):
        read({"version": 1, "cuts": [{"module": "a", "axis": "in", "kept": [0]}, cut]})


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (Cut("nowhere", "out", (0,)), "no module or parameter 'nowhere'"),
        (Cut("0", "out", (0, 4)), "'0' has 4 out channels; the cut keeps numbers up to 4"),
        (Cut("1", "out", (0,)), "'1' .ReLU. has no channels"),
        (Cut("2", "in", (0,)), "'2' .BatchNorm1d. has no input channels"),
    ],
)
def test_a_recipe_of_another_model_is_refused(cut: Cut, message: str) -> None:
    """The message says what does not fit."""
    with pytest.raises(InvalidModelError, match=message):
        replay(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.BatchNorm1d(4)), [cut])


def test_unequal_groups_are_refused() -> None:
    """A grouped convolution cannot keep 2 channels of one group and 1 of the other."""
    with pytest.raises(InvalidModelError, match=r"would keep \[2, 1\] of 2 channels each"):
        replay(nn.Sequential(nn.Conv1d(4, 4, 1, groups=2)), [Cut("0", "out", (0, 1, 2))])
