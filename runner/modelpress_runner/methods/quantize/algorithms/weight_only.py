"""Weights only, each rounded to the nearest of its numbers."""

from __future__ import annotations

from modelpress_runner.methods.quantize.protocol import QuantizeMethod


class WeightOnly(QuantizeMethod):
    """As QuantizeMethod has it."""

    name = "weight_only"


METHOD = WeightOnly()
