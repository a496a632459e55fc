"""Parameters, nonzero parameters and multiply-accumulates, against numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from modelpress_runner.errors import InvalidModelError
from modelpress_runner.export.weights import safetensors_bytes
from modelpress_runner.measure import counts


class Matmul(nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bij,bjk->bik", x, y) @ y.transpose(1, 2)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x, x, x, need_weights=False)[0]


@pytest.mark.parametrize(
    ("model", "inputs", "expected"),
    [
        pytest.param(nn.Conv2d(1, 8, 3, padding=1), torch.ones(4, 1, 8, 8), 8 * 8 * 8 * 9, id="conv"),
        pytest.param(nn.Conv2d(4, 8, 3, groups=2), torch.ones(1, 4, 6, 6), 4 * 4 * 8 * 2 * 9, id="grouped conv"),
        pytest.param(nn.Conv2d(6, 6, 3, stride=2, groups=6), torch.ones(1, 6, 7, 7), 3 * 3 * 6 * 9, id="depthwise"),
        pytest.param(nn.Conv1d(3, 4, 2, dilation=2), torch.ones(1, 3, 9), 7 * 4 * 3 * 2, id="dilated conv1d"),
        pytest.param(nn.ConvTranspose2d(3, 5, 2, stride=2), torch.ones(1, 3, 4, 4), 16 * 3 * 5 * 4, id="transposed"),
        pytest.param(nn.Linear(8, 10), torch.ones(3, 8), 80, id="linear"),
        pytest.param(nn.Linear(8, 10, bias=False), torch.ones(3, 5, 8), 5 * 80, id="linear over a sequence"),
        pytest.param(Matmul(), (torch.ones(2, 3, 4), torch.ones(2, 4, 5)), 3 * 4 * 5 + 3 * 5 * 4, id="products"),
        # projections in 5*8*24, scores and values 2 heads * 5*5*4 each, projection out 5*8*8
        pytest.param(Attention(), torch.ones(2, 5, 8), 960 + 200 + 200 + 320, id="attention"),
        # the same, and the two linear layers 5*8*16 each
        pytest.param(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.ones(1, 5, 8), 1680 + 1280, id="encoder layer"
        ),
        # four gates of 3, each from 4 inputs and 3 states, 5 steps
        pytest.param(nn.LSTM(4, 3, batch_first=True), torch.ones(2, 5, 4), 5 * 4 * 3 * 7, id="lstm"),
        pytest.param(nn.Embedding(10, 4), torch.zeros(2, 3, dtype=torch.long), 0, id="embedding"),
        pytest.param(nn.Sequential(nn.BatchNorm1d(4), nn.ReLU()), torch.ones(2, 4), 0, id="norm"),
    ],
)
def test_macs_by_hand(model: nn.Module, inputs: Any, expected: int) -> None:
    """One row's products are counted exactly, whatever batch the example has."""
    assert counts.macs(model, inputs) == expected


def test_counting_leaves_no_trace() -> None:
    """Modes, statistics, random numbers, global switches and hooks are the same before and after."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout())
    model[1].eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    counts.macs(model, torch.rand(2, 1, 5, 5, generator=torch.Generator().manual_seed(1)))
    assert [module.training for module in model] == [True, False, True]
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.mkldnn.enabled


def test_a_model_that_does_not_run_is_named() -> None:
    """Inputs that the model does not take are an error of the model, with torch's own reason."""
    with pytest.raises(InvalidModelError, match=r"does not run on dummy_input with a batch of 1 \(.*shapes"):
        counts.macs(nn.Linear(3, 2), torch.ones(1, 4))


def test_parameters_count_tied_ones_once() -> None:
    """A weight under two names is one weight; zeros are told from the rest."""
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 10))
    model[1].weight = model[0].weight
    assert counts.parameters(model) == 40 + 10
    with torch.no_grad():
        model[0].weight[:, 0] = 0.0
        model[1].bias.fill_(1.0)
    assert counts.nonzero_parameters(model) == 30 + 10


def test_size_is_that_of_the_file() -> None:
    """A safetensors file is 8 bytes, a header padded to 8, and the raw numbers: tied ones once."""
    header = len('{"__metadata__":{"format":"pt"},"weight":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}')
    assert safetensors_bytes(nn.Linear(3, 2, bias=False)) == 8 + -(-header // 8) * 8 + 24
    tied = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False))
    apart = safetensors_bytes(tied)
    tied[1].weight = tied[0].weight
    assert apart - safetensors_bytes(tied) >= 64 * 64 * 4
