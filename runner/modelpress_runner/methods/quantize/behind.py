"""Quantizes behind a training: what looks at data, integers, and the record's layers."""

from __future__ import annotations

from typing import Any

import torch

from modelpress.api.v1alpha1 import Calibration, Quantize
from modelpress_runner.edits.quantize import FreezeWeights, FrozenLayer
from modelpress_runner.methods.context import StageContext
from modelpress_runner.methods.quantize.algorithms.smoothquant import SmoothQuant, smooth
from modelpress_runner.methods.quantize.calibrate import calibrate, enable, layer_of, prepare
from modelpress_runner.methods.quantize.layerwise import LayerwiseMethod, quantize_by_blocks
from modelpress_runner.methods.quantize.protocol import QuantizeMethod
from modelpress_runner.methods.quantize.report import report
from modelpress_runner.methods.quantize.selection import Selection
from modelpress_runner.runtime.heap import give_back


def carry_out(
    context: StageContext, selection: Selection, block: Quantize, quantizing: QuantizeMethod, path: str
) -> None:
    """Quantizes a selection; the record has its layers then."""
    smoothed(context, selection, block, quantizing, path)
    prepare(context, selection, block, quantizing, path)
    give_back()
    if isinstance(quantizing, LayerwiseMethod):
        quantize_by_blocks(context, selection, block, quantizing, path)
        return
    if "activations" in quantizing.facts.needs:
        calibrate(context, selection, block.calibration or Calibration())
    enable(context.model, selection)
    report(context, selection, quantizing)
    give_back()
    freeze(context, selection.layers)
    give_back()


def smoothed(
    context: StageContext, selection: Selection, block: Quantize, quantizing: QuantizeMethod, path: str
) -> None:
    """What happens to a model before quantizers are put in place."""
    if isinstance(quantizing, SmoothQuant):
        calibration = block.calibration or Calibration()
        smooth(context, list(selection.layers), block.alpha, calibration.steps, path)


@torch.no_grad()
def freeze(context: StageContext, layers: dict[str, Any]) -> None:
    """Weights with quantizers become integers."""
    model = context.model
    names = [
        name
        for name in layers
        if layer_of(model, name).weight_quantizer is not None and not isinstance(layer_of(model, name), FrozenLayer)
    ]
    if names:
        edit = FreezeWeights(tuple(names))
        edit.apply(model, context.masks)
        context.edits.append(edit)
