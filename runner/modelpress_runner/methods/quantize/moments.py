"""What layers take in a pass over data: second moments, and how large each input is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from modelpress_runner.errors import CompressionError
from modelpress_runner.evaluators.hooks import ForwardHook
from modelpress_runner.methods.quantize.products import matrix, rows
from modelpress_runner.passes.collectors import Collector, Pass
from modelpress_runner.runtime import distributed as ranks

_WIDE = 2048


class Taken(Collector):
    """Moments of the inputs of a layer (`products.is_product`), in float64; products of more than 2048 inputs, which
    are large, in float32.

    Attributes:
        products: (inputs, inputs), the sum of the rows' outer products; (0, 0) if they are not wanted.
        sizes: (inputs,), the sum of absolute values.
        most: (inputs,), the greatest absolute value.
        count: of rows.
    """

    states: ClassVar[Mapping[str, ranks.Reduction]] = {
        "products": "sum",
        "sizes": "sum",
        "most": "max",
        "count": "sum",
    }

    def __init__(self, name: str, module: nn.Module, data: Pass, second: bool = True) -> None:
        self.name, self._data, self._second = name, data, second
        width = matrix(module, module.weight).shape[1]  # type: ignore[arg-type]
        size = width if second else 0
        self.products = torch.zeros(size, size, dtype=torch.float64 if size <= _WIDE else torch.float32)
        self.sizes = torch.zeros(width, dtype=torch.float64)
        self.most = torch.zeros(width, dtype=torch.float64)
        self.count = torch.zeros((), dtype=torch.float64)

    @staticmethod
    def bytes(module: nn.Module) -> int:
        """What the second moments of a layer take."""
        return 8 * int(matrix(module, module.weight).shape[1]) ** 2  # type: ignore[arg-type]

    def attach(self) -> None:
        """As Collector.attach."""
        self._data.register_forward_hook(self.name, ForwardHook(self._see))

    def update(self) -> None:
        """Everything is gathered as the layer is called."""

    def compute(self) -> torch.Tensor:
        """The mean absolute value of each input, (inputs,)."""
        mean = self.sizes / self.count.clamp(min=1)
        if not bool(torch.isfinite(mean).all()):
            raise CompressionError(
                f"the input of '{self.name}' is NaN or infinite in the pass over data; check the data, or exclude the "
                "module"
            )
        return mean

    @property
    def seen(self) -> bool:
        """Whether the layer was called."""
        return bool(self.count > 0)

    def _see(self, buffer: list[Any], module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not args or not isinstance(args[0], torch.Tensor):
            return
        for few in rows(module, args[0].detach()):
            if self.sizes.device != few.device:  # the pass runs where training does
                for name in self.states:
                    setattr(self, name, getattr(self, name).to(few.device))
            size = few.abs()
            self.sizes += size.sum(0)
            if len(few):
                self.most = torch.maximum(self.most, size.amax(0))
            self.count += len(few)
            if self._second:
                few = few.to(self.products.dtype)
                self.products.addmm_(few.T, few)
