"""Numbers of heads that a module keeps as attributes follow what is cut."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
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
    sizes = {number.name: tuple(number.units) for number in found.numbers}
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
    """It is seen before anything is tried, and the rest shrinks."""
    stages = [{"prune": {"config_list": [{"op_names_re": ["q|k|v|o"], "sparsity": 0.5}]}}]
    result = mp.compress(AlsoElsewhere(), stages, None, X)
    model: Any = result.model
    assert (model.heads, model.q.out_features, model.o.out_features) == (4, 12, 3)
    assert any("computes a size from 'heads' that would not follow" in note for note in result.notes)


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


class Held(Heads):
    """As Phi-3 has it: query, key and value in one, fewer keys than queries, numbers in an object of many modules."""

    def __init__(self) -> None:
        super().__init__()
        self.config, self.keys = SimpleNamespace(heads=4), 2
        self.qkv = nn.Linear(12, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        qkv, place = self.qkv(x), self.config.heads * self.width
        q, k, v = (
            part.unflatten(2, (-1, self.width)).transpose(1, 2)
            for part in (
                qkv[..., :place],
                qkv[..., place : place + self.keys * self.width],
                qkv[..., place + self.keys * self.width :],
            )
        )
        k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        mixed = torch.softmax(q @ k.transpose(2, 3) / 3**0.5, -1) @ v
        return self.head(torch.relu(self.o(mixed.transpose(1, 2).flatten(2))))


def test_numbers_in_an_object_and_in_sums_and_products_follow() -> None:
    """A head of keys goes with its two of queries; the object is another module's too, so this one gets its own."""
    model = Held()
    shared = model.config
    stages = [{"prune": {"config_list": [{"op_names": ["qkv"], "sparsity": 0.5}]}}]
    result = mp.compress(model, stages, None, X)
    small: Any = result.model
    assert (small.config.heads, small.keys, small.qkv.out_features, small.o.in_features) == (2, 1, 12, 6)
    assert shared.heads == 4
    assert [edit for edit in result.edits if edit not in result.cuts] == [
        Attribute("", "config.heads", 2),
        Attribute("", "keys", 1),
    ]
    again: Any = Held()
    other = again.config
    replay(again, read(write(result.edits)))
    assert (again.config.heads, other.heads, again.qkv.out_features) == (2, 4, 12)


class Shifted(Heads):
    """As Swin has it: the width of a head is computed from the number of heads."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        samples, length, channels = x.shape
        q, k, v = (
            layer(x).view(samples, length, self.heads, channels // self.heads).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        mixed = torch.softmax(q @ k.transpose(2, 3) / 3**0.5, -1) @ v
        return self.head(torch.relu(self.o(mixed.transpose(1, 2).flatten(2))))


def test_a_width_computed_from_the_number_of_heads_keeps_them() -> None:
    """With the place in the code; nothing is left to the proof."""
    found = find_dependencies(Shifted(), X)
    told = {
        found.frozen.get(unit) for axis in found.axes if axis.module == "q" for unit in axis.units if axis.axis == "out"
    }
    assert [re.sub(r":\d+", "", text or "") for text in told] == [
        "view (test_attributes.py) computes a size from 'heads' that would not follow"
    ]


class OneKey(Heads):
    """Four heads of queries share one of keys and values."""

    def __init__(self, kernel: bool) -> None:
        super().__init__()
        self.k, self.v, self.kernel = nn.Linear(12, 3), nn.Linear(12, 3), kernel

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (layer(x).unflatten(2, (-1, self.width)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if self.kernel:
            mixed = nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        else:
            k, v = (t.expand(-1, self.heads, -1, -1) for t in (k, v))
            mixed = torch.softmax(q @ k.transpose(2, 3) / 3**0.5, -1) @ v
        return self.head(torch.relu(self.o(mixed.transpose(1, 2).flatten(2))))


@pytest.mark.parametrize("kernel", [False, True])
def test_heads_of_queries_that_share_one_of_keys_go(kernel: bool) -> None:
    """The number of copies that the code makes of the key follows."""
    stages = [{"prune": {"config_list": [{"op_names": ["q"], "sparsity": 0.5}]}}]
    model: Any = mp.compress(OneKey(kernel), stages, None, X).model
    assert (model.q.out_features, model.k.out_features, model.o.in_features) == (6, 3, 6)
    assert model.heads == (4 if kernel else 2)
