"""Static quantization behind a training: ranges of activations come from a pass over data."""

from __future__ import annotations

from modelpress_runner.methods.quantize.protocol import QuantizeMethod


class PtqStatic(QuantizeMethod):
    """As QuantizeMethod has it."""

    name = "ptq_static"


METHOD = PtqStatic()
