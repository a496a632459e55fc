"""Models of the kinds that users bring, and one of them exported once."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from modelpress_runner.export.pt2.program import export_program


class Residual(nn.Module):
    """A small convnet with BatchNorm, dropout, a residual and a constant; it returns a tensor (batch, 3)."""

    def __init__(self, width: int = 4, dropout: float = 0.5) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(width, 3)
        self.register_buffer("offset", torch.tensor([1.0, 2.0, 3.0]), persistent=False)
        self.scale = torch.tensor([2.0, 2.0, 2.0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = y + self.conv2(y)
        return self.fc(self.dropout(y.mean((2, 3)))) * self.scale + self.offset


@dataclass
class Output:
    logits: torch.Tensor
    loss: torch.Tensor | None = None


class TwoInputs(nn.Module):
    """Takes ids and a mask, keyword or not, and returns a mapping of what `form` says."""

    def __init__(self, form: str = "ordered") -> None:
        super().__init__()
        self.form = form
        self.embed = nn.Embedding(11, 6)
        self.out = nn.Linear(6, 11, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> Any:
        hidden = self.embed(ids) * mask.unsqueeze(-1)
        logits = self.out(hidden)
        if self.form == "dataclass":
            return Output(logits)
        if self.form == "nested":
            return (logits, [hidden, None], {"pooled": hidden.mean(1)})
        return OrderedDict(logits=logits, hidden=hidden)


class Stochastic(nn.Module):
    """Differs between train and eval in more than dropout: another head, attention dropout, an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(4, 8, num_layers=2, dropout=0.2, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.main, self.auxiliary = nn.Linear(8, 2), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> Any:
        with torch.no_grad():
            start = x * torch.tensor([1.0, 2.0, 3.0, 4.0])
        y = self.layer(self.rnn(start)[0])
        y = y.masked_fill(y > 100, float("-inf"))
        return (self.main(y[:, 0]), self.auxiliary(y[:, 0])) if self.training else self.main(y[:, 0])


@pytest.fixture
def models() -> Any:
    """The model classes."""

    class Models:
        residual, two_inputs, stochastic, output = Residual, TwoInputs, Stochastic, Output

    return Models


@pytest.fixture
def residual() -> Residual:
    """A Residual with settled statistics."""
    return make_residual()


def make_residual() -> Residual:
    torch.manual_seed(0)
    model = Residual()
    for _ in range(3):
        model(torch.randn(8, 1, 6, 6) * 2 + 1)
    return model


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """make_residual() as model.pt2; not to be changed."""
    path = tmp_path_factory.mktemp("exported") / "model.pt2"
    export_program(make_residual(), torch.zeros(1, 1, 6, 6), path)
    return path


@pytest.fixture
def images() -> torch.Tensor:
    """64 rows (64, 1, 6, 6)."""
    return torch.randn(64, 1, 6, 6, generator=torch.Generator().manual_seed(3))
