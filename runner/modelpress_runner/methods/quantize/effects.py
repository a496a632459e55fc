"""What each layer alone does to the model's outputs with few bits: the table that bits are allocated by, and by which
layers are left as they are."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from modelpress.api.stages.quantize import Numbers
from modelpress.api.v1alpha1 import Calibration, Quantize
from modelpress_runner.edits.copies import copied
from modelpress_runner.edits.quantizers import QuantizerSpec, make
from modelpress_runner.errors import InvalidSpecError
from modelpress_runner.export.state import state_digest
from modelpress_runner.methods.context import StageContext
from modelpress_runner.methods.quantize.calibrate import calibrate, layer_of, prepare, quantizers_of
from modelpress_runner.methods.quantize.layerwise import LayerwiseMethod
from modelpress_runner.methods.quantize.protocol import QuantizeMethod
from modelpress_runner.methods.quantize.selection import Selection
from modelpress_runner.runtime import distributed as ranks
from modelpress_runner.runtime import rng
from modelpress_runner.runtime.example_inputs import as_call, on_device
from modelpress_runner.runtime.preserve import untouched

_BATCHES = 4  # that errors are taken over, at most

Effects = dict[str, dict[int, float]]  # layer -> bits of its weight -> squared error of the outputs by their squares


def aside(context: StageContext) -> StageContext:
    """The state on a copy of the model: what happens to it nobody sees."""
    return replace(
        context,
        model=copied(context.model),
        masks={name: dict(tensors) for name, tensors in context.masks.items()},
        edits=list(context.edits),
        notes=[],
        record={},
        parts=None,
        report=lambda message: None,
    )


def with_bits(selection: Selection, bits: Mapping[str, int | None]) -> Selection:
    """The selection whose layers' weights have so many bits; None: the layer is left as it is. Others stay."""
    layers: dict[str, dict[str, QuantizerSpec]] = {}
    for name, targets in selection.layers.items():
        wanted = bits.get(name, 0)
        if wanted is None:
            continue
        layers[name] = dict(targets)
        if wanted and "weight" in targets:
            layers[name]["weight"] = of_bits(targets["weight"], wanted)
    return replace(selection, layers=layers)


def of_bits(spec: QuantizerSpec, bits: int) -> QuantizerSpec:
    """The same with so many bits."""
    return replace(spec, numbers=Numbers(bits, spec.numbers.signed, spec.numbers.scheme))


def effects(
    context: StageContext,
    selection: Selection,
    block: Quantize,
    method: QuantizeMethod,
    smooth: Callable[[StageContext], None],
    bits: Sequence[int] | None,
    path: str,
) -> Effects:
    """The effect of each selected layer, quantized alone, by the bits of its weight.

    Weights are rounded to the nearest for methods that set them by blocks. The table is kept beside the dense model.

    Args:
        context: stays as it is.
        smooth: what happens to the model before quantizers are put in place.
        bits: that weights are tried with; None: as asked for, under 0.
        path: of the stage.

    Raises:
        InvalidSpecError: there is nothing to call the model on.
    """
    tables = None if context.measures is None else context.measures.tables
    key = _key(context, block, bits)

    def known() -> dict[str, Any] | None:
        return None if tables is None else tables.get(key)

    found = ranks.on_rank_zero(known)
    if found is not None:
        return {name: {int(each): value for each, value in row.items()} for name, row in found["effects"].items()}
    made = _measured(aside(context), selection, block, method, smooth, bits, path)
    made = ranks.broadcast_object(made)
    if tables is not None and ranks.is_rank_zero():
        plain = {name: {str(each): value for each, value in row.items()} for name, row in made.items()}
        tables.put(key, {"effects": plain})
    return made


@torch.no_grad()
def _measured(
    context: StageContext,
    selection: Selection,
    block: Quantize,
    method: QuantizeMethod,
    smooth: Callable[[StageContext], None],
    bits: Sequence[int] | None,
    path: str,
) -> Effects:
    model = context.model
    batches = _batches(context, path)
    smooth(context)
    prepare(context, selection, block, method, path)
    if "activations" in method.facts.needs and not isinstance(method, LayerwiseMethod):
        calibrate(context, selection, block.calibration or Calibration())
    wanted = _outputs(model, batches)
    signal = sum(float(each.square().sum()) for each in wanted) or 1.0
    out: Effects = {}
    for name, targets in selection.layers.items():
        context.stop()
        layer, row = layer_of(model, name), {}
        for each in bits or (0,):
            if each and "weight" in targets:
                weight = layer.get_parameter("weight")
                quantizer = make(of_bits(targets["weight"], each), weight).to(weight.device)
                method.begin(quantizer, weight, block.weight_observer)
                layer._modules["weight_quantizer"] = quantizer
            for quantizer in quantizers_of(layer).values():
                quantizer.enabled = True
            found = _outputs(model, batches)
            for quantizer in quantizers_of(layer).values():
                quantizer.enabled = False
            noise = sum(float((a - b).square().sum()) for a, b in zip(found, wanted, strict=True))
            row[each] = noise / signal if noise == noise else float(torch.finfo(torch.float32).max)
        out[name] = row
    return out


def _batches(context: StageContext, path: str) -> list[Any]:
    if context.calibration_data is not None:
        with rng.fork_rng(context.seed):
            return [batch for batch, _ in zip(context.calibration_data, range(_BATCHES), strict=False)]
    if context.dummy_input is None:
        raise InvalidSpecError(
            "what a layer does to the outputs is measured on data, and there are none; give calibration_data, or a "
            "dummy_input",
            path,
        )
    return [context.dummy_input]


def _outputs(model: nn.Module, batches: Sequence[Any]) -> list[torch.Tensor]:
    device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    out: list[torch.Tensor] = []
    with untouched(model), rng.fork_rng(0):
        for batch in batches:
            args, kwargs = as_call(on_device(batch, device))
            leaves = pytree.tree_leaves(model(*args, **kwargs))
            out += [leaf.double() for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]
    return out


def _key(context: StageContext, block: Quantize, bits: Sequence[int] | None) -> str:
    plain = block.to_dict()
    for field in ("budget", "tune"):
        plain.pop(field, None)
    total = hashlib.sha256(repr(("effects", plain, bits, context.seed)).encode())
    total.update(state_digest(context.model).encode())
    return total.hexdigest()
