"""How long layers take, each alone in the target's form: as they are, and with few bits. The table that a budget of
latency is solved by, and by which layers are left as they are where few bits make nothing faster.

A layer is timed on what it takes in a call of the model, beside itself in turn. Layers that are alike, and take inputs
alike, are timed once. That times add up is an assumption: a runtime computes several operations as one, and keeps
integers between layers. So what a choice takes is measured at the end.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from modelpress.api.messages import keys_in_words
from modelpress.api.v1alpha1 import Quantize, QuantizeEntry
from modelpress.api.v1alpha1.backends import backend
from modelpress_runner.edits.quantize import dense_class
from modelpress_runner.errors import CompressionError, RunnerError
from modelpress_runner.methods.context import Measures, StageContext
from modelpress_runner.methods.quantize.behind import carry_out
from modelpress_runner.methods.quantize.effects import of_bits
from modelpress_runner.methods.quantize.in_backend import quantize_in_backend
from modelpress_runner.methods.quantize.layerwise import LayerwiseMethod
from modelpress_runner.methods.quantize.protocol import QuantizeMethod, method
from modelpress_runner.methods.quantize.selection import Selection, Targets
from modelpress_runner.runtime import distributed as ranks
from modelpress_runner.runtime.example_inputs import as_call, fitting, on_device
from modelpress_runner.runtime.preserve import untouched

FASTER = 0.02  # of its time, that a layer gains at least where it counts as faster
_MOST = 8  # layers that a note names


@dataclass(frozen=True)
class Time:
    """ms of one call of the model that a layer takes: as it is, and with few bits."""

    before: float
    after: float

    @property
    def faster(self) -> bool:
        """Whether few bits are worth having for it."""
        return self.after <= (1 - FASTER) * self.before


Times = dict[str, dict[int, Time]]  # layer -> bits of its weight, or 0: as asked for


class Alone(nn.Module):
    """One layer as a model."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The layer's."""
        out: torch.Tensor = self.layer(input)
        return out


def layer_times(
    context: StageContext,
    selection: Selection,
    block: Quantize,
    quantizing: QuantizeMethod,
    bits: Sequence[int] | None,
    path: str,
) -> tuple[Times, dict[str, str]]:
    """What each selected layer takes, and why others could not be timed.

    Times are those of rank 0; they are kept beside the dense model.

    Args:
        context: stays as it is.
        bits: that weights are timed with; None: as asked for, under 0.
        path: of the stage.

    Raises:
        CompressionError: nothing here times models.
    """
    measures = context.measures
    if measures is None or measures.latency is None or context.dummy_input is None:
        raise CompressionError("layers are timed on example inputs, and nothing here times models", path)
    seen = _inputs(context, selection, measures.batch)
    known: dict[str, dict[int, Time] | str] = {}
    times: Times = {}
    unknown: dict[str, str] = {}
    for name, targets in selection.layers.items():
        context.stop()
        if name not in seen:
            unknown[name] = "it is not called with one tensor on the example inputs"
            continue
        given, calls = seen[name]
        key = _key(context.model.get_submodule(name), targets, given, block, bits, measures)
        if key not in known:
            try:
                known[key] = _timed(context, measures, name, given, targets, block, quantizing, bits, key, path)
            except RunnerError as error:
                known[key] = f"alone it has no such form ({error})"
        found = known[key]
        if isinstance(found, str):
            unknown[name] = found
        else:
            times[name] = {each: Time(time.before * calls, time.after * calls) for each, time in found.items()}
    return times, unknown


def only_faster(context: StageContext, selection: Selection, times: Times, unknown: Mapping[str, str]) -> Selection:
    """The selection without layers that few bits do not make faster, of one number of bits; notes say which."""
    slow = [name for name in selection.layers if name in times and not times[name][0].faster]
    text = f"keepOnlyIfFaster: {len(selection.layers) - len(slow) - len(unknown)} of {len(selection.layers)} layers "
    text += f"are at least {FASTER:.0%} faster with few bits"
    if slow:
        listed = [f"{name} ({times[name][0].before:.3g} -> {times[name][0].after:.3g} ms)" for name in slow]
        text += f"; these are not, and stay as they are: {keys_in_words(listed, _MOST)}"
    context.note(text)
    if unknown:
        name = next(iter(unknown))
        context.note(f"keepOnlyIfFaster: {len(unknown)} layers were not timed, and stay; '{name}': {unknown[name]}")
    left = {name: targets for name, targets in selection.layers.items() if name not in slow and name not in unknown}
    return replace(selection, layers=left)


def annotate(context: StageContext, selection: Selection, times: Mapping[str, Time]) -> None:
    """Adds times to the record's layers, and those layers that were timed and stayed as they are.

    Args:
        selection: all that was timed.
        times: of what layers have now; of those that stayed, of what they would have had.
    """
    if not times:
        return
    held = {entry["name"]: entry for entry in context.record.get("layers", ())}
    for name, time in times.items():
        if name not in held:
            weight = getattr(context.model.get_submodule(name), "weight")  # noqa: B009 - a property of some
            size = weight.numel() * weight.element_size()
            held[name] = {"name": name, "bytesBefore": size, "bytesAfter": size, "left": True}
        held[name] |= {"msBefore": round(time.before, 6), "msAfter": round(time.after, 6)}
    order = [*selection.layers, *(name for name in held if name not in selection.layers)]
    context.record["layers"] = [held[name] for name in order if name in held]


@torch.no_grad()
def _inputs(context: StageContext, selection: Selection, batch: int) -> dict[str, tuple[torch.Tensor, int]]:
    """What each layer takes first, and how often it is called, in one call of the model."""
    found: dict[str, tuple[torch.Tensor, int]] = {}
    strange: set[str] = set()
    shapes: dict[tuple[Any, ...], torch.Tensor] = {}  # one of each is held; indices are of one table each

    def look(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if len(args) != 1 or kwargs or not isinstance(args[0], torch.Tensor):
                strange.add(name)
                return
            value = args[0].detach()
            place = (tuple(value.shape), value.dtype, "" if value.is_floating_point() else name)
            held = shapes.setdefault(place, value if place in shapes else value.clone())
            found[name] = (found[name][0], found[name][1] + 1) if name in found else (held, 1)

        return hook

    model = context.model
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(look(name), with_kwargs=True) for name in selection.layers
    ]
    try:
        device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
        args, kwargs = as_call(on_device(fitting(model, context.dummy_input, batch), device))
        with untouched(model):
            model(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: each for name, each in found.items() if name not in strange}


def _timed(
    context: StageContext,
    measures: Measures,
    name: str,
    given: torch.Tensor,
    targets: Targets,
    block: Quantize,
    quantizing: QuantizeMethod,
    bits: Sequence[int] | None,
    key: str,
    path: str,
) -> dict[int, Time]:
    """The times of one call of a layer, by the bits of its weight."""
    tables = measures.tables
    kept = ranks.on_rank_zero(lambda: None if tables is None else tables.get(key))
    if kept is not None:
        return {int(each): Time(*pair) for each, pair in kept["times"].items()}
    plain, latency = Alone(copy.deepcopy(context.model.get_submodule(name))), measures.latency
    assert latency is not None
    out: dict[int, Time] = {}
    for each in bits or (0,):
        own = dict(targets)
        if each and "weight" in own:
            own["weight"] = of_bits(own["weight"], each)
        twin = _quantized(context, plain, given, own, block, quantizing, path)
        out[each] = Time(*ranks.on_rank_zero(functools.partial(latency, plain, twin, given)))
    middle = statistics.median(time.before for time in out.values())
    out = {each: Time(middle, middle * time.after / time.before) for each, time in out.items()}
    if tables is not None and ranks.is_rank_zero():
        tables.put(key, {"layer": name, "times": {str(each): [t.before, t.after] for each, t in out.items()}})
    return out


def _quantized(
    context: StageContext,
    plain: Alone,
    given: torch.Tensor,
    targets: Targets,
    block: Quantize,
    quantizing: QuantizeMethod,
    path: str,
) -> nn.Module:
    """A layer alone with few bits. Which numbers its weights are is of no account: they are rounded to the nearest."""
    twin = StageContext(copy.deepcopy(plain), None, given, context.seed, calibration_data=[given])
    everything = [QuantizeEntry.model_validate({"opNames": ["layer"]})]
    own = block.model_copy(update={"config_list": everything, "keep_only_if_faster": False})
    selection = Selection({"layer": targets})
    if backend(block.backend).quantizes:
        quantize_in_backend(twin, selection, own, path)
    else:
        nearest = method("weight_only") if isinstance(quantizing, LayerwiseMethod) else quantizing
        carry_out(twin, selection, own, nearest, path)
    return twin.model


def _key(
    layer: nn.Module,
    targets: Targets,
    given: torch.Tensor,
    block: Quantize,
    bits: Sequence[int] | None,
    measures: Measures,
) -> str:
    weight = layer.get_parameter("weight")
    shapes = [tuple(weight.shape), weight.dtype, tuple(given.shape), given.dtype]
    how = (block.backend, block.algorithm, block.granularity, block.calibration is not None)
    what = ("times", dense_class(layer).__qualname__, layer.extra_repr(), shapes, targets, how, bits)
    return hashlib.sha256(repr((*what, measures.conditions)).encode()).hexdigest()
