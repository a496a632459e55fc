"""DoReFa-Net (Zhou et al. 2016, arXiv 1606.06160): weights as a rounded tanh, activations in [0, 1]."""

from __future__ import annotations

import torch

from modelpress.api.stages.quantize import Numbers
from modelpress_runner.edits.quantizers import Quantizer, QuantizerSpec
from modelpress_runner.methods.quantize.protocol import QuantizeMethod


class Dorefa(QuantizeMethod):
    """Nothing has a range that must be found."""

    name = "dorefa"

    def spec(self, target: str, numbers: Numbers, axis: int | None, group: int | None) -> QuantizerSpec:
        """As QuantizeMethod.spec."""
        return QuantizerSpec("dorefa" if target == "weight" else "affine", numbers)

    def begin(self, quantizer: Quantizer, weight: torch.Tensor, how: str) -> None:
        """There is nothing to be set."""


METHOD = Dorefa()
