"""nn.LSTM, nn.GRU and nn.RNN and their cells as a whole, and sequences of unequal lengths.

A hidden unit without weights and biases stays at zero if it begins there: every gate of it is a constant then, and what
the gates let through is tanh(0) or relu(0). So it can go from all layers and directions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from modelpress_runner.dependency.planes import Plane
from modelpress_runner.dependency.rules.arguments import argument
from modelpress_runner.dependency.trace import Trace
from modelpress_runner.dependency.units import LABEL
from modelpress_runner.runtime.graph import tensors_in


def recurrent(trace: Trace, axes: Mapping[str, torch.Tensor], args: Any, kwargs: Mapping[str, Any], out: Any) -> None:
    """A recurrent layer with the atoms `axes` of what it takes ("in") and of its hidden units ("out" and "hidden")."""
    given = args[0] if args else kwargs["input"]
    state = args[1] if len(args) > 1 else kwargs.get("hx")
    units, where = axes["out"], trace.where(type(trace.module[1]).__name__ if trace.module else "recurrent")
    reason = f"{where} takes them together with something of a fixed size"
    trace.units.join(units, axes["hidden"], "")
    source = _data(given)
    trace.settle(source)
    trace.units.join(_channels(trace, source, where, reason), axes["in"], reason)
    for first in tensors_in(state):
        trace.settle(first)
        for plane in trace.planes(first):
            if not plane.zero and not trace.is_zeros(first):
                trace.freeze([plane], f"{where} begins with them where they need not be zero")
        began = f"{where} begins with a state that is given to it"
        trace.units.join(_channels(trace, first, where, began), units, began)
    cell = trace.module is not None and isinstance(trace.module[1], nn.RNNCellBase)
    for result in tensors_in(out) if cell else (_data(out[0]), *tensors_in(out[1])):
        shape = [1] * (result.dim() - 1)
        trace.put(result, [Plane(units.repeat(result.shape[-1] // units.numel()).reshape(*shape, -1), True)])


def _data(given: Any) -> torch.Tensor:
    data: torch.Tensor = given.data if isinstance(given, PackedSequence) else given
    return data


def _channels(trace: Trace, tensor: torch.Tensor, where: str, reason: str) -> torch.Tensor:
    """Labels along the last dimension; others cannot go."""
    last = tensor.dim() - 1
    planes = trace.rigid(trace.planes(tensor), range(last), f"{where} runs over them")
    found = next((plane.labels.flatten() for plane in planes if plane.varying == [last]), None)
    return torch.zeros(tensor.shape[last], dtype=LABEL) if found is None else found


def packed(trace: Trace, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """_pack_padded_sequence and _pad_packed_sequence: steps of all samples in one dimension, and back."""
    source, result, packs = args[0], out[0], name == "_pack_padded_sequence"
    planes = trace.rigid(trace.planes(source), range(2 if packs else 1), f"{trace.where(name)} runs over them")
    keeps = packs or not argument(func, args, kwargs, "padding_value", 0)
    labels = [plane.labels[0] if packs else plane.labels.unsqueeze(0) for plane in planes]
    trace.put(result, [Plane(each, plane.zero and keeps) for each, plane in zip(labels, planes, strict=True)])
