"""What layers hold and compute, which lose channels together, and what the score bears."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import modelpress as mp
from modelpress.api.errors import SpecError
from modelpress.cli.analyze import search_bounds
from modelpress_runner.analysis.channels import ChannelGroup
from modelpress_runner.analysis.layers import Layer
from modelpress_runner.errors import InvalidModelError, InvalidSpecError
from modelpress_runner.measure.counts import macs, parameters


class Net(nn.Module):
    """Images (batch, 2, 4, 4) -> (batch, 3); one convolution is called twice, a product has no module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.twice = nn.Conv2d(6, 6, 1, bias=False)
        self.table = nn.Parameter(torch.ones(6, 6))
        self.head = nn.Linear(6, 3)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.twice(self.twice(torch.relu(self.norm(self.first(x)))))
        return self.head(x.mean(dim=(2, 3)) @ self.table)


@pytest.fixture
def net() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net().eval()


X = torch.ones(3, 2, 4, 4)


def test_layers_with_what_is_their_own(net: Net) -> None:
    """By hand: 16 places, of 2 * 9 * 6, 6 * 6 twice; 6 * 6 by the model itself; 6 * 3."""
    assert mp.layers(net, X) == [
        Layer("", "Net", 36, 36, 1, (1, 3)),
        Layer("first", "Conv2d", 2 * 6 * 9 + 6, 16 * 108, 1, (1, 6, 4, 4)),
        Layer("norm", "BatchNorm2d", 12, 0, 1, (1, 6, 4, 4)),
        Layer("twice", "Conv2d", 36, 2 * 16 * 36, 2, (1, 6, 4, 4)),
        Layer("head", "Linear", 21, 18, 1, (1, 3)),
        Layer("unused", "Linear", 6, 0, 0, ()),
    ]
    assert sum(layer.parameters for layer in mp.layers(net, X)) == parameters(net)
    assert sum(layer.macs for layer in mp.layers(net, X)) == macs(net, X)


@pytest.mark.parametrize(
    "model",
    [
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        nn.LSTM(8, 4, batch_first=True),
        nn.MultiheadAttention(8, 2, batch_first=True),
    ],
    ids=["encoder", "lstm", "attention"],
)
def test_the_sum_is_the_metric_whatever_is_fused(model: nn.Module) -> None:
    tokens = torch.ones(2, 5, 8)
    example = (tokens, tokens, tokens) if isinstance(model, nn.MultiheadAttention) else tokens
    assert sum(layer.macs for layer in mp.layers(model, example)) == macs(model, example) > 0


def test_a_shared_weight_counts_once_and_the_model_stays(net: Net) -> None:
    net.train()
    net.unused.weight = net.head.weight
    before = copy.deepcopy(net.state_dict())
    found = {layer.name: layer.parameters for layer in mp.layers(net, X)}
    assert (found["head"], found["unused"]) == (21, 2)
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)
    assert net.training
    assert not net._forward_hooks
    with pytest.raises(InvalidModelError, match="does not run on dummy_input with a batch of 1"):
        mp.layers(net, torch.ones(2, 5, 4, 4))


def test_channels_that_go_together_and_why_others_stay(net: Net) -> None:
    found = mp.channel_dependency(net, X)
    assert found.groups == (ChannelGroup(("first", "twice"), ("norm",), 6),)
    (head,) = found.frozen
    assert (head.layers, head.channels) == (("head",), 3)
    assert "model's output" in head.reason
    assert any("unused" in note for note in found.notes)


def test_sensitivity_is_the_score_of_each_layer_alone() -> None:
    """The score is the sum of the weights: without its two smallest outputs (of 1, 2, 3, 4 by 2) a layer loses 6."""
    model = nn.Sequential(nn.Linear(2, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False), nn.Linear(4, 1))
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.copy_(torch.arange(1.0, 5.0)[:, None].expand_as(layer.weight))

    def score(model: nn.Module) -> float:
        return float(model[0].weight.sum() + 10 * model[2].weight.sum())

    before = copy.deepcopy(model.state_dict())
    lines: list[str] = []
    block = {"algorithm": "l1", "config_list": [{"op_names": ["0", "2"]}]}  # whatever sparsity it would have
    example = torch.ones(1, 2)
    points = mp.sensitivity(model, block, score, example, sparsities=[0.5, 0.25], report=lines.append)
    assert [(point.layers, point.sparsity) for point in points] == [
        ((), 0.0),
        (("0",), 0.25),
        (("0",), 0.5),
        (("2",), 0.25),
        (("2",), 0.5),
    ]
    assert points[0].score == 20 + 10 * 40
    # A layer that loses outputs takes them from the inputs of the next one, too.
    assert [points[0].score - point.score for point in points[3:]] == [10 * 4 * 1, 10 * 4 * (1 + 2)]
    assert points[1].score == 20 - 2 + 10 * 30
    assert lines[0] == "dense: 420"
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_sensitivity_says_what_is_wrong() -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 1))
    block = {"algorithm": "l1", "config_list": [{"op_names": ["0"], "sparsity": 0.1}]}
    example = torch.ones(1, 2)
    with pytest.raises(InvalidSpecError, match="this stage goes by scores, but nothing here evaluates"):
        mp.sensitivity(model, block, None, example)
    with pytest.raises(SpecError, match="sparsities: each must lie between 0 and 1"):
        mp.sensitivity(model, block, lambda model: 1.0, example, sparsities=[0.5, 1.0])
    with pytest.raises(SpecError, match=r"prune\.algorithm"):
        mp.sensitivity(model, {**block, "algorithm": "guess"}, lambda model: 1.0, example)


ROWS = [
    {"layers": [], "sparsity": 0.0, "score": 0.90},
    {"layers": ["a", "b"], "sparsity": 0.2, "score": 0.90},
    {"layers": ["a", "b"], "sparsity": 0.4, "score": 0.89},
    {"layers": ["a", "b"], "sparsity": 0.6, "score": 0.70},
    {"layers": ["a", "b"], "sparsity": 0.8, "score": 0.90},  # by luck; what is beyond a loss does not count
    {"layers": ["c"], "sparsity": 0.2, "score": 0.50},
    {"layers": ["d"], "sparsity": 0.2, "score": 0.90},
    {"layers": ["d"], "sparsity": 0.4, "score": 0.80},
]


def test_bounds_of_a_search_are_what_each_layer_bears_alone() -> None:
    found = search_bounds(ROWS, "maximize", 0.02, "l2")
    assert found == {
        "stages": [
            {
                "prune": {
                    "algorithm": "l2",
                    "configList": [
                        {"opNames": ["a", "b"], "sparsity": 0.4},
                        {"opNames": ["d"], "sparsity": 0.2},
                    ],
                }
            }
        ],
        "searchSpace": [
            {
                "name": "layer0",
                "paths": ["/stages/0/prune/configList/0/sparsity"],
                "float": {"min": 0.2, "max": 0.4},
            }
        ],
    }
    losses = [{**row, "score": 1 - row["score"]} for row in ROWS]
    assert search_bounds(losses, "minimize", 0.18, "l2") == found
