"""Learned step size quantization (Esser et al. 2019, arXiv 1902.08153)."""

from __future__ import annotations

import torch

from modelpress_runner.edits.quantizers import Quantizer
from modelpress_runner.methods.quantize.numerics import TINY, rows_of
from modelpress_runner.methods.quantize.protocol import QuantizeMethod


class Lsq(QuantizeMethod):
    """Scales are parameters; zero is the integer 0."""

    name = "lsq"
    learns = True

    def begin(self, quantizer: Quantizer, weight: torch.Tensor, how: str) -> None:
        """As QuantizeMethod.begin."""
        rows = rows_of(weight.detach().float(), quantizer.axis, quantizer.group)
        quantizer.scale.copy_(initial_scale(rows, quantizer.qmax).view(quantizer.scale.shape))
        quantizer.zero_point.zero_()


def initial_scale(rows: torch.Tensor, qmax: int) -> torch.Tensor:
    """2 mean|v| / sqrt(qmax) of each row, (rows,)."""
    mean: torch.Tensor = rows.abs().mean(1)
    scale: torch.Tensor = (2 * mean / float(qmax) ** 0.5).clamp(min=TINY)
    return scale


METHOD = Lsq()
