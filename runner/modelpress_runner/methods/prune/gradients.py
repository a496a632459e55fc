"""Scores from gradients: sums over training steps of a term of weight and gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import nn

from modelpress_runner.edits.axes import module_axis
from modelpress_runner.errors import CompressionError, InvalidModelError
from modelpress_runner.methods.prune.channels import in_blocks, weight_of
from modelpress_runner.methods.prune.protocol import DataDrivenMethod
from modelpress_runner.passes.collectors import Collector, Pass

# Of weights and gradients, which are alike in shape: (n, m) -> (n,) for channels, in float64; elementwise for weights.
Term = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class GradientMethod(DataDrivenMethod):
    """A method whose scores are a sum over training steps, S <- decay S + term(w, dL/dw), and what comes of it.

    Without momentum (decay 1) the order of the steps decides nothing. Over ranks S is the mean: there every gradient is
    one of the mean loss.
    """

    decay: ClassVar[float] = 1.0

    def term(self, weights: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
        """What one step adds: if structured, (n,) for channels that are the rows of `weights`, float64, (n, m); else
        float32, in the shape of the weight."""
        raise NotImplementedError

    def scored(self, total: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """The scores, from the sum over the steps; `weight` is the parameter as it is then."""
        return total

    def collector(self, name: str, module: nn.Module, data: Pass) -> GradientCollector:
        """As DataDrivenMethod.collector."""
        return GradientCollector(self, name, module, data)


class GradientCollector(Collector):
    """Sums the method's term of one module: of channels in float64, of single weights in float32."""

    states: ClassVar = {"_sum": "mean", "_bad": "max", "_seen": "max"}

    def __init__(self, method: GradientMethod, name: str, module: nn.Module, data: Pass) -> None:
        self._method, self._name, self._module, self._data = method, name, module, data
        weight = weight_of(module)
        if not weight.requires_grad:
            raise InvalidModelError(
                f"{method.name} scores by gradients, and the weight of '{name}' has none (requires_grad is False); let "
                "it be trained, or exclude the module"
            )
        self._axis = module_axis(module, name, "out") if method.structured else None
        if self._axis is not None:
            self._sum = torch.zeros(self._axis.size, dtype=torch.float64)
        else:
            self._sum = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        self._seen = torch.zeros((), dtype=torch.long)  # whether there was a gradient
        self._bad = torch.zeros((), dtype=torch.long)  # the first step with a gradient that is not finite; 0: none
        self._steps = 0

    @torch.no_grad()
    def update(self) -> None:
        """As Collector.update."""
        self._steps += 1
        weight = weight_of(self._module)
        gradient = self._data.gradient(weight)
        if gradient is None:
            return
        if self._axis is not None:
            rows = [self._axis.rows("weight", tensor.detach()) for tensor in (weight, gradient)]
            scores = in_blocks(self._method.term, *rows)
        else:
            scores = self._method.term(weight.detach().float(), gradient.detach().float())
        if self._sum.device != scores.device or not self._seen:
            self._sum, self._bad = self._sum.to(scores), self._bad.to(scores.device)
            self._seen = torch.ones_like(self._seen)
        self._sum.mul_(self._method.decay).add_(scores)
        # Asked for in the end only: to look at a number of a device is to wait for it.
        self._bad = torch.where((self._bad == 0) & ~torch.isfinite(scores).all(), self._steps, self._bad)

    def compute(self) -> torch.Tensor:
        """As Collector.compute."""
        if step := int(self._bad):
            raise CompressionError(
                f"the gradient of '{self._name}' is NaN or infinite in training step {step}, so it has no score; lower "
                "the loss scale, or train in another precision"
            )
        if not self._seen:
            raise CompressionError(
                f"no gradient reached '{self._name}' in {self._steps} training steps, so it has no score; let the loss "
                "depend on it, or exclude the module"
            )
        return self._method.scored(self._sum, weight_of(self._module).detach())
