"""Numbers of heads that a module keeps as attributes follow what is cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import modelpress as mp
from modelpress_runner.dependency.analyse import find_dependencies
from modelpress_runner.edits.attributes import Attribute
from modelpress_runner.edits.replay import read, replay, write
from modelpress_runner.errors import ArtifactError, InvalidModelError

X = torch.randn((2, 5, 12), generator=torch.Generator().manual_seed(0))


class Heads(nn.Module):
    """Attention whose code reads the number of heads, and the width of all of them, from attributes."""

    def __init__(self, heads: int = 4, width: int = 3) -> None:
        super().__init__()
        self.heads, self.width, self.rows = heads, width, heads * width
        self.q, self.k, self.v = (nn.Linear(12, self.rows) for _ in range(3))
        self.o, self.head = nn.Linear(self.rows, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        samples, length, _ = x.shape
        q, k, v = (
            layer(x).view(samples, length, self.heads, self.width).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        mixed = torch.softmax(q @ k.transpose(2, 3) / 3**0.5, -1) @ v
        return self.head(torch.relu(self.o(mixed.transpose(1, 2).reshape(samples, length, self.rows))))


class AlsoElsewhere(Heads):
    """The number of heads is another size as well, which stays."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.view(*x.shape[:2], self.heads, -1).flatten(2))


def test_the_numbers_that_follow_a_cut_are_found_by_where_they_are_used() -> None:
    """heads and rows, each once for a position; width stays."""
    found = find_dependencies(Heads(), X)
    sizes = {number.name: number.units for number in found.numbers}
    assert sizes.keys() == {"heads", "rows"}
    first, *_ = sizes["heads"]
    assert sizes["heads"] == (first, first + 1, first + 2, first + 3)
    assert sizes["rows"] == tuple(unit for unit in sizes["heads"] for _ in range(3))
    assert {number.name for number in find_dependencies(AlsoElsewhere(), X).numbers} == {"rows"}


@pytest.mark.parametrize("sparsity", [0.25, 0.5])
def test_heads_go_and_the_module_knows_how_many_are_left(sparsity: float, tmp_path: Path) -> None:
    """In the result, and in a dense model that the artifact is read into."""
    left = round(4 * (1 - sparsity))
    stages = [{"prune": {"config_list": [{"op_names": ["q", "k", "v"], "sparsity": sparsity}]}}]
    result = mp.compress(Heads(), stages, None, X)
    model: Any = result.model
    assert (model.heads, model.width, model.rows, model.o.in_features) == (left, 3, 3 * left, 3 * left)
    assert {type(model.heads), type(model.width)} == {int}
    assert {(cut.module, cut.axis) for cut in result.cuts} == {("q", "out"), ("k", "out"), ("v", "out"), ("o", "in")}
    assert [edit for edit in result.edits if edit not in result.cuts] == [
        Attribute("", "heads", left),
        Attribute("", "rows", 3 * left),
    ]
    result.save(str(tmp_path / "artifact"))
    again: Any = mp.load(str(tmp_path / "artifact"), into=Heads())
    assert (again.heads, again.rows) == (left, 3 * left)
    assert torch.equal(again.eval()(X), model.eval()(X))


def test_heads_stay_where_their_number_is_needed_for_something_else() -> None:
    """The proof refutes the cut, and the rest shrinks."""
    stages = [{"prune": {"config_list": [{"op_names_re": ["q|k|v|o"], "sparsity": 0.5}]}}]
    result = mp.compress(AlsoElsewhere(), stages, None, X)
    model: Any = result.model
    assert (model.heads, model.q.out_features, model.o.out_features) == (4, 12, 3)
    assert any("'q', 'k', 'v' cannot lose channels: the shrunk model" in note for note in result.notes)


def test_attributes_in_files() -> None:
    """Written, read, and replayed; what does not fit the model is refused."""
    edit = Attribute("", "heads", 2)
    assert read(write([edit])) == [edit]
    model = Heads()
    replay(model, [edit])
    assert model.heads == 2
    for wrong in (Attribute("", "heads", 9), Attribute("", "training", 1), Attribute("", "forward", 1)):
        with pytest.raises(InvalidModelError, match="the model is not the one that was shrunk"):
            replay(Heads(), [wrong])
    with pytest.raises(InvalidModelError, match="'gone' has no number 'heads'"):
        replay(Heads(), [Attribute("gone", "heads", 2)])
    for value in (0, -1, True, "2", 2.0, None):
        plain = {"version": 2, "edits": [{"edit": "attribute", "module": "", "name": "heads", "value": value}]}
        with pytest.raises(ArtifactError, match="damaged; it needs module, name and value"):
            read(plain)
