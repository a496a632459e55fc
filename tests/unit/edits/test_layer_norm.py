"""Hidden width behind LayerNorm: it stays, unless something inexact is asked for; then it is told how much."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import modelpress as mp
from modelpress_runner.dependency.analyse import find_dependencies
from modelpress_runner.dependency.cutting import edits_of
from modelpress_runner.dependency.prove import prove_structure
from modelpress_runner.errors import CompressionError

X = torch.randn((2, 5, 4), generator=torch.Generator().manual_seed(0))


class Stream(nn.Module):
    """A residual stream of 8 channels with two norms."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.first, self.up, self.down = nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 6), nn.Linear(6, 8)
        self.last, self.head = nn.LayerNorm(8), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        return self.head(self.last(x + self.down(torch.relu(self.up(self.first(x))))))


def compressed(exact: bool) -> tuple[nn.Module, Any]:
    """A dense model, and what becomes of it at 50 % of its stream."""
    torch.manual_seed(0)
    dense = Stream()
    entry = {"op_names_re": ["enter", "down", "up"], "sparsity": 0.5}
    return dense, mp.compress(dense, [{"prune": {"config_list": [entry], "exact": exact}}], None, X)


def test_by_default_the_stream_stays() -> None:
    """And says why."""
    _, result = compressed(True)
    assert (result.model.enter.out_features, result.model.up.out_features) == (8, 3)
    assert any("the LayerNorm 'first' takes its statistics over them" in note for note in result.notes)
    assert not any(note.startswith("Approximate") for note in result.notes)


def test_what_is_not_exact_is_told_with_how_much(tmp_path: Any) -> None:
    """The figure is that of the outputs with and without the masked channels in the statistics, by hand."""
    dense, result = compressed(False)
    small: Any = result.model
    assert (small.enter.out_features, small.first.normalized_shape, small.up.in_features) == (4, (4,), 4)
    (note,) = [note for note in result.notes if note.startswith("Approximate")]
    assert "spec.stages[0].prune.exact: false allows: 'first', 'last' take their statistics" in note
    result.save(str(tmp_path / "artifact"))
    told = float(re.search(r"moves the outputs by ([0-9.e-]+) of", note)[1])  # type: ignore[index]
    cuts = {(cut.module, cut.axis): list(cut.kept) for cut in result.cuts}
    masked: Any = dense.double()
    with torch.no_grad():
        for name in ("enter", "down", "first", "last"):
            gone = [c for c in range(8) if c not in cuts[name, "out"]]
            module = masked.get_submodule(name)
            module.weight[gone], module.bias[gone] = 0, 0
        gone = [c for c in range(6) if c not in cuts["up", "out"]]
        masked.up.weight[gone], masked.up.bias[gone] = 0, 0
        before, after = masked(X.double()), small.double()(X.double())
    assert told == pytest.approx(float((before - after).abs().max() / before.abs().max()), rel=5e-3)
    assert told > 1e-3
    (card,) = (tmp_path / "artifact").rglob("*.md")
    assert "Approximate, as spec.stages[0].prune.exact" in card.read_text()


def test_what_else_depends_on_a_channel_still_refutes() -> None:
    """But for the statistics the proof is as strict: with one cut left out it fails."""
    model = Stream()
    found = find_dependencies(model, X, exact=False)
    (group,) = [group for group in found.groups if "enter" in group.producers]
    removed = torch.zeros(found.unit_count, dtype=torch.bool)
    removed[list(group.units[:3])] = True
    edits = edits_of(found, removed)
    prove_structure(model, edits, X, loose=True)
    assert found.approximated(removed) == ["first", "last"]
    with pytest.raises(CompressionError, match="differs"):
        prove_structure(model, edits, X)
    with pytest.raises(CompressionError, match="does not run"):
        prove_structure(model, edits[1:], X, loose=True)


def test_norms_over_several_dimensions_or_without_a_weight_stay() -> None:
    """Whatever is allowed."""

    class Odd(nn.Module):
        def __init__(self, weight: bool) -> None:
            super().__init__()
            self.a, self.b, self.weight = nn.Linear(4, 8), nn.Linear(8, 2), weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(F.layer_norm(self.a(x), (8,) if self.weight else (5, 8)))

    for weight in (True, False):
        assert not find_dependencies(Odd(weight), X, exact=False).groups
