"""Distillers of NNI: distill stages with layer mappings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .notes import Field
from .pruners import GIVEN
from .quantizers import length

_LOSSES = {"mse": "MSE", "kl": "KL"}


def distill_stages(name: Field, entries: Sequence[Field], given: Field) -> list[dict[str, Any]]:
    """The stage that a distiller becomes."""
    mappings: list[dict[str, Any]] = []
    for entry in entries:
        if entry.mapping():
            mappings += _mappings(entry)
    block: dict[str, Any] = {}
    origin = given.take("origin_loss_lambda")
    weight = origin.number(0) if origin is not None else 1.0
    block["lossWeights"] = [1.0 if weight is None else weight, 0.0]
    if mappings:
        block["layerMappings"] = mappings
    block |= length(given, name)
    if given.take("teacher_model") is not None:
        given.say("todo", "the teacher: entrypoint or given under teacher; left out, the dense model teaches")
    given.take("teacher_predict")
    given.leave({}, GIVEN)
    return [{"distill": block}]


def _mappings(entry: Field) -> list[dict[str, Any]]:
    settings: dict[str, Any] = {}
    if (weight := entry.take("lambda")) is not None and (value := weight.number(0)) is not None:
        settings["weight"] = value
    if (method := entry.take("apply_method")) is not None:
        if str(method.data) in _LOSSES:
            settings["lossType"] = _LOSSES[str(method.data)]
        else:
            method.wrong(f"there is no counterpart to {method.data}", "write mse or kl")
    link = entry.take("link")
    linked = [] if link is None or link.data == "auto" else link.names()
    if len(linked) > 1 and link is not None:
        link.say("changed", f"a layer learns from one of the teacher's; {linked[0]} was taken")
    names, patterns = entry.take("op_names"), entry.take("op_names_re")
    if (types := entry.take("op_types")) is not None:
        types.say("missing", "layers are mapped by name; name them")
    teacher = {"teacher": linked[0]} if linked else {}
    students = names.names() if names is not None else []
    out = [{"student": student, **teacher, **settings} for student in students]
    if patterns is not None:
        out += [{"studentRe": f"(?:{pattern}).*", **settings} for pattern in patterns.names()]
    if not out:
        entry.wrong("it names no layer", "add op_names")
    entry.leave({}, ("target_names",))
    return out
