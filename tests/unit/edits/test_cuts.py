"""shrink.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from modelpress_runner.edits.base import Edit, register
from modelpress_runner.edits.cuts import Cut
from modelpress_runner.edits.masks import Masks
from modelpress_runner.edits.replay import read, replay, write
from modelpress_runner.errors import ArtifactError, InvalidModelError

CUTS = [Cut("a.b", "out", (0, 2)), Cut("c", "in", (1,))]


def test_edits_survive_json() -> None:
    """Order, kinds, axes and indices come back."""
    text = json.dumps(write(CUTS))
    assert json.loads(text) == {
        "version": 2,
        "edits": [
            {"edit": "cut", "module": "a.b", "axis": "out", "kept": [0, 2]},
            {"edit": "cut", "module": "c", "axis": "in", "kept": [1]},
        ],
    }
    assert read(json.loads(text)) == CUTS


def test_cuts_of_the_first_version_are_read() -> None:
    """Artifacts of before there were other edits than cuts."""
    cuts = [{"module": "a.b", "axis": "out", "kept": [0, 2]}, {"module": "c", "axis": "in", "kept": [1]}]
    assert read({"version": 1, "cuts": cuts}) == CUTS


@pytest.mark.parametrize(
    "data",
    [
        *(None, [], {}, {"version": 1}, {"version": 3, "edits": []}, {"version": 2, "cuts": []}),
        *({"version": 1, "cuts": {}}, {"version": True, "cuts": []}, {"version": [], "edits": []}),
    ],
)
def test_another_version_is_refused(data: object) -> None:
    """What is of no version that is known is not guessed at."""
    with pytest.raises(ArtifactError, match="versions 1 to 2 are read; it needs another modelpress"):
        read(data)


@pytest.mark.parametrize("kind", ["fold", None, [], 1])
def test_an_unknown_edit_is_refused(kind: object) -> None:
    """The message names its place, its kind and the remedy."""
    with pytest.raises(ArtifactError, match=r"edits\[0\] is an edit of the kind .* install the version of modelpress"):
        read({"version": 2, "edits": [{"edit": kind}]})


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
    first = {"module": "a", "axis": "in", "kept": [0]}
    with pytest.raises(ArtifactError, match=r"cuts\[1\] is damaged"):
        read({"version": 1, "cuts": [first, cut]})
    if isinstance(cut, dict):
        with pytest.raises(ArtifactError, match=r"edits\[1\] is damaged"):
            read({"version": 2, "edits": [{"edit": "cut", **first}, {"edit": "cut", **cut}]})


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


@register
@dataclass(frozen=True)
class Halved(Edit):
    """Halves what a module gives."""

    kind: ClassVar[str] = "halved"
    module: str

    def apply(self, model: nn.Module, masks: Masks | None = None) -> None:
        model.get_submodule(self.module).register_forward_hook(lambda module, inputs, output: output / 2)

    def to_plain(self) -> dict[str, Any]:
        return {"module": self.module}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Halved:
        return cls(plain["module"])


def test_edits_of_other_kinds_are_replayed_in_order() -> None:
    """A kind that a test defines goes into the file and out again, and acts between cuts."""
    edits: list[Edit] = [Cut("0", "out", (0,)), Halved("1"), Cut("1", "in", (0,))]
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0], [100.0]]))
        model[1].weight.copy_(torch.tensor([[2.0, 100.0]]))
    replay(model, read(json.loads(json.dumps(write(edits)))))
    assert model(torch.ones(1, 1)).item() == 3.0


def test_a_name_has_one_kind() -> None:
    """Another class under a name that is taken is refused."""
    with pytest.raises(ValueError, match="called 'cut' already"):
        register(type("Other", (Cut,), {}))


def test_unequal_groups_are_refused() -> None:
    """A grouped convolution cannot keep 2 channels of one group and 1 of the other."""
    with pytest.raises(InvalidModelError, match=r"would keep \[2, 1\] of 2 channels each"):
        replay(nn.Sequential(nn.Conv1d(4, 4, 1, groups=2)), [Cut("0", "out", (0, 1, 2))])
