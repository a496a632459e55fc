"""Quantizers of NNI, which Auptimizer's are, by class or key: quantize stages.

Config lists of versions 1 and 2 (quant_types, quant_bits), and of version 3 (target_names, quant_dtype, quant_scheme).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from modelpress.api.v1alpha1 import algorithms
from modelpress.api.v1alpha1.base import plain

from .entries import SELECTORS, excluding, selectors
from .notes import Field
from .pruners import GIVEN
from .spaces import Space

_ALGORITHMS = {
    "naive": "ptq_static",
    "observer": "ptq_static",
    "ptq": "ptq_static",
    "qat": "qat",
    "dorefa": "dorefa",
    "bnn": "bnn",
    "lsq": "lsq",
    "lsqplus": "lsq",
}
_TARGETS = {"weight": "weight", "input": "input", "output": "output", "_input_": "input", "_output_": "output"}
_LEFT = {
    "fuse_names": "norms behind convolutions are found and folded",
    "apply_method": "values are rounded and clamped",
    "is_bias_correction": "what comes back without training has a place in prune stages: reconstruct",
    "existed_config_list": "a stage begins with the model that the stages before it have made",
}


def is_quantizer(name: str) -> bool:
    """Whether it is the name of a quantizer, in any spelling."""
    return plain(name.rpartition(".")[2]).removesuffix("quantizer") in _ALGORITHMS


def quantize_stages(
    name: Field, entries: Sequence[Field], given: Field, space: Space, number: int, *, in_loop: bool = False
) -> list[dict[str, Any]]:
    """The stage that a quantizer becomes; arguments as `pruners.prune_stages` has them."""
    algorithm = _ALGORITHMS[plain(str(name.data).rpartition(".")[2]).removesuffix("quantizer")]
    row = algorithms.algorithm("quantize", algorithm)
    if algorithm != name.data:
        name.say("translated", f"{name.data} is algorithm: {algorithm}")
    block: dict[str, Any] = {"algorithm": algorithm}
    if row.keeps_zero:
        block["granularity"] = "tensor"
        name.say("translated", "a weight has one scale, as in NNI where nothing is said: granularity: tensor")
    made: list[dict[str, Any]] = []
    spared: list[dict[str, Any]] = []
    start: int | None = None
    pointer = f"/stages/{number}/quantize/configList"
    for field in entries:
        if not field.mapping():
            continue
        flag = field.take("exclude")
        if flag is not None and flag.boolean():
            made.append(selectors(field) | {"exclude": True})
            field.leave(dict.fromkeys(field.data, "an entry that excludes takes nothing but selectors"), SELECTORS)
            continue
        if (begin := field.take("quant_start_step")) is not None:
            start = begin.whole()
        made.append(_entry(field, space, f"{pointer}/{len(made)}", row))
        spared += [entry for entry in excluding(field) if entry not in spared]
        field.leave(_LEFT)
    block["configList"] = made + spared
    begin = given.take("quant_start_step")
    start = begin.whole() if begin is not None else start
    if row.trains:
        if start:
            block["startStep"] = start
        if not in_loop:
            block |= length(given, name)
        name.say("changed", "the result holds integers and their scales, not floats that were rounded")
    given.leave(_LEFT, GIVEN)
    return [{"quantize": block}]


def length(given: Field, name: Field) -> dict[str, Any]:
    """How long a method trains: max_epochs or max_steps of compress(), else 1 epoch and a note."""
    steps, epochs = given.take("max_steps"), given.take("max_epochs")
    if steps is not None and (count := steps.whole(1)) is not None:
        return {"maxSteps": count}
    if epochs is not None and (count := epochs.whole(1)) is not None:
        return {"epochs": count}
    name.say("todo", "how long it trains; 1 epoch was taken")
    return {"epochs": 1}


def _entry(field: Field, space: Space, pointer: str, row: algorithms.Algorithm) -> dict[str, Any]:
    entry = selectors(field)
    targets = field.take("quant_types", "target_names")
    if targets is not None:
        named = targets.names()
        if others := [each for each in named if each not in _TARGETS]:
            targets.say("missing", f"{', '.join(others)}: weights, inputs and outputs are quantized, and nothing else")
        if kept := list(dict.fromkeys(_TARGETS[each] for each in named if each in _TARGETS)):
            entry["targets"] = kept
    bits, dtype = field.take("quant_bits"), field.take("quant_dtype")
    if bits is not None and isinstance(bits.data, dict):
        entry["quantBits"] = {_TARGETS.get(key, key): each.whole(1) for key, each in bits.members()}
        if len(set(entry["quantBits"].values())) == 1:
            entry["quantBits"] = next(iter(entry["quantBits"].values()))
    else:
        space.put(entry, "quantBits", bits, pointer, f"bits_{pointer.rpartition('/')[2]}", lambda each: each.whole(1))
    if dtype is not None and (text := dtype.text()) is not None:
        if re.fullmatch(r"u?int[2-8]", text):
            entry["quantDtype"] = text
        else:
            dtype.wrong(f"there is no counterpart to {text}", "write int2 to int8 or uint2 to uint8")
    scheme, granularity = field.take("quant_scheme"), field.take("granularity")
    if scheme is not None and (text := scheme.text()) is not None:
        word = "affine" if "affine" in text else "symmetric"
        if word in row.schemes:
            entry["scheme"] = word
        else:
            scheme.say("changed", f"{row.name} is {row.schemes[0]}")
    if granularity is not None and granularity.data in ("out_channel", "per_channel") and row.keeps_zero:
        entry["granularity"] = "channel"
    elif granularity is not None and granularity.data != "default":
        granularity.say("missing", "a weight has one scale, or one for each output channel")
    if (settings := field.take("target_settings")) is not None:
        settings.say("missing", "settings of single targets: quantBits, quantDtype and scheme take maps of targets")
    return entry
