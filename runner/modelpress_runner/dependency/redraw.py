"""Weights and statistics drawn anew, at a scale at which every nonlinearity of a model bites.

A model as it was built hides much: fresh attention is nearly uniform, fresh biases are zero, fresh norms do nothing. A
draw has outputs of linear layers with a standard deviation of about `gain` (found by one pass, layer by layer, as in
Mishkin and Matas 2015, arXiv 1511.06422), norms with weights, biases and statistics of their own, and buffers that are
neither zero nor one.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import nn

_TABLES = (nn.Embedding, nn.EmbeddingBag)


@dataclass(frozen=True)
class Draw:
    """How weights are drawn.

    Attributes:
        seed: of all random numbers.
        gain: standard deviation of what linear layers give.
        buffers: whether buffers other than the statistics of norms change too.
        near: not None: weights are the real ones times a factor from [1 - near, 1 + near]; zeros are drawn.
    """

    seed: int
    gain: float
    buffers: bool = True
    near: float | None = None

    def weight(self, owner: nn.Module, name: str, real: torch.Tensor, wide: torch.dtype) -> torch.Tensor:
        """A draw for the parameter `real` of `owner`, in the precision `wide`; `name` is its full name."""
        uniform = _uniform(real.shape, self._generator(name, real.device), real.device, wide)
        if self.near is not None:
            size = real.detach().abs().mean()  # what is zero may be masked: that says nothing of the structure
            return torch.where(real == 0, uniform * size, (1 + uniform * self.near) * real.detach())
        if real.dim() < 2 or max(real.shape) == real.numel():  # one axis: an offset, or a factor
            factor = "Norm" in type(owner).__name__ or bool((real > 0).all())
            factor = factor and not name.endswith("bias")
            return uniform.mul_(0.5).add_(1.0) if factor else uniform.mul_(math.sqrt(3) / 2)
        if isinstance(owner, _TABLES):
            return uniform.mul_(math.sqrt(3))
        plain = real.dim() == 2 or hasattr(owner, "kernel_size")
        inputs = math.prod(real.shape[1:]) if plain else real.shape[-2]
        return uniform.mul_(self.gain * math.sqrt(3 / inputs))

    def disturbed(self, name: str, value: torch.Tensor, share: float) -> torch.Tensor:
        """The weight, each of its entries changed by up to `share` of itself; zeros stay."""
        factor = _uniform(value.shape, self._generator(name, value.device), value.device, value.dtype)
        return factor.mul_(share).add_(1.0).mul_(value)

    def buffer(self, name: str, real: torch.Tensor) -> torch.Tensor:
        """A draw for a floating buffer, shaped like `real` and in its precision."""
        uniform = _uniform(real.shape, self._generator(name, real.device), real.device, real.dtype)
        if name.endswith("running_mean"):
            return uniform.mul_(math.sqrt(3) / 2)
        if name.endswith("running_var"):
            return uniform.mul_(0.75).add_(1.25)
        if not self.buffers:
            return real.clone()
        changed = real * (1 + uniform / 2)
        # What is infinite, or as good as that, is a mask.
        return torch.where(real == 0, uniform / 2, torch.where(real.abs() < 1e4, changed, real))

    def _generator(self, name: str, device: torch.device) -> torch.Generator:
        seed = int.from_bytes(hashlib.sha256(f"{self.seed}/{name}".encode()).digest()[:7], "big")
        return torch.Generator(device).manual_seed(seed)


def _uniform(shape: torch.Size, generator: torch.Generator, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Uniform in [-1, 1)."""
    return torch.empty(shape, dtype=dtype, device=device).uniform_(-1.0, 1.0, generator=generator)
