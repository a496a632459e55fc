"""Residual blocks that can go whole."""

from __future__ import annotations

import pytest
import torch
from random_nets import Residual
from torch import nn

from modelpress_runner.dependency.analyse import find_dependencies
from modelpress_runner.dependency.groups import ChannelDependencies
from modelpress_runner.dependency.layers import check_without
from modelpress_runner.edits.bypass import Bypass, Bypassed
from modelpress_runner.edits.replay import read, replay, write
from modelpress_runner.errors import ArtifactError, CompressionError, InvalidModelError

X = torch.randn((2, 3, 4, 4), generator=torch.Generator().manual_seed(0))


class Tuple(nn.Module):
    """Gives its stream and something that is not there; the stream may come by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        return x + self.conv(x), None


class Net(nn.Module):
    """Of its blocks one is gated, one projects its stream, and one has no parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        conv = lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Dropout(), nn.Conv2d(4, 4, 1))  # noqa: E731
        self.blocks = nn.ModuleList(
            [Residual(conv(), None), Residual(conv(), nn.Conv2d(4, 4, 1)), Residual(conv(), None)]
        )
        self.nested = nn.Sequential(Residual(conv(), None), Residual(nn.ReLU(), None))
        self.pair, self.plain, self.head = Tuple(), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        x, _ = self.pair(x)
        return self.head(self.plain(self.nested(x)))


def test_residual_blocks_are_listed() -> None:
    """Those that give what they take plus something, the sequence of two as well; no other layer."""
    found = find_dependencies(Net(), X)
    assert [layer.module for layer in found.layers] == ["blocks.0", "blocks.2", "nested", "nested.0", "pair"]
    assert [(layer.alone, layer.places) for layer in found.layers] == [(True, 1)] * 4 + [(False, 2)]
    assert ChannelDependencies.from_dict(found.to_dict()).layers == found.layers


def test_each_can_go_and_so_can_all() -> None:
    """Shapes stay, the stream passes; the model itself stays as it is."""
    model = Net().eval()
    layers = find_dependencies(model, X).layers
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for layer in layers:
        check_without(model, [layer], X)
    some = [layer for layer in layers if layer.module != "nested"]
    check_without(model, some, X)
    assert model.state_dict().keys() == before.keys()
    replay(model, some)
    assert not [name for name in model.state_dict() if name.startswith(("blocks.0.", "blocks.2.", "pair."))]
    assert isinstance(model.blocks[0], Bypassed)
    stream = model.stem(X)
    torch.testing.assert_close(model(X), model.head(model.plain(torch.relu(y := model.blocks[1](stream)) + y)))


def test_a_layer_without_which_nothing_runs_is_refused() -> None:
    """With what goes wrong."""
    with pytest.raises(CompressionError, match="without 'stem' the model does not run"):
        check_without(Net(), [Bypass("stem")], X)
    with pytest.raises(CompressionError, match="without 'head' the model's outputs change"):
        check_without(Net(), [Bypass("head")], X)


def test_a_block_that_is_one_only_at_times_is_not_listed() -> None:
    """Called twice, once without its sum."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Residual(nn.Conv2d(3, 3, 1), None)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.block(x)
            self.block.outer = nn.ReLU()
            x = self.block(x)
            self.block.outer = None
            return x

    assert find_dependencies(Twice(), X).layers == ()


def test_in_files_and_with_masks() -> None:
    """Written, read, replayed with the masks of what goes; what is damaged or does not fit is refused."""
    edit = Bypass("blocks.0")
    assert read(write([edit])) == [edit]
    masks = {name: {"weight": torch.ones(4, 4, 1, 1)} for name in ("blocks.0.inner.0", "plain")}
    model = Net()
    replay(model, [edit], masks)
    assert masks.keys() == {"plain"}
    with pytest.raises(InvalidModelError, match=r"no block 'blocks\.0'"):
        replay(model, [edit])
    with pytest.raises(InvalidModelError, match="no block 'gone'"):
        replay(model, [Bypass("gone")])
    for wrong in ({"module": ""}, {"alone": 1}, {"places": 0}):
        with pytest.raises(ArtifactError, match="damaged; it needs module, alone"):
            read({"version": 2, "edits": [{"edit": "bypass", **edit.to_plain(), **wrong}]})
