"""Puts quantizers before layers, and sets them by weights and by a pass over data."""

from __future__ import annotations

import torch
from torch import nn

from modelpress.api.v1alpha1 import Calibration, Quantize
from modelpress_runner.edits.base import Edit
from modelpress_runner.edits.quantize import FakeQuantize, QuantizedLayer
from modelpress_runner.edits.quantizers import AffineQuantizer, Quantizer
from modelpress_runner.edits.replay import replay
from modelpress_runner.errors import CompressionError, InvalidSpecError
from modelpress_runner.methods.context import StageContext
from modelpress_runner.methods.quantize.folding import foldable
from modelpress_runner.methods.quantize.observers import (
    HistogramCollector,
    RangeCollector,
    chosen_range,
    ranges_of,
    set_range,
)
from modelpress_runner.methods.quantize.protocol import QuantizeMethod
from modelpress_runner.methods.quantize.selection import Selection
from modelpress_runner.passes.collectors import Collector, Pass
from modelpress_runner.passes.run import Kind, Sources, run_pass

Places = dict[tuple[str, str], Quantizer]  # (module, target) -> what stands there


def prepare(context: StageContext, selection: Selection, block: Quantize, method: QuantizeMethod, path: str) -> None:
    """Folds norms, unless they shall train, and puts quantizers before everything selected.

    Those of weights are set, and none is at work yet.

    Raises:
        InvalidSpecError: masked weights would not stay zero.
    """
    context.note(*selection.notes)
    masked = [name for name in selection.layers if name in context.masks]
    if masked and not method.facts.keeps_zero:
        raise InvalidSpecError(
            f"the pruned weights of '{masked[0]}' would not stay zero: {method.name} has no zero; take qat or lsq, or "
            "shrink what is pruned",
            f"{path}.algorithm",
        )
    edits: list[Edit] = []
    if block.fold_batch_norm and context.dummy_input is not None and not method.facts.trains:
        edits += foldable(context.model, selection.layers, context.dummy_input, context.masks)
    edits += [FakeQuantize(name, tuple(targets.items())) for name, targets in selection.layers.items()]
    replay(context.model, edits, context.masks)
    context.edits += edits
    for name in selection.layers:
        layer = layer_of(context.model, name)
        for quantizer in quantizers_of(layer).values():
            quantizer.enabled = False
        if layer.weight_quantizer is not None:
            with torch.no_grad():
                method.start(layer.weight_quantizer, layer.get_parameter("weight"), block)


def calibrate(context: StageContext, selection: Selection, calibration: Calibration) -> None:
    """Sets the quantizers of inputs and outputs by ranges that a pass over data finds.

    Raises:
        CompressionError: a layer is not called in it, or sees NaN.
    """
    places = activations(context.model, selection)
    places = {key: each for key, each in places.items() if isinstance(each, AffineQuantizer)}
    if not places:
        return
    sources = Sources(context.evaluator, context.calibration_data)
    kind = sources.kind({"activations"})
    assert kind is not None
    average = calibration.observer == "ema"

    def ranges(data: Pass) -> dict[tuple[str, str], Collector]:
        return {key: RangeCollector(*key, data, average) for key in places}

    ends = ranges_of(_pass(context, sources, kind, calibration, ranges))
    if calibration.observer in ("percentile", "kl", "mse"):

        def histograms(data: Pass) -> dict[tuple[str, str], Collector]:
            return {key: HistogramCollector(*key, data, *ends[key]) for key in places}

        counted = _pass(context, sources, kind, calibration, histograms)
        ends = {
            key: chosen_range(collector.compute(), ends[key], calibration, places[key])
            for key, collector in counted.items()
        }
    for key, quantizer in places.items():
        low, high = (torch.tensor(end, device=quantizer.scale.device) for end in ends[key])
        set_range(quantizer, low, high)


def activations(model: nn.Module, selection: Selection) -> Places:
    """The quantizers of inputs and outputs."""
    return {
        (name, target): quantizer
        for name in selection.layers
        for target, quantizer in quantizers_of(layer_of(model, name)).items()
        if target != "weight"
    }


def enable(model: nn.Module, selection: Selection) -> None:
    """All quantizers are at work from now on."""
    for name in selection.layers:
        for quantizer in quantizers_of(layer_of(model, name)).values():
            quantizer.enabled = True


def layer_of(model: nn.Module, name: str) -> QuantizedLayer:
    """A layer that has quantizers.

    Raises:
        CompressionError: it has none.
    """
    module = model.get_submodule(name)
    if not isinstance(module, QuantizedLayer):
        raise CompressionError(f"'{name}' has lost its quantizers; let only modelpress change the model's layers")
    return module


def quantizers_of(layer: QuantizedLayer) -> dict[str, Quantizer]:
    """Those that a layer has, by target."""
    found = {target: layer._modules.get(f"{target}_quantizer") for target in ("weight", "input", "output")}
    return {target: each for target, each in found.items() if isinstance(each, Quantizer)}


def _pass(context: StageContext, sources: Sources, kind: Kind, calibration: Calibration, make):  # type: ignore[no-untyped-def]
    collectors, _ = run_pass(
        context.model, sources, kind, make, batches=calibration.steps, seed=context.seed, stop=context.stop
    )
    return collectors
