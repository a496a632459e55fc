"""Output channels by how much the loss would change without them, to first order (Molchanov et al. 2019,
arXiv 1906.10771, "Taylor FO").

The paper gives two ways to score the set S of a channel's weights w with gradients g: the square of their joint
contribution, (sum over S of g w)^2, and the sum of what each contributes alone, the sum over S of (g w)^2. This is the
second: contributions of opposite sign within a channel do not cancel. Both are averaged over mini-batches; the sum over
steps ranks alike.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from modelpress_runner.edits.axes import module_axis
from modelpress_runner.errors import CompressionError, InvalidModelError
from modelpress_runner.methods.prune.channels import OTHER_TYPES, in_blocks, weight_of
from modelpress_runner.methods.prune.protocol import DataDrivenMethod
from modelpress_runner.passes.collectors import Collector, Pass


class Taylor(DataDrivenMethod):
    """Score of a channel: the sum over steps and over its weights of (w dL/dw)^2. No bias.

    Scores of different layers are parts of one loss and are compared as they are.
    """

    name = "taylor"
    extra_op_types = OTHER_TYPES
    globally_comparable = True

    def collector(self, name: str, module: nn.Module, data: Pass) -> TaylorCollector:
        """As DataDrivenMethod.collector."""
        return TaylorCollector(name, module, data)


class TaylorCollector(Collector):
    """Sums (w g)^2 of each channel in float64; over ranks it is the mean."""

    states: ClassVar = {"_sum": "mean", "_bad": "max", "_seen": "max"}

    def __init__(self, name: str, module: nn.Module, data: Pass) -> None:
        self._name, self._module, self._data = name, module, data
        self._axis = module_axis(module, name, "out")
        self._sum = torch.zeros(self._axis.size, dtype=torch.float64)
        self._seen = torch.zeros((), dtype=torch.long)  # whether there was a gradient
        self._bad = torch.zeros((), dtype=torch.long)  # the first step with a gradient that is not finite; 0: none
        self._steps = 0
        if not weight_of(module).requires_grad:
            raise InvalidModelError(
                f"taylor scores by gradients, and the weight of '{name}' has none (requires_grad is False); let it be "
                "trained, or exclude the module"
            )

    @torch.no_grad()
    def update(self) -> None:
        """As Collector.update."""
        self._steps += 1
        weight = weight_of(self._module)
        gradient = self._data.gradient(weight)
        if gradient is None:
            return
        rows = [self._axis.rows(self._axis.main, tensor.detach()) for tensor in (weight, gradient)]
        scores = in_blocks(lambda some, gradients: (some * gradients).square_().sum(dim=1), *rows)
        if self._sum.device != scores.device or not self._seen:
            self._sum, self._bad = self._sum.to(scores), self._bad.to(scores.device)
            self._seen = torch.ones_like(self._seen)
        self._sum += scores
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
        return self._sum


METHOD = Taylor()
