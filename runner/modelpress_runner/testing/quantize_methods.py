"""The contract of a quantizing method, as tests that any method can run (needs pytest).

    class TestMyMethod(QuantizeMethodContract):
        algorithm = "mine"          # the name of its row, which is registered by then
        settings = {"quantBits": 4}         # further fields of the block

Several methods are tested by one class if it overrides the fixture `name`. What trains does so for a few steps.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from modelpress.api.v1alpha1.algorithms import algorithm
from modelpress_runner.artifact.load import load
from modelpress_runner.edits.quantize import FrozenLayer
from modelpress_runner.edits.quantizers import unpacked
from modelpress_runner.errors import InvalidSpecError
from modelpress_runner.evaluators.torch_evaluator import TorchEvaluator
from modelpress_runner.in_process.compress import CompressionResult, compress


class Residual(nn.Module):
    """A norm, two layers and what goes past them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As nn.Module.forward."""
        out: torch.Tensor = x + self.down(self.up(self.norm(x)).relu())
        return out


def net(seed: int = 0) -> nn.Module:
    """Two blocks between a stem and a head, with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 8), Residual(), Residual(), nn.Linear(8, 3)).eval()


def batches(count: int = 3) -> list[torch.Tensor]:
    """Inputs whose features are correlated and of different sizes, (16, 4) each."""
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(4, 4, generator=generator) * torch.tensor([8.0, 1.0, 0.5, 2.0])
    return [torch.randn(16, 4, generator=generator) @ mix for _ in range(count)]


def evaluator(model: nn.Module) -> TorchEvaluator:
    """Trains towards zero, and scores by it."""

    def training_func(
        model: Any, optimizer: Any, training_step: Any, scheduler: Any, max_steps: Any, max_epochs: Any
    ) -> None:
        for _ in range(max_steps):
            optimizer.zero_grad()
            training_step(batches(1)[0], model).backward()
            optimizer.step()

    return TorchEvaluator(
        training_func,
        lambda params: torch.optim.SGD(params, lr=0.01),
        lambda batch, model: model(batch).square().mean(),
        evaluating_func=lambda model: -float(model(batches(1)[0]).square().mean()),
        dummy_input=batches(1)[0],
    )


class QuantizeMethodContract:
    """Tests that every quantizing method passes. Subclass it under a name that begins with Test."""

    algorithm: ClassVar[str] = ""
    settings: ClassVar[Mapping[str, Any]] = {}

    @pytest.fixture
    def name(self) -> str:
        """The method under test."""
        return self.algorithm

    def quantized(self, name: str, model: nn.Module, *before: Mapping[str, Any], **block: Any) -> CompressionResult:
        """A copy of the model behind one stage of the method, and those before it."""
        length = {"maxSteps": 2} if algorithm("quantize", name).trains else {}
        entries = block.pop("configList", [{"opTypes": ["default"]}])
        stage = {"quantize": {"algorithm": name, "configList": entries, **length, **self.settings, **block}}
        model = copy.deepcopy(model)
        return compress(
            model,
            [*before, stage],
            evaluator(model),
            calibration_data=batches(),
            target={"format": "eager"},
        )

    def test_equal_seeds_give_equal_bits(self, name: str) -> None:
        """Twice from one model."""
        first, second = (self.quantized(name, net()).model.state_dict() for _ in range(2))
        assert first.keys() == second.keys()
        assert all(torch.equal(value, second[key]) for key, value in first.items())

    def test_weights_are_integers_of_their_type(self, name: str) -> None:
        """All of those selected, within the range of the numbers that the report names."""
        result = self.quantized(name, net())
        layers = {entry["name"]: entry for entry in result.metrics["stages"][0]["layers"]}
        assert set(layers) == {"0", "1.up", "1.down", "2.up", "2.down", "3"}
        for key, entry in layers.items():
            layer = result.model.get_submodule(key)
            assert isinstance(layer, FrozenLayer)
            quantizer = layer.weight_quantizer
            assert quantizer is not None
            assert quantizer.dtype == entry["weight"]
            integers = unpacked(layer.weight_integers, quantizer, layer.weight_shape)
            assert quantizer.qmin <= int(integers.min()) <= int(integers.max()) <= quantizer.qmax
            assert entry["bytesAfter"] < entry["bytesBefore"]

    def test_what_is_excluded_stays(self, name: str) -> None:
        """Its class, and what nothing trained also to the bit of what it computes."""
        entries = [{"opTypes": ["default"]}, {"opNames": ["1.up", "3"], "exclude": True}]
        model = net()
        result = self.quantized(name, model, configList=entries)
        for key in ("1.up", "3"):
            assert type(result.model.get_submodule(key)) is nn.Linear
        if not algorithm("quantize", name).trains:
            x = torch.eye(8)
            assert torch.equal(result.model.get_submodule("3")(x), model.get_submodule("3")(x))

    def test_saved_and_loaded(self, name: str, tmp_path: Path) -> None:
        """The dense model with the artifact's weights gives what the result gives."""
        result = self.quantized(name, net())
        x = batches(1)[0]
        loaded = load(result.save(tmp_path / "out"), into=net()).eval()
        assert torch.equal(loaded(x), result.model.eval()(x))

    def test_pruned_weights_stay_zero(self, name: str) -> None:
        """Or the method says that they would not."""
        entries = [{"opNames": ["1.up", "2.down"], "sparsity": 0.5}]
        prune = {"prune": {"algorithm": "level", "shrink": False, "configList": entries}}
        if not algorithm("quantize", name).keeps_zero:
            with pytest.raises(InvalidSpecError, match="would not stay zero"):
                self.quantized(name, net(), prune)
            return
        result = self.quantized(name, net(), prune)
        for key in ("1.up", "2.down"):
            mask = result.masks[key]["weight"]
            assert int((mask == 0).sum()) == mask.numel() // 2
            weight: Any = result.model.get_submodule(key).weight
            assert not weight[mask == 0].any()
