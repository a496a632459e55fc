"""Hidden width behind norms by the root of a mean of squares: channels go, and the norm is rescaled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import modelpress as mp
from modelpress_runner.dependency.analyse import find_dependencies
from modelpress_runner.dependency.norms import RootMeanSquare, root_mean_square
from modelpress_runner.edits.replay import read, replay, write
from modelpress_runner.edits.rescale import Rescale
from modelpress_runner.errors import ArtifactError, InvalidModelError

X = torch.randn((2, 5, 4), generator=torch.Generator().manual_seed(0))


class Written(nn.Module):
    """As Llama has it; `kind` changes what makes it one."""

    def __init__(self, channels: int, kind: str = "plain") -> None:
        super().__init__()
        self.scale, self.variance_epsilon, self.kind = nn.Parameter(torch.ones(channels)), 1e-2, kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.to(torch.float32)
        squares = wide.pow(2).mean(-1, keepdim=True)
        if self.kind == "constant":
            return self.scale * wide * torch.rsqrt(squares + 1e-2)
        if self.kind == "centred":
            squares = wide.var(-1, keepdim=True)
        if self.kind == "offset":
            return (1 + self.scale) * (wide * torch.rsqrt(squares + self.variance_epsilon)).to(x.dtype)
        return self.scale * (wide * torch.rsqrt(squares + self.variance_epsilon)).to(x.dtype)


class Stream(nn.Module):
    """A residual stream of 8 channels with two norms."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.enter, self.first, self.up, self.down = nn.Linear(4, 8), norm(), nn.Linear(8, 6), nn.Linear(6, 8)
        self.last, self.head = norm(), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        return self.head(self.last(x + self.down(torch.relu(self.up(self.first(x))))))


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.RMSNorm(8, eps=1e-3), RootMeanSquare("weight", "eps", 0)),
        (nn.RMSNorm(8), RootMeanSquare("weight", None, 0)),
        (Written(8), RootMeanSquare("scale", "variance_epsilon", 0)),
        (Written(8, "offset"), RootMeanSquare("scale", "variance_epsilon", 1)),
        (Written(8, "constant"), None),
        (Written(8, "centred"), None),
        (nn.RMSNorm(8, elementwise_affine=False), None),
        (nn.LayerNorm(8), None),
        (nn.PReLU(8), None),
        (nn.Linear(8, 8), None),
    ],
)
def test_such_norms_are_known_by_what_they_compute(module: nn.Module, expected: RootMeanSquare | None) -> None:
    """Not by their name or code: one with an epsilon in its code, or that takes means off, is none."""
    assert root_mean_square(module) == expected


@pytest.mark.parametrize("norm", [lambda: nn.RMSNorm(8, eps=1e-2), lambda: Written(8), lambda: Written(8, "offset")])
def test_channels_of_the_residual_stream_go_exactly(norm: Any, tmp_path: Path) -> None:
    """Masked and shrunk model agree, as the proof demands; weight and epsilon are rescaled, by hand for 8 to 2."""
    torch.manual_seed(0)
    dense = Stream(norm)
    with torch.no_grad():
        for parameter in dense.first.parameters():
            parameter.uniform_(0.5, 1.5)
    stages = [{"prune": {"config_list": [{"op_names": ["enter", "down"], "sparsity": 0.75}]}}]
    result = mp.compress(dense, stages, None, X)
    small: Any = result.model
    assert (small.enter.out_features, small.up.in_features, small.head.in_features) == (2, 2, 2)
    (kept,) = {cut.kept for cut in result.cuts if cut.module == "enter"}
    name, parameter = next(small.first.named_parameters())
    before = dict(dense.first.named_parameters())[name][list(kept)]
    offset = int(getattr(dense.first, "kind", "") == "offset")
    torch.testing.assert_close(parameter, (before + offset) * 2 - offset)
    epsilon = "eps" if isinstance(dense.first, nn.RMSNorm) else "variance_epsilon"
    assert getattr(small.first, epsilon) == pytest.approx(0.04, rel=1e-12)
    assert [edit for edit in result.edits if isinstance(edit, Rescale)] == [
        Rescale("first", name, epsilon, offset, 8, 2),
        Rescale("last", name, epsilon, offset, 8, 2),
    ]
    result.save(str(tmp_path / "artifact"))
    again: Any = mp.load(str(tmp_path / "artifact"), into=Stream(norm))
    torch.testing.assert_close(again.eval()(X), small.eval()(X), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["constant", "centred"])
def test_a_norm_that_would_not_stay_exact_keeps_its_channels(kind: str) -> None:
    """With the operation and the line; what is inside goes."""
    found = find_dependencies(Stream(lambda: Written(8, kind)), X)
    assert {group.producers: len(group.units) for group in found.groups} == {("up",): 6}
    (reason,) = {text for text in found.frozen.values() if "'first'" in text}
    assert reason.startswith(("mean in 'first' (test_rescale.py:", "var in 'first' (test_rescale.py:"))


def test_in_files() -> None:
    """Written, read and replayed; what is damaged or does not fit is refused."""
    edit = Rescale("first", "weight", "eps", 0, 8, 2)
    assert read(write([edit])) == [edit]
    with pytest.raises(InvalidModelError, match="no parameter 'weight' of 2 channels"):
        replay(Stream(lambda: nn.RMSNorm(8)), [edit])
    with pytest.raises(InvalidModelError, match="'first' has no number 'eps'"):
        replay(Stream(lambda: nn.RMSNorm(2)), [edit])
    for wrong in ({"after": 8}, {"after": 0}, {"offset": 2}, {"epsilon": 1}, {"before": "8"}, {"module": None}):
        plain = {"version": 2, "edits": [{"edit": "rescale", **edit.to_plain(), **wrong}]}
        with pytest.raises(ArtifactError, match="damaged; it needs module, parameter, epsilon"):
            read(plain)
