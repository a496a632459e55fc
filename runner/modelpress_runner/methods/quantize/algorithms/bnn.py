"""Binarized networks (Courbariaux et al. 2016, arXiv 1602.02830)."""

from __future__ import annotations

import torch

from modelpress.api.stages.quantize import Numbers
from modelpress_runner.edits.quantizers import Quantizer, QuantizerSpec
from modelpress_runner.methods.quantize.protocol import QuantizeMethod


class Bnn(QuantizeMethod):
    """Everything is -1 or 1; the weights that train stay within them."""

    name = "bnn"
    clamps = True

    def spec(self, target: str, numbers: Numbers, axis: int | None, group: int | None) -> QuantizerSpec:
        """As QuantizeMethod.spec."""
        return QuantizerSpec("sign", numbers)

    def begin(self, quantizer: Quantizer, weight: torch.Tensor, how: str) -> None:
        """There is nothing to be set."""


METHOD = Bnn()
