"""Half-quadratic quantization (Badri and Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models"):
scales and zero points by which the p-norm of errors, p < 1, is smallest, so that outliers may be far off.

The authors' zero points are floats and their scales stay; here zero points are integers, as runtimes have them, and
scales are fitted as well, beginning with the share of the range whose p-norm is smallest. What has the smallest p-norm
on the way is taken.
"""

from __future__ import annotations

import torch

from modelpress_runner.edits.quantizers import Quantizer
from modelpress_runner.methods.quantize import numerics
from modelpress_runner.methods.quantize.protocol import QuantizeMethod

_NORM = 0.7
_BETA, _KAPPA = 10.0, 1.01
_ROUNDS = 20
_SHARES = 20  # of the range, that are tried to begin with


class Hqq(QuantizeMethod):
    """Weights alone, without data."""

    name = "hqq"

    def begin(self, quantizer: Quantizer, weight: torch.Tensor, how: str) -> None:
        """As QuantizeMethod.begin."""
        rows = numerics.rows_of(weight.detach().float(), quantizer.axis, quantizer.group)
        scale, zero = solve(rows, quantizer.qmin, quantizer.qmax, quantizer.spec.numbers.scheme)
        quantizer.scale.copy_(scale.view(quantizer.scale.shape))
        quantizer.zero_point.copy_(zero.view(quantizer.zero_point.shape))


def solve(rows: torch.Tensor, qmin: int, qmax: int, scheme: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales, float32, and zero points, int32, of rows: (rows,) each.

    Args:
        rows: (rows, values), float32.
    """
    low, high = rows.amin(1), rows.amax(1)
    scale, zero = numerics.scale_and_zero(low, high, qmin, qmax, scheme)
    best = _cost(rows, scale, zero, qmin, qmax)
    for number in range(_SHARES - 1, _SHARES // 4, -1):
        share = number / _SHARES
        own = numerics.scale_and_zero(low * share, high * share, qmin, qmax, scheme)
        cost = _cost(rows, *own, qmin, qmax)
        better = cost < best
        best = torch.where(better, cost, best)
        scale, zero = torch.where(better, own[0], scale), torch.where(better, own[1], zero)
    found = scale.clone(), zero.clone()
    beta, largest = _BETA, rows.abs().amax(1, keepdim=True).clamp(min=numerics.TINY)
    for _ in range(_ROUNDS):
        integers = ((rows / scale[:, None]).round() + zero[:, None]).clamp(qmin, qmax)
        error = (rows - (integers - zero[:, None]) * scale[:, None]) / largest
        wanted = rows - _shrunk(error, beta) * largest
        if scheme == "affine":
            zero = (integers - wanted / scale[:, None]).mean(1).round().clamp(qmin, qmax).to(torch.int32)
        steps = integers - zero[:, None]
        squares = steps.square().sum(1)
        fitted = (steps * wanted).sum(1) / squares.clamp(min=1)
        scale = torch.where((squares > 0) & (fitted > numerics.TINY), fitted, scale)
        cost = _cost(rows, scale, zero, qmin, qmax)
        better = cost < best
        best = torch.where(better, cost, best)
        found = torch.where(better, scale, found[0]), torch.where(better, zero, found[1])
        beta *= _KAPPA
    return found


def _shrunk(error: torch.Tensor, beta: float) -> torch.Tensor:
    """The generalized soft threshold: sign(e) max(0, |e| - |e|^(p - 1) / beta)."""
    size = error.abs()
    return error.sign() * (size - size.clamp(min=1e-8) ** (_NORM - 1) / beta).clamp(min=0)


def _cost(rows: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, qmin: int, qmax: int) -> torch.Tensor:
    integers = torch.round(rows * (1.0 / scale[:, None]) + zero[:, None]).clamp(qmin, qmax)
    return (rows - (integers - zero[:, None]) * scale[:, None]).abs().pow(_NORM).sum(1)


METHOD = Hqq()
