"""Which nodes of an ONNX graph compute with the weight of which module."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Any

_WEIGHT_INPUT = {"Conv": 1, "ConvTranspose": 1, "MatMul": 1, "Gemm": 1, "Gather": 0}
_SCOPES = "pkg.torch.onnx.name_scopes"  # metadata: the modules around a node, from the whole model inwards
_SUFFIX = ".weight"


@dataclass(frozen=True)
class Place:
    """A node.

    Attributes:
        operator: its type.
        node: its name.
        weight: name of the initializer that it takes.
        output: name of what it gives.
        result: the same behind the bias, where that is added by a node of its own.
    """

    operator: str
    node: str
    weight: str
    output: str
    result: str


Places = dict[str, list[Place]]


def places_of(graph: Any) -> Places:
    """By module the nodes that take its weight, of an onnx_ir.Graph that torch.onnx made, with its metadata."""
    found: Places = {}
    for node in graph:
        index = _WEIGHT_INPUT.get(node.op_type)
        weight = None if index is None or index >= len(node.inputs) else node.inputs[index]
        if weight is None or not weight.is_initializer():
            continue
        module = _module(node, weight.name)
        if module is not None:
            place = Place(node.op_type, node.name, weight.name, node.outputs[0].name, _result(node.outputs[0]))
            found.setdefault(module, []).append(place)
    return found


def _result(output: Any) -> str:
    uses = list(output.uses())
    if len(uses) == 1 and uses[0].node.op_type == "Add" and any(each.is_initializer() for each in uses[0].node.inputs):
        return str(uses[0].node.outputs[0].name)
    return str(output.name)


def _module(node: Any, weight: str) -> str | None:
    if weight.endswith(_SUFFIX):
        return weight.removesuffix(_SUFFIX)
    try:  # a transposed weight has a name of the exporter's
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, ""))
    except (SyntaxError, ValueError):
        return None
    return str(scopes[-2]) if isinstance(scopes, list) and len(scopes) > 1 else None
