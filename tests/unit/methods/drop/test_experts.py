"""dropExperts: whose experts go, that router, counts and configuration follow, and what is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_models import decoder, subject
from torch import nn

import modelpress as mp
from modelpress.api.v1alpha1 import Stage
from modelpress_runner.edits.replay import read, replay, write
from modelpress_runner.engine.run import run_stages
from modelpress_runner.errors import CompressionError, InvalidSpecError


class Experts(nn.Module):
    """Linear maps, one for each expert."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.num_experts = count
        self.maps = nn.Parameter(torch.randn(count, 3, 3))

    def forward(self, x: torch.Tensor, chosen: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        every = torch.einsum("...i,eoi->...eo", x, self.maps)
        return (every.gather(-2, chosen[..., None].expand(*chosen.shape, 3)) * shares[..., None]).sum(dim=-2)


class Mixture(nn.Module):
    """Each token goes to two experts; shares that are not `renormed` depend on how many there are."""

    def __init__(self, count: int, renormed: bool = True) -> None:
        super().__init__()
        self.router, self.experts, self.top_k, self.renormed = nn.Linear(3, count), Experts(count), 2, renormed

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        best = self.router(x).softmax(dim=-1).topk(self.top_k, dim=-1)
        shares = best.values / (best.values.sum(dim=-1, keepdim=True) if self.renormed else len(self.experts.maps))
        return x + self.experts(x, best.indices, shares)


X = torch.randn((2, 5, 3), generator=torch.Generator().manual_seed(0))


def model(*layers: Mixture) -> nn.Module:
    """The bias of each router favours expert 0 most, the last one least."""
    with torch.no_grad():
        for layer in layers:
            layer.router.weight.mul_(0.01)
            layer.router.bias.copy_(-torch.arange(float(layer.experts.num_experts)))
    return nn.Sequential(*layers, nn.Linear(3, 2)).eval()


def compress(net: nn.Module, block: dict[str, Any]) -> mp.CompressionResult:
    return mp.compress(net, [{"dropExperts": block}], None, X, calibration_data=[X])


def test_experts_that_are_given_least_go() -> None:
    """Of four the two that no token goes to: nothing changes but sizes and counts."""
    net = model(Mixture(4), Mixture(4))
    result = compress(net, {"count": 2})
    for layer in result.model[:2]:
        assert layer.experts.maps.shape == (2, 3, 3)
        assert layer.router.weight.shape == (2, 3)
        assert layer.experts.num_experts == 2
    torch.testing.assert_close(result.model(X), net(X))
    assert result.metrics["stages"][0]["dropped"] == ["0: 2, 3", "1: 2, 3"]


def test_shares_that_depend_on_the_others_are_refused() -> None:
    """The proof finds it."""
    with pytest.raises(CompressionError, match="the others' shares depend on how many there are"):
        compress(model(Mixture(4, renormed=False)), {"count": 1})


@pytest.mark.parametrize(
    ("layers", "block", "message"),
    [
        ((4,), {"count": 3}, "of 4 of them 3 cannot go; give at most 2"),
        ((4, 6), {"count": 1}, "different numbers of experts"),
        ((), {"count": 1}, "there are none: dropExperts takes modules that hold a router"),
    ],
)
def test_what_cannot_go_is_said(layers: tuple[int, ...], block: dict[str, Any], message: str) -> None:
    """As many as a token is sent to stay."""
    with pytest.raises(InvalidSpecError, match=message):
        compress(model(*map(Mixture, layers)), block)


def test_mixtral(tmp_path: Path) -> None:
    """Half of eight experts: num_local_experts follows, and plain transformers reads the very model."""
    task = subject(decoder(tmp_path / "dense", "Mixtral", num_hidden_layers=2, num_local_experts=8), "causal-lm")
    task.calibration_data = [task.dummy_input]
    dense = copy.deepcopy(task.model)
    outcome = run_stages(task, [Stage.model_validate({"dropExperts": {"sparsity": 0.5}})], seed=0)
    small = outcome.model.eval()
    assert small.num_experts == 4
    again = copy.deepcopy(dense)
    replay(again, read(write(outcome.edits)))
    assert {name: value.shape for name, value in again.state_dict().items()} == {
        name: value.shape for name, value in small.state_dict().items()
    }
    task.layout.write(small, task.dummy_input, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_local_experts"] == 4
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        ours, theirs = small(**task.dummy_input).logits, loaded(**task.dummy_input).logits
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-7)


class Gate(nn.Module):
    """A router with its weight as its own."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.n_routed_experts = count
        self.weight = nn.Parameter(torch.zeros(count, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ self.weight.T).softmax(dim=-1)


class Listed(nn.Module):
    """Experts in a list, each of two layers, as they are called one by one."""

    def __init__(self, count: int, own: bool) -> None:
        super().__init__()
        self.num_experts, self.top_k = count, 2
        self.gate: nn.Module = Gate(count) if own else nn.Linear(3, count, bias=False)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3)) for _ in range(count))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        best = self.gate(x).softmax(dim=-1).topk(self.top_k, dim=-1)
        out = torch.zeros_like(x)
        for number in range(self.num_experts):
            share = (best.values * (best.indices == number)).sum(dim=-1, keepdim=True)
            out = out + share / best.values.sum(dim=-1, keepdim=True) * self.experts[number](x)
        return x + out


def listed(own: bool) -> nn.Module:
    """Tokens whose first number is positive favour experts 1 and 3 of 4."""
    torch.manual_seed(0)
    layer = Listed(4, own)
    weight = layer.gate.get_parameter("weight")
    with torch.no_grad():
        weight.mul_(0.01)
        weight[:, 0] += torch.tensor([0.0, 3.0, -1.0, 2.0])
    return nn.Sequential(layer, nn.Linear(3, 2)).eval()


@pytest.mark.parametrize("own", [False, True])
def test_experts_in_a_list(own: bool) -> None:
    """Experts 1 and 3 stay, become 0 and 1, and train on with masks and a recorded optimizer of their own; the edits
    make the same structure of the dense model, and the optimizer of the other experts goes with them."""
    net, tokens = listed(own), X.abs()
    dense = copy.deepcopy(net)
    named = list(net.named_parameters())
    groups = [
        {"params": [value for name, value in named if "experts.3." in name], "lr": 0.0},
        {"params": [value for name, value in named if "experts.3." not in name], "lr": 0.1},
    ]
    optimizer = mp.trace(torch.optim.SGD)(groups, lr=0.1)

    def train(model: nn.Module, optimizer: Any, step: Any, *_: Any) -> None:
        optimizer.zero_grad()
        step(tokens, model).backward()
        optimizer.step()

    evaluator = mp.TorchEvaluator(
        train, optimizer, lambda batch, model: model(batch).square().mean(), dummy_input=tokens
    )
    level = {"algorithm": "level", "shrink": False, "configList": [{"opNames": ["0.experts.3.0"], "sparsity": 0.5}]}
    stages = [{"prune": level}, {"dropExperts": {"count": 2}}]
    result = mp.compress(net, stages, evaluator, tokens, calibration_data=[tokens])
    small = result.model
    assert result.metrics["stages"][1]["dropped"] == ["0: 0, 2"]
    assert (len(small[0].experts), small[0].num_experts, len(small[0].gate.weight)) == (2, 2, 2)
    weight = small[0].experts[1][0].weight
    kept = weight != 0
    assert kept.sum() == 6
    assert torch.equal(weight[kept], dense[0].experts[3][0].weight[kept])
    assert torch.equal(small[0].experts[0][1].weight, dense[0].experts[1][1].weight)
    again = copy.deepcopy(dense)
    replay(again, read(write(result.edits)))
    assert {name: value.shape for name, value in again.state_dict().items()} == {
        name: value.shape for name, value in small.state_dict().items()
    }
    trained = mp.compress(net, [*stages, {"finetune": {"epochs": 1}}], evaluator, tokens, calibration_data=[tokens])
    after = trained.model[0].experts
    assert torch.equal(after[1][0].weight, weight)  # a rate of zero, as expert 3 has
    assert not torch.equal(after[0][0].weight, small[0].experts[0][0].weight)


def test_a_list_beside_a_layer_of_as_many_outputs_is_no_mixture() -> None:
    """Unless it is said to hold experts."""

    class Ten(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(4))
            self.head = nn.Linear(3, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = layer(x)
            return self.head(x)

    with pytest.raises(InvalidSpecError, match="there are none: dropExperts takes modules that hold a router"):
        compress(Ten().eval(), {"count": 1})
