"""Quantization-aware training (Jacob et al. 2017, arXiv 1712.05877)."""

from __future__ import annotations

from modelpress_runner.methods.quantize.protocol import QuantizeMethod


class Qat(QuantizeMethod):
    """Ranges follow what trains."""

    name = "qat"
    observes = True


METHOD = Qat()
