"""A model from which whole layers were taken, with those that are left numbered anew, as configurations count them."""

from __future__ import annotations

import copy
import re
from typing import Any

from torch import nn

from modelpress_runner.edits.bypass import Bypassed
from modelpress_runner.export.layout import LayoutError

_INDEX = re.compile(r"layer_(idx|id|index|number)")  # a layer's own number, for caches and masks
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers")


def without_gaps(model: nn.Module, config: Any) -> tuple[Any, Any]:
    """The model with the places of blocks that are gone closed, and the configuration with as many layers.

    Where nothing is gone it is the model itself. Else it is a copy on the same parameters, made to be written: it is
    not meant to run.

    Raises:
        LayoutError: a block is gone from elsewhere than a list of layers that the configuration counts.
    """
    gone = [name for name, module in model.named_modules() if isinstance(module, Bypassed)]
    if not gone:
        return model, config
    twin = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    other = copy.deepcopy(config)
    counted: dict[str, list[int]] = {}
    for path in dict.fromkeys(name.rpartition(".")[0] for name in gone):
        layers = twin.get_submodule(path)
        kept = [number for number, layer in enumerate(layers.children()) if not isinstance(layer, Bypassed)]
        total = len(layers._modules)
        fields = [key for key in _LAYERS if getattr(config, key, None) == total]
        if not isinstance(layers, nn.ModuleList) or not fields:
            raise LayoutError(f"no number in the configuration counts the layers of '{path}', some of which are gone")
        if counted.setdefault(fields[0], kept) != kept:
            raise LayoutError(f"other layers are gone from '{path}' than from others that {fields[0]} counts, too")
        closed = nn.ModuleList()
        for new, old in enumerate(kept):
            layer = layers[old]
            for module in layer.modules():
                for key, value in vars(module).items():
                    if _INDEX.fullmatch(key) and type(value) is int and value == old:
                        vars(module)[key] = new
            closed.append(layer)
        closed.train(layers.training)
        parent, _, name = path.rpartition(".")
        twin.get_submodule(parent)._modules[name] = closed
        setattr(other, fields[0], len(kept))
        for key, value in vars(config).items():  # one entry for each layer: layer_types
            if isinstance(value, list) and len(value) == total and key not in ("architectures",):
                setattr(other, key, [value[number] for number in kept])
    return twin, other
