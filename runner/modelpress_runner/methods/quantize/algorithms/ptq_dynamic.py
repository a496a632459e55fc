"""Dynamic quantization: inputs by their range in each call."""

from __future__ import annotations

from modelpress.api.stages.quantize import Numbers
from modelpress_runner.edits.quantizers import QuantizerSpec
from modelpress_runner.methods.quantize.protocol import QuantizeMethod


class PtqDynamic(QuantizeMethod):
    """Quantizers of inputs keep no range."""

    name = "ptq_dynamic"

    def spec(self, target: str, numbers: Numbers, axis: int | None, group: int | None) -> QuantizerSpec:
        """As QuantizeMethod.spec."""
        return QuantizerSpec("affine" if target == "weight" else "dynamic", numbers, axis, group)


METHOD = PtqDynamic()
