"""What the dependency analysis cannot follow stays; the rest of the model is cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import modelpress as mp
from modelpress_runner.errors import InvalidSpecError


def _cut(model: nn.Module, names: list[str], x: torch.Tensor) -> Any:
    return mp.compress(model, [{"prune": {"config_list": [{"op_names": names, "sparsity": 0.5}]}}], None, x)


class Recurrent(nn.Module):
    def __init__(self, kind: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 8), nn.Linear(8, 4)
        self.rnn, self.hidden = kind(4, 5, batch_first=True, bidirectional=True), nn.Linear(10, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.rnn(self.second(torch.relu(self.first(x))))[0]
        return self.head(torch.relu(self.hidden(x.mean(1))))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.RNN, nn.GRU])
def test_layers_beside_a_recurrent_one_are_cut(kind: Callable[..., nn.Module]) -> None:
    """What it takes and gives stays."""
    model = _cut(Recurrent(kind), ["first", "hidden"], torch.zeros(2, 7, 3)).model
    assert (model.first.out_features, model.second.out_features, model.hidden.out_features) == (4, 4, 3)


class LastStep(Recurrent):
    """Takes the last step of a recurrent layer, whose state may be given and comes out."""

    def __init__(self, kind: Callable[..., nn.Module]) -> None:
        super().__init__(kind)
        self.rnn, self.hidden = kind(4, 5, batch_first=True), nn.Linear(5, 6)

    def forward(self, x: torch.Tensor, *state: torch.Tensor) -> Any:
        x, after = self.rnn(self.second(torch.relu(self.first(x))), *state)
        return self.head(torch.relu(self.hidden(x[:, -1]))), after


@pytest.mark.parametrize("kind", [nn.LSTM, nn.RNN, nn.GRU])
@pytest.mark.parametrize("given", [False, True])
def test_the_last_step_of_a_recurrent_layer_may_be_taken(kind: Callable[..., nn.Module], given: bool) -> None:
    """A slice of time is none of channels."""
    state = torch.zeros(1, 2, 5)
    inputs = (torch.zeros(2, 7, 3), *([(state, state) if kind is nn.LSTM else state] * given))
    prune = {"config_list": [{"op_names": ["first", "hidden"], "sparsity": 0.5}]}
    model = mp.compress(LastStep(kind), [{"prune": prune}], None, inputs).model
    assert (model.first.out_features, model.second.out_features, model.hidden.out_features) == (4, 4, 3)


class Transformed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed = torch.fft.fft(torch.relu(self.first(x)), dim=1).real
        return self.last(torch.relu(self.second(mixed)))


def test_an_operation_that_cannot_be_followed_keeps_its_own_channels() -> None:
    """Others go; it is named where somebody asks for it."""
    model = _cut(Transformed(), ["second"], torch.zeros(2, 3, 5, 5)).model
    assert (model.first.out_channels, model.second.out_channels) == (4, 3)
    with pytest.raises(InvalidSpecError, match=r"'first' .*fft_r2c \(test_dependencies.py:\d+\)"):
        _cut(Transformed(), ["first"], torch.zeros(2, 3, 5, 5))


def test_a_group_norm_of_one_group_keeps_its_channels() -> None:
    """It takes its statistics over them, as a LayerNorm does; two groups of half the channels may go by group."""
    model = nn.Sequential(nn.Conv1d(3, 8, 1), nn.GroupNorm(1, 8), nn.Conv1d(8, 6, 1), nn.ReLU(), nn.Conv1d(6, 2, 1))
    stages = [{"prune": {"config_list": [{"op_types": ["Conv1d"], "sparsity": 0.5}]}}]
    result = mp.compress(model, stages, None, torch.zeros(2, 3, 5))
    assert (result.model[0].out_channels, result.model[2].out_channels) == (8, 3)
    assert any("the GroupNorm '1' has one group and takes its statistics over them" in note for note in result.notes)
