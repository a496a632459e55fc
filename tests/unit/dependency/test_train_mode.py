"""Layers that train mode alone runs: what feeds them stays, with a note that names both."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import modelpress as mp
from modelpress_runner.dependency.train_mode import check_train_mode
from modelpress_runner.edits.cuts import Cut
from modelpress_runner.errors import CompressionError, UserCodeError

X = torch.zeros(2, 4)


class Supervised(nn.Module):
    """A trunk with a head that only training asks."""

    def __init__(self, detached: bool = False, norm: bool = False) -> None:
        super().__init__()
        self.trunk, self.body = nn.Linear(4, 8), nn.Linear(8, 6)
        self.norm = nn.BatchNorm1d(8) if norm else nn.Identity()
        self.aux, self.middle, self.head = nn.Linear(8, 3), nn.Linear(6, 6), nn.Linear(6, 3)
        self.attention = nn.MultiheadAttention(6, 2)
        self.detached = detached

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        early = torch.relu(self.norm(self.trunk(x)))
        late = self.middle(torch.relu(self.body(early)))
        out = self.head(late + self.attention(late, late, late)[0])
        return (out, self.aux(early.detach() if self.detached else early)) if self.training else out


@pytest.mark.parametrize("dummy", [X, X[:1]], ids=["two rows", "one row"])
@pytest.mark.parametrize("detached", [False, True])
@pytest.mark.parametrize("norm", [False, True])
def test_a_training_head_shrinks_with_what_feeds_it(detached: bool, norm: bool, dummy: torch.Tensor) -> None:
    """The head takes fewer channels of the trunk, also behind detach()."""
    entries = [{"op_names_re": ["trunk|body"], "sparsity": 0.5}]
    result = mp.compress(Supervised(detached, norm), [{"prune": {"config_list": entries}}], None, dummy)
    assert (result.model.trunk.out_features, result.model.body.out_features) == (4, 3)
    assert (result.model.aux.in_features, result.model.aux.out_features) == (4, 3)
    out, aux = result.model.train()(X)
    assert (out.shape, aux.shape) == ((2, 3), (2, 3))


def test_what_nothing_runs_is_told() -> None:
    """A head that forward() does not know."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    model[1].projection = nn.Linear(8, 2)
    entries = [{"op_names": ["0"], "sparsity": 0.5}]
    result = mp.compress(model, [{"prune": {"config_list": entries}}], None, X)
    assert any("reaches '1.projection' neither in eval nor in train mode" in note for note in result.notes)


def test_a_shrink_that_breaks_train_mode_is_refuted() -> None:
    """Whatever found it; the model itself stays as it is."""
    model = Supervised()
    kept = tuple(range(3))
    check_train_mode(model, [Cut("body", "out", kept), Cut("middle", "in", kept)], X)
    with pytest.raises(CompressionError, match="in train mode the shrunk model does not run"):
        check_train_mode(model, [Cut("trunk", "out", kept), Cut("body", "in", kept)], X)
    with pytest.raises(CompressionError, match=r"outputs in train mode: shapes \[\(2, 3\), \(2, 3\)\] became"):
        check_train_mode(model, [Cut("aux", "out", (0, 1))], X)
    assert (model.trunk.out_features, model.aux.out_features) == (8, 3)


class Projected(nn.Module):
    """Has a head that forward() does not know; training asks it."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head, self.projection = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.trunk(x)))


def test_a_training_that_uses_what_no_pass_reaches_is_told_so() -> None:
    """The user's line is where it breaks, and the shrink is why: the error names the head and what to exclude."""
    model = Projected()

    def loop(model: nn.Module, optimizer: Any, step: Any, scheduler: Any, max_steps: Any, max_epochs: Any) -> None:
        optimizer.zero_grad()
        step(torch.ones(2, 4), model).backward()
        optimizer.step()

    def step(batch: torch.Tensor, model: Any) -> torch.Tensor:
        return model.projection(torch.relu(model.trunk(batch))).square().mean() + model(batch).square().mean()

    evaluator = mp.TorchEvaluator(loop, mp.trace(torch.optim.SGD)(model.parameters(), lr=0.1), step, dummy_input=X)
    stages = [{"prune": {"config_list": [{"op_names": ["trunk"], "sparsity": 0.5}]}}, {"finetune": {"epochs": 1}}]
    with pytest.raises(UserCodeError) as caught:
        mp.compress(model, stages, evaluator, X)
    assert "shapes cannot be multiplied" in str(caught.value)
    assert "reaches 'projection' neither in eval nor in train mode. If your training uses that, exclude" in str(
        caught.value
    )
