"""What quantization costs each layer: type, error of its outputs, and bytes."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import nn

from modelpress_runner.edits.quantize import QuantizedLayer
from modelpress_runner.errors import CompressionError
from modelpress_runner.evaluators.hooks import ForwardHook
from modelpress_runner.methods.context import StageContext
from modelpress_runner.methods.quantize.calibrate import layer_of, quantizers_of
from modelpress_runner.methods.quantize.protocol import QuantizeMethod
from modelpress_runner.methods.quantize.selection import Selection
from modelpress_runner.passes.collectors import Collector, Pass
from modelpress_runner.passes.run import Sources, run_pass
from modelpress_runner.runtime.example_inputs import as_call, on_device
from modelpress_runner.runtime.preserve import untouched

_BATCHES = 4  # that errors are taken over, at most


class ErrorCollector(Collector):
    """Squares of what a layer gives with its quantizers off, and of the difference that they make, on one input."""

    states: ClassVar = {"_signal": "sum", "_noise": "sum"}

    def __init__(self, name: str, data: Pass) -> None:
        self._name, self._data = name, data
        self._signal = torch.zeros((), dtype=torch.float64)
        self._noise = torch.zeros((), dtype=torch.float64)
        self._hook = ForwardHook(self._look)
        self._inside = False

    def attach(self) -> None:
        """As Collector.attach."""
        self._data.register_forward_hook(self._name, self._hook)

    def update(self) -> None:
        """As Collector.update."""
        for signal, noise in self._hook.buffer:
            self._signal += signal
            self._noise += noise
        self._hook.buffer.clear()

    def compute(self) -> torch.Tensor:
        """Noise by signal; NaN where the layer was not called, or gives zeros only."""
        return self._noise / self._signal if self._signal else torch.tensor(torch.nan)

    def _look(self, buffer: list[Any], module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if isinstance(module, QuantizedLayer) and isinstance(output, torch.Tensor):
            buffer.append(squares(module, args, output))


@torch.no_grad()
def squares(layer: QuantizedLayer, args: tuple[Any, ...], output: torch.Tensor) -> tuple[float, float]:
    """The sum of squares of what a layer gives without quantizers, and of its difference to `output`."""
    quantizers = [each for each in quantizers_of(layer).values() if each.enabled]
    for each in quantizers:
        each.enabled = False
    try:
        plain = layer.forward(*args)
    finally:
        for each in quantizers:
            each.enabled = True
    exact = plain.detach().double()
    return float(exact.square().sum()), float((exact - output.detach().double()).square().sum())


def report(context: StageContext, selection: Selection, method: QuantizeMethod) -> None:
    """Adds the record's `layers`: of every layer its types, the SQNR of its outputs in dB (10 log10 of signal by
    noise, each layer alone, on its quantized inputs), and bytes of its weight before and after.

    dorefa's and bnn's weights are no rounded ones, so there are no errors.
    """
    errors = _errors(context, selection) if method.facts.keeps_zero else {}
    layers = [layer_entry(name, layer_of(context.model, name), errors.get(name, math.nan)) for name in selection.layers]
    conclude(context, selection, layers)


def layer_entry(name: str, layer: QuantizedLayer, noise: float) -> dict[str, Any]:
    """What the record says of a layer whose weight is no integers yet.

    Args:
        noise: of its outputs, by signal; NaN: not known.
    """
    entry: dict[str, Any] = {"name": name}
    entry |= {target: each.dtype for target, each in quantizers_of(layer).items()}
    if math.isfinite(noise):
        entry["sqnrDb"] = round(-10 * math.log10(noise), 2) if noise > 0 else 200.0
    weight = layer.get_parameter("weight")
    entry["bytesBefore"] = weight.numel() * weight.element_size()
    entry["bytesAfter"] = _bytes(layer)
    return entry


def conclude(context: StageContext, selection: Selection, layers: list[dict[str, Any]]) -> None:
    """Puts the entries of all layers into the record, and says what matters of them in notes."""
    context.record["layers"] = layers
    worst = min((entry for entry in layers if "sqnrDb" in entry), key=lambda entry: entry["sqnrDb"], default=None)
    if worst is not None:
        context.note(f"quantization costs '{worst['name']}' most: its outputs have an SQNR of {worst['sqnrDb']:g} dB")
    kept = [name for name, module in context.model.named_modules() if isinstance(module, nn.Embedding)]
    kept = [name for name in kept if name not in selection.layers]
    if kept:
        context.note(f"embeddings that were left as floats: {', '.join(kept[:5])}")


def _bytes(layer: QuantizedLayer) -> int:
    quantizer, weight = layer.weight_quantizer, layer.get_parameter("weight")
    if quantizer is None:
        return weight.numel() * weight.element_size()
    each = 8 // quantizer.bits if 8 % quantizer.bits == 0 else 1
    kept = quantizer.state_dict()
    held: int = sum(value.numel() * value.element_size() for value in kept.values())
    return -(-weight.numel() // each) + held


def _errors(context: StageContext, selection: Selection) -> dict[str, float]:
    sources = Sources(context.evaluator, context.calibration_data)
    kind = sources.kind({"activations"}) if not context.in_loop else None

    def make(data: Pass) -> dict[str, ErrorCollector]:
        return {name: ErrorCollector(name, data) for name in selection.layers}

    if kind is not None:
        try:
            collectors, _ = run_pass(
                context.model, sources, kind, make, batches=_BATCHES, seed=context.seed, stop=context.stop
            )
        except CompressionError as error:
            context.note(f"the errors of quantized layers were not measured: {error}")
            return {}
        return {name: float(each.compute()) for name, each in collectors.items()}
    if context.dummy_input is None:
        return {}
    return _on_example(context.model, selection, context.dummy_input)


def _on_example(model: nn.Module, selection: Selection, dummy_input: Any) -> dict[str, float]:
    sums: dict[str, list[float]] = {}

    def look(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            assert isinstance(module, QuantizedLayer)
            signal, noise = squares(module, args, output)
            held = sums.setdefault(name, [0.0, 0.0])
            held[0] += signal
            held[1] += noise

        return hook

    hooks = [layer_of(model, name).register_forward_hook(look(name)) for name in selection.layers]
    try:
        device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
        args, kwargs = as_call(on_device(dummy_input, device))
        with untouched(model), torch.no_grad():
            model(*args, **kwargs)
    finally:
        for each in hooks:
            each.remove()
    return {name: noise / signal if signal else math.nan for name, (signal, noise) in sums.items()}
