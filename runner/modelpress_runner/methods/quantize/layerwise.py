"""Methods that set weights by what layers take, one block of the model after another.

A block's layers see what the blocks before it give with their integers in place. A block is over with its integers:
they are kept in parts beside the checkpoint, so that a run that was killed computes none of them again.
"""

from __future__ import annotations

import abc
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from modelpress.api.messages import keys_in_words
from modelpress.api.v1alpha1 import Calibration, Quantize
from modelpress_runner.edits.masks import Masks
from modelpress_runner.edits.quantize import FreezeWeights, FrozenLayer, QuantizedLayer
from modelpress_runner.edits.quantizers import packed
from modelpress_runner.errors import CompressionError
from modelpress_runner.export.state import state_digest
from modelpress_runner.methods.context import StageContext
from modelpress_runner.methods.quantize.calibrate import layer_of, quantizers_of
from modelpress_runner.methods.quantize.moments import Taken
from modelpress_runner.methods.quantize.products import is_product
from modelpress_runner.methods.quantize.protocol import QuantizeMethod
from modelpress_runner.methods.quantize.report import conclude, layer_entry
from modelpress_runner.methods.quantize.selection import Selection
from modelpress_runner.methods.quantize.smoothing import Smoothing, smoothings
from modelpress_runner.methods.quantize.streaming import Unit, stream
from modelpress_runner.runtime import distributed as ranks
from modelpress_runner.runtime.heap import give_back


@dataclass(frozen=True)
class Settled:
    """What became of a layer's weight.

    Attributes:
        noise: the squared error of its outputs relative to their squares, over the data; NaN: not known.
        integers: of its weight, of its shape; None: its weight rounded by its quantizer.
    """

    noise: float = math.nan
    integers: torch.Tensor | None = None


@dataclass
class Block:
    """Layers that are set together.

    Attributes:
        model: whose they are.
        layers: with quantizers that are set by the weights alone, none of them at work.
        taken: what those of them that multiply rows take, as far as they were called.
        smoothings: what can be scaled with some of them.
        masks: those in force.
        settings: the stage's block.
    """

    model: nn.Module
    layers: Mapping[str, QuantizedLayer]
    taken: Mapping[str, Taken]
    smoothings: Sequence[Smoothing]
    masks: Masks
    settings: Quantize


class LayerwiseMethod(QuantizeMethod):
    """Sets the weights of a block by second moments of what its layers take.

    Attributes:
        scales: it wants to know what can be scaled together (Block.smoothings).
    """

    scales: ClassVar[bool] = False

    @abc.abstractmethod
    def settle(self, block: Block) -> dict[str, Settled]:
        """Sets quantizers, and weights where that helps; what is not in the result is rounded as it is."""


def quantize_by_blocks(
    context: StageContext, selection: Selection, settings: Quantize, method: LayerwiseMethod, path: str
) -> None:
    """Sets and freezes the weights of everything selected; the quantizers are in place.

    Raises:
        CompressionError: numbers that are not finite, or a layer that cannot be solved for.
    """
    model = context.model
    shared = _shared(model)
    products = [name for name in selection.layers if _product(model, name, shared)]
    others = [name for name in selection.layers if name not in products]
    if others:
        context.note(f"{method.name} does not know the inputs of {keys_in_words(others, 5)}: rounded to the nearest")
    folds = smoothings(context, products, path) if method.scales else []
    run = stream(context, products, others, (settings.calibration or Calibration()).steps)
    context.note(*run.notes)
    key = _key(context, settings, method, run.units)
    entries: dict[str, dict[str, Any]] = {}
    scopes = [unit.scope for unit in run.units if unit.scope is not None]
    try:
        for number, unit in enumerate(run.units):
            context.stop()
            name = f"quantize/{key}/{number}"
            found = None if context.parts is None else context.parts.get(name)
            if found is None:
                taken = run.taken(unit)
                give_back()  # of the pass
                found = _settled(context, unit, scopes, taken, folds, settings, method, path)
                if context.parts is not None:
                    context.parts.put(name, found)
            else:
                _restored(context, unit, found)
            entries |= found["entries"]
            taken = {}
            give_back()  # of the moments: the next block's would come on top
            context.report(f"quantize: block {number + 1} of {len(run.units)}")
    finally:
        run.close()
    conclude(context, selection, [entries[name] for name in selection.layers])


def _settled(
    context: StageContext,
    unit: Unit,
    scopes: Sequence[str],
    taken: Mapping[str, Taken],
    folds: Sequence[Smoothing],
    settings: Quantize,
    method: LayerwiseMethod,
    path: str,
) -> dict[str, Any]:
    """Sets and freezes a unit; the tensors that it is now, and its layers' entries of the report."""
    model = context.model
    layers = {name: layer_of(model, name) for name in unit.layers}
    for each in taken.values():
        each.compute()  # raises where numbers are not finite
    silent = [name for name, each in taken.items() if not each.seen]
    if silent:
        context.note(f"'{silent[0]}' was not called in the pass over data: its weight is rounded to the nearest")
    seen = {name: each for name, each in taken.items() if each.seen}
    own = [fold for fold in folds if set(fold.layers) <= set(seen) and _changes_now(model, fold.source, unit, scopes)]
    try:
        with torch.no_grad():
            settled = method.settle(Block(model, layers, seen, own, context.masks, settings))
    except CompressionError as error:
        raise error if error.path else CompressionError(str(error), path) from error
    entries: dict[str, dict[str, Any]] = {}
    for name, layer in layers.items():
        entries[name] = layer_entry(name, layer, settled.get(name, Settled()).noise)
    _freeze(context, unit)
    for name, made in settled.items():
        if made.integers is not None:
            layer, quantizer = layers[name], layers[name].weight_quantizer
            assert quantizer is not None
            layer.get_buffer("weight_integers").copy_(packed(made.integers, quantizer))
    touched = [*unit.layers, *(fold.source for fold in own)]
    tensors = {
        f"{name}.{key}": value.detach().to("cpu", copy=True)
        for name in dict.fromkeys(touched)
        for key, value in model.get_submodule(name).state_dict().items()
    }
    return {"tensors": tensors, "entries": entries}


def _changes_now(model: nn.Module, source: str, unit: Unit, scopes: Sequence[str]) -> bool:
    """Whether a module may change with a unit: what other blocks gave is remembered, and integers stay."""
    if isinstance(model.get_submodule(source), FrozenLayer):
        return False
    if unit.scope is not None:
        return source.startswith(f"{unit.scope}.")
    return not any(source == scope or source.startswith(f"{scope}.") for scope in scopes)


@torch.no_grad()
def _restored(context: StageContext, unit: Unit, found: Mapping[str, Any]) -> None:
    _freeze(context, unit)
    model = context.model
    state = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    for name, value in found["tensors"].items():
        state[name].copy_(value)


def _freeze(context: StageContext, unit: Unit) -> None:
    edit = FreezeWeights(tuple(unit.layers))
    edit.apply(context.model, context.masks)
    context.edits.append(edit)
    for name in unit.layers:
        for each in quantizers_of(layer_of(context.model, name)).values():
            each.enabled = True


def _product(model: nn.Module, name: str, shared: set[int]) -> bool:
    module = layer_of(model, name)
    return is_product(module) and id(module.get_parameter("weight")) not in shared


def _shared(model: nn.Module) -> set[int]:
    """Identities of the parameters that several modules hold."""
    count: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                count[id(parameter)] = count.get(id(parameter), 0) + 1
    return {each for each, number in count.items() if number > 1}


def _key(context: StageContext, settings: Quantize, method: LayerwiseMethod, units: Sequence[Unit]) -> str:
    """The digest of what parts depend on besides what the checkpoint's identity says."""
    if context.parts is None:
        return ""
    plain = settings.to_dict()
    total = hashlib.sha256(repr((plain, method.name, context.seed, ranks.world_size(), units)).encode())
    total.update(state_digest(context.model).encode())
    return total.hexdigest()[:32]
