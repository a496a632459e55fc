"""Scores from what modules take and give in a pass over data."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
from torch import nn

from modelpress_runner.edits.axes import CONV
from modelpress_runner.errors import CompressionError
from modelpress_runner.evaluators.hooks import ForwardHook
from modelpress_runner.methods.prune.channels import weight_of
from modelpress_runner.methods.prune.protocol import DataDrivenMethod
from modelpress_runner.passes.collectors import Collector, Pass


class ActivationMethod(DataDrivenMethod):
    """A method whose scores come from the mean, over everything that a module took or gave, of some numbers."""

    def seen(self, module: nn.Module, taken: torch.Tensor, given: torch.Tensor) -> tuple[torch.Tensor, int]:
        """The numbers of one call, summed, and over how many positions.

        Args:
            module: as it was called.
            taken: its first argument.
            given: its output.
        """
        raise NotImplementedError

    def room(self, module: nn.Module) -> torch.Size:
        """The shape of those numbers."""
        raise NotImplementedError

    def scored(self, mean: torch.Tensor, module: nn.Module) -> torch.Tensor:
        """The scores, from their means, float64."""
        return mean

    def collector(self, name: str, module: nn.Module, data: Pass) -> ActivationCollector:
        """As DataDrivenMethod.collector."""
        return ActivationCollector(self, name, module, data)


class ActivationCollector(Collector):
    """Sums the method's numbers of one module in float64, over all ranks."""

    states: ClassVar = {"_total": "sum", "_count": "sum"}

    def __init__(self, method: ActivationMethod, name: str, module: nn.Module, data: Pass) -> None:
        self._method, self._name, self._module, self._data = method, name, module, data
        self._total = torch.zeros(method.room(module), dtype=torch.float64)
        self._count = torch.zeros((), dtype=torch.float64)
        self._hook = ForwardHook(self._look)

    def attach(self) -> None:
        """As Collector.attach."""
        self._data.register_forward_hook(self._name, self._hook)

    def update(self) -> None:
        """As Collector.update."""
        for total, count in self._hook.buffer:
            self._total = self._total.to(total.device)
            self._total += total
            self._count += count
        self._hook.buffer.clear()

    def compute(self) -> torch.Tensor:
        """As Collector.compute."""
        if not self._count:
            raise CompressionError(
                f"'{self._name}' was not called in the pass over data, so it has no score; let the data reach it, or "
                "exclude the module"
            )
        scores = self._method.scored(self._total / self._count.to(self._total.device), self._module)
        if not bool(torch.isfinite(scores).all()):
            raise CompressionError(
                f"what '{self._name}' takes or gives is NaN or infinite in the pass over data, so it has no score; "
                "check the data, or exclude the module"
            )
        return scores.to(weight_of(self._module).device)

    def _look(self, buffer: list[Any], module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        with torch.no_grad():
            total, count = self._method.seen(module, args[0].detach(), output.detach())
            buffer.append((total.double() if total.device.type != "mps" else total.cpu().double(), count))


class OutputMethod(ActivationMethod):
    """A method that looks at what output channels give, where the module is: behind a norm, if a norm is selected."""

    extra_op_types: ClassVar[tuple[str, ...]] = ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d")
    takes_followers: ClassVar[bool] = True

    def of_outputs(self, rectified: torch.Tensor) -> torch.Tensor:
        """The numbers of outputs behind a ReLU, elementwise."""
        raise NotImplementedError

    def room(self, module: nn.Module) -> torch.Size:
        """As ActivationMethod.room: one for each channel."""
        sizes = cast(Any, module)
        if isinstance(module, CONV):
            return torch.Size([sizes.out_channels])
        return torch.Size([sizes.out_features if isinstance(module, nn.Linear) else sizes.num_features])

    def seen(self, module: nn.Module, taken: torch.Tensor, given: torch.Tensor) -> tuple[torch.Tensor, int]:
        """As ActivationMethod.seen."""
        if isinstance(module, CONV):
            axis = given.dim() - weight_of(module).dim() + 1
        else:
            axis = -1 if isinstance(module, nn.Linear) else 1
        by_channel = self.of_outputs(given.relu()).movedim(axis, 0).flatten(1)
        return by_channel.sum(dim=1, dtype=None if given.device.type == "mps" else torch.float64), by_channel.shape[1]
