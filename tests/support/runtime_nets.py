"""Small nets for files of runtimes: one with a call of many kinds, one with fake quantization."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

WORDS, WIDTH = 40, 32


class ManyKinds(nn.Module):
    """Nested inputs and outputs, a None and a number among them; 'weights' of a file called after an output."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.second = nn.Linear(3, 8)

    def forward(self, x: torch.Tensor, pair: Any, *, mask: torch.Tensor | None = None) -> dict[str, Any]:
        y = self.first(x) + self.second(pair["a"]) * pair["b"][0]
        y = y if mask is None else y * mask
        return {"y": y, "parts": (y.sum(1), [y.relu(), x]), "nothing": None, "scale": 2}


def many_inputs(rows: int = 2) -> dict[str, Any]:
    torch.manual_seed(0)
    pair = {"a": torch.randn(rows, 3), "b": [torch.randn(rows, 8)]}
    return {"x": torch.randn(rows, 6), "pair": pair, "mask": torch.ones(rows, 8)}


def fake_weight(weight: torch.Tensor, high: int, axis: int = 0) -> torch.Tensor:
    """Symmetric by channel to [-high, high], as torch computes it; the scale is a constant."""
    others = [dim for dim in range(weight.ndim) if dim != axis]
    scale = weight.detach().abs().amax(others) / high
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, axis, -high, high)


class Scaled(nn.Module):
    """A layer whose weight and input are fake-quantized."""

    def __init__(self, layer: nn.Module, scale: float, zero: int, limits: tuple[int, int], high: int = 127) -> None:
        super().__init__()
        self.layer, self.scale, self.zero, self.limits, self.high = layer, scale, zero, limits, high
        weight = layer.weight.detach()
        self.register_buffer("weight_scale", weight.flatten(1).abs().amax(1) / high)
        self.register_buffer("weight_zero", torch.zeros(len(weight), dtype=torch.int32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = torch.fake_quantize_per_channel_affine(
            self.layer.weight, self.weight_scale, self.weight_zero, 0, -self.high, self.high
        )
        if isinstance(self.layer, nn.Embedding):
            return nn.functional.embedding(x, weight)
        x = torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero, *self.limits)
        if isinstance(self.layer, nn.Conv1d):
            return nn.functional.conv1d(x, weight, self.layer.bias, padding=self.layer.padding)
        return nn.functional.linear(x, weight, self.layer.bias)


class Quantized(nn.Module):
    """An embedding, two convolutions with a ReLU between, and two linear layers, all in eight bits.

    Args:
        high: greatest level of the weights of the linear layers: 127, or 7 for four bits.
    """

    def __init__(self, high: int = 127) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = Scaled(nn.Embedding(WORDS, WIDTH), 1.0, 0, (0, 255))
        self.first = Scaled(nn.Conv1d(WIDTH, WIDTH, 3, padding=1), 0.03, 128, (0, 255))
        self.second = Scaled(nn.Conv1d(WIDTH, WIDTH, 3, padding=1), 0.01, 0, (0, 255))
        self.wide = Scaled(nn.Linear(WIDTH, 4 * WIDTH), 0.01, 0, (-128, 127), high)
        self.narrow = Scaled(nn.Linear(4 * WIDTH, WIDTH), 0.02, 3, (-100, 100), high)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids).transpose(1, 2)
        x = self.first(x).relu()
        x = torch.fake_quantize_per_tensor_affine(self.second(x), 0.01, 100, 0, 255)
        return self.narrow(self.wide(x.transpose(1, 2)).relu()).mean(1)


def word_ids(rows: int = 2, length: int = 8) -> torch.Tensor:
    return torch.randint(0, WORDS, (rows, length), generator=torch.Generator().manual_seed(1))
