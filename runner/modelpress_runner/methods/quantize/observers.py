"""What finds the ranges of activations in a pass over data, and those of weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from modelpress.api.v1alpha1 import Calibration
from modelpress_runner.edits.quantizers import AffineQuantizer, Quantizer
from modelpress_runner.errors import CompressionError
from modelpress_runner.evaluators.hooks import ForwardHook
from modelpress_runner.methods.quantize import numerics
from modelpress_runner.passes.collectors import Collector, Pass

Ranges = dict[tuple[str, str], tuple[float, float]]  # (module, input or output) -> least and greatest
_DECAY = 0.9  # of ema over batches of a calibration, which are few


def observe_weight(weight: torch.Tensor, quantizer: Quantizer, how: str) -> None:
    """Sets scale and zero point of an affine quantizer by the weight that it stands before.

    Args:
        how: minMax or mse.
    """
    if not isinstance(quantizer, AffineQuantizer):
        return
    numbers = quantizer.spec.numbers
    rows = numerics.rows_of(weight.detach().float(), quantizer.axis, quantizer.group)
    low, high = rows.amin(1), rows.amax(1)
    if how == "mse":
        low, high = numerics.least_error(rows, quantizer.qmin, quantizer.qmax, numbers.scheme)
    set_range(quantizer, low.view(quantizer.scale.shape), high.view(quantizer.scale.shape))


def set_range(quantizer: Quantizer, low: torch.Tensor, high: torch.Tensor) -> None:
    """Sets scale and zero point by a range."""
    scale, zero = numerics.scale_and_zero(low, high, quantizer.qmin, quantizer.qmax, quantizer.spec.numbers.scheme)
    quantizer.scale.copy_(scale)
    quantizer.zero_point.copy_(zero)


class RangeCollector(Collector):
    """The least and the greatest value of an input or output; with `average` the moving average of each batch's."""

    states: ClassVar = {"_low": "max", "_high": "max", "_low_mean": "mean", "_high_mean": "mean", "_seen": "max"}

    def __init__(self, module: str, target: str, data: Pass, average: bool) -> None:
        self._module, self._target, self._data, self._average = module, target, data, average
        self._low = torch.tensor(-torch.inf)  # negated, so that the maximum counts
        self._high = torch.tensor(-torch.inf)
        self._low_mean = self._high_mean = torch.zeros(())
        self._seen = torch.zeros(())
        self._hook = ForwardHook(self._look)

    def attach(self) -> None:
        """As Collector.attach."""
        self._data.register_forward_hook(self._module, self._hook)

    def update(self) -> None:
        """As Collector.update."""
        found = self._hook.buffer
        if not found:
            return
        low, high = min(each[0] for each in found), max(each[1] for each in found)
        before = (self._low_mean, self._high_mean) if self._seen else (None, None)
        self._low_mean = numerics.ema(before[0], torch.tensor(low), _DECAY)
        self._high_mean = numerics.ema(before[1], torch.tensor(high), _DECAY)
        self._low, self._high = (
            torch.maximum(self._low, torch.tensor(-low)),
            torch.maximum(self._high, torch.tensor(high)),
        )
        self._seen = torch.ones(())
        found.clear()

    def compute(self) -> torch.Tensor:
        """The range, (2,)."""
        if not self._seen:
            raise CompressionError(
                f"'{self._module}' was not called in the pass over data, so its range is not known; let the data reach "
                "it, or exclude the module"
            )
        ends = (self._low_mean, self._high_mean) if self._average else (-self._low, self._high)
        found = torch.stack([end.double() for end in ends])
        if not bool(torch.isfinite(found).all()):
            raise CompressionError(
                f"the {self._target} of '{self._module}' is NaN or infinite in the pass over data; check the data, or "
                "exclude the module"
            )
        return found

    def _look(self, buffer: list[Any], module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        value = _seen(self._target, args, output)
        if value.numel():
            low, high = torch.aminmax(value.detach())
            buffer.append((float(low), float(high)))


class HistogramCollector(Collector):
    """How often values lie where, between ends that are known from a pass before."""

    states: ClassVar = {"_counts": "sum"}

    def __init__(self, module: str, target: str, data: Pass, low: float, high: float) -> None:
        self._module, self._target, self._data = module, target, data
        self._low, self._high = low, high
        self._counts = torch.zeros(numerics.BINS, dtype=torch.float64)
        self._hook = ForwardHook(self._look)

    def attach(self) -> None:
        """As Collector.attach."""
        self._data.register_forward_hook(self._module, self._hook)

    def update(self) -> None:
        """As Collector.update."""
        for counts in self._hook.buffer:
            self._counts += counts
        self._hook.buffer.clear()

    def compute(self) -> torch.Tensor:
        """The counts, (BINS,)."""
        return self._counts

    def _look(self, buffer: list[Any], module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        value = _seen(self._target, args, output).detach().float().cpu()
        if value.numel() and self._high > self._low:
            buffer.append(torch.histc(value, numerics.BINS, self._low, self._high).double())


def chosen_range(
    counts: torch.Tensor, ends: tuple[float, float], calibration: Calibration, quantizer: Quantizer
) -> tuple[float, float]:
    """The range that an observer of histograms takes."""
    low, high = ends
    if not high > low or not float(counts.sum()):
        return ends
    numbers = quantizer.spec.numbers
    symmetric = numbers.scheme == "symmetric"
    if calibration.observer == "percentile":
        return numerics.percentile_range(counts, low, high, calibration.percentile)
    if calibration.observer == "kl":
        one_sided = not symmetric and (low >= 0 or high <= 0)
        return numerics.entropy_range(counts, low, high, 2**numbers.bits if one_sided else 2 ** (numbers.bits - 1))
    return numerics.error_range(counts, low, high, quantizer.qmin, quantizer.qmax, numbers.scheme)


def ranges_of(collectors: Mapping[tuple[str, str], Collector]) -> Ranges:
    """What collectors of ranges found."""
    found = {key: each.compute() for key, each in collectors.items()}
    return {key: (float(value[0]), float(value[1])) for key, value in found.items()}


def _seen(target: str, args: tuple[Any, ...], output: Any) -> torch.Tensor:
    value = args[0] if target == "input" else output
    assert isinstance(value, torch.Tensor)
    return value
