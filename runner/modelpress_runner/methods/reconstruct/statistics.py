"""Moments of what layers take, over calibration data."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from modelpress_runner.evaluators.hooks import ForwardHook
from modelpress_runner.methods.reconstruct.inputs import input_rows, weight_matrix
from modelpress_runner.passes.collectors import Collector, Pass
from modelpress_runner.runtime import distributed as ranks


class InputMoments(Collector):
    """First and, if wanted, second moments of the inputs of a layer (`inputs.is_matrix_product`), in float64.

    Attributes:
        total: (inputs,), the sum of all rows.
        products: (inputs, inputs), the sum of the rows' outer products; (0, 0) if they are not wanted.
        count: of rows.
    """

    states: ClassVar[dict[str, ranks.Reduction]] = {"total": "sum", "products": "sum", "count": "sum"}

    def __init__(self, name: str, module: nn.Module, data: Pass, second: bool) -> None:
        self._name, self._data, self._second = name, data, second
        width = weight_matrix(module.weight).shape[1]  # type: ignore[arg-type]
        size = width if second else 0
        self.total = torch.zeros(width, dtype=torch.float64)
        self.products = torch.zeros(size, size, dtype=torch.float64)
        self.count = torch.zeros((), dtype=torch.float64)

    @staticmethod
    def bytes(module: nn.Module) -> int:
        """What the second moments of a layer take."""
        return 8 * weight_matrix(module.weight).shape[1] ** 2  # type: ignore[arg-type]

    def attach(self) -> None:
        """As Collector.attach."""
        self._data.register_forward_hook(self._name, ForwardHook(self._see))

    def update(self) -> None:
        """Everything is gathered as the layer is called."""

    def compute(self) -> torch.Tensor:
        """The mean row, (inputs,); zeros where the layer was never called."""
        return self.total / self.count.clamp(min=1)

    @property
    def seen(self) -> bool:
        """Whether the layer was called."""
        return bool(self.count > 0)

    def covariance(self, centred: bool) -> torch.Tensor:
        """Second moments (inputs, inputs): about the mean, or about zero."""
        moments = self.products / self.count.clamp(min=1)
        if centred:
            mean = self.compute()
            moments -= torch.outer(mean, mean)
        return moments

    def _see(self, buffer: list[Any], module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not args or not isinstance(args[0], torch.Tensor):
            return
        for rows in input_rows(module, args[0].detach()):
            if self.total.device != rows.device:  # the pass runs where training does
                self.total, self.products, self.count = (
                    each.to(rows.device) for each in (self.total, self.products, self.count)
                )
            self.total += rows.sum(dim=0)
            self.count += len(rows)
            if self._second:
                self.products.addmm_(rows.T, rows)
