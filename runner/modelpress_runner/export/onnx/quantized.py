"""Fake quantization in ONNX: QuantizeLinear and DequantizeLinear, and weights that are integers in the file.

A runtime replaces an operator between those two by one that computes in integers. Weights are rounded here, as torch
rounds them, and kept as integers of the fewest bits that hold their range. What a runtime would not recognise is
rewritten so that it does, with the same values: transposed weights, and rows of tables that are looked up.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch.export import ExportedProgram

from modelpress_runner.export.pt2.equivalence import NotPortableError

_DOMAIN, _OPERATOR = "modelpress", "FakeQuantize"
_WEIGHT_TYPES = (ml_dtypes.int4, ml_dtypes.uint4, np.int8, np.uint8, np.int16, np.uint16)
_NARROW = 64  # 2 * 255 * 64 < 2^15
_Array = np.ndarray[Any, Any]


def marked(program: ExportedProgram) -> tuple[ExportedProgram, bool]:
    """The program with fake quantization as operators of our own, for `lower`; and whether there is any."""
    aten = torch.ops.aten
    table = {
        aten.fake_quantize_per_channel_affine.default: _per_channel,
        aten.fake_quantize_per_tensor_affine.default: _per_tensor,
        aten.fake_quantize_per_tensor_affine.tensor_qparams: _per_tensor_of_tensors,
    }
    if not any(node.target in table for node in program.graph.nodes):
        return program, False
    return program.run_decompositions(table), True


def lower(document: Any) -> None:
    """Turns the marks of an onnx_ir.Model into integers.

    Raises:
        NotPortableError: a scale or zero point is computed, or a range fits no integer type of ONNX.
    """
    graph = document.graph
    made: dict[Any, Any] = {}
    for node in list(graph):
        if node.domain == _DOMAIN and node.op_type == _OPERATOR:
            _lower(graph, node, made)
    document.opset_imports.pop(_DOMAIN, None)
    _move_transposes(graph)
    _look_up_rows(graph)
    _drop_unused(graph)


def described(document: Any) -> str:
    """`int8: 12 tensors, uint4: 1 tensor`: the integers among the weights."""
    kinds = Counter(
        _type_name(node.inputs[0].const_value)
        for node in document.graph
        for value in node.inputs[:1]
        if value is not None
        and node.op_type in ("DequantizeLinear", "Gather")
        and value.is_initializer()
        and _type_name(value.const_value) in {np.dtype(kind).name for kind in _WEIGHT_TYPES}
    )
    kept = ", ".join(f"{kind}: {count} tensor{'' if count == 1 else 's'}" for kind, count in sorted(kinds.items()))
    return kept or "activations"


def is_wide(document: Any) -> bool:
    """Whether a weight is farther from its zero than 64 levels: two products of it with bytes may pass 32767."""
    for node in document.graph:
        if node.op_type != "DequantizeLinear" or not node.inputs[0].is_initializer():
            continue
        levels, zero = (node.inputs[index].const_value.numpy().astype(np.int32) for index in (0, 2))
        if max(abs(int(levels.max() - zero.min())), abs(int(levels.min() - zero.max()))) > _NARROW:
            return True
    return False


def _type_name(tensor: Any) -> str:
    return str(np.dtype(tensor.dtype.numpy()).name)


def _per_channel(
    x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, axis: int, low: int, high: int
) -> torch.Tensor:
    return _mark((x, scale, zero_point), {"axis": axis % x.ndim, "low": low, "high": high})


def _per_tensor(x: torch.Tensor, scale: float, zero_point: int, low: int, high: int) -> torch.Tensor:
    return _mark((x,), {"scale": float(scale), "zero_point": int(zero_point), "low": low, "high": high})


def _per_tensor_of_tensors(
    x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, low: int, high: int
) -> torch.Tensor:
    return _mark((x, scale, zero_point), {"low": low, "high": high})


def _mark(inputs: tuple[torch.Tensor, ...], attributes: dict[str, Any]) -> torch.Tensor:
    x = inputs[0]
    return torch.onnx.ops.symbolic(
        f"{_DOMAIN}::{_OPERATOR}", inputs, attributes, dtype=x.dtype, shape=x.shape, version=1
    )


def _lower(graph: Any, node: Any, made: dict[Any, Any]) -> None:
    attributes = {name: each.value for name, each in node.attributes.items()}
    low, high, axis = attributes["low"], attributes["high"], attributes.get("axis")
    if "scale" in attributes:
        scale: _Array = np.asarray(attributes["scale"], np.float32)
        zero: _Array = np.asarray(attributes["zero_point"], np.int64)
    else:
        found = [_constant(value) for value in node.inputs[1:3]]
        if found[0] is None or found[1] is None:
            raise NotPortableError("a scale of fake quantization is computed; only constants can be kept in integers")
        scale, zero = found[0].astype(np.float32), found[1].astype(np.int64)
        if axis is None:
            scale, zero = scale.reshape(()), zero.reshape(())
    x = node.inputs[0]
    weight = _constant(x)
    if weight is None:
        result = _activation(graph, node, x, scale, zero, (low, high), axis)
    else:
        key = (x.name, scale.tobytes(), zero.tobytes(), low, high, axis)
        if key not in made:
            made[key] = _weight(graph, node, weight, scale, zero, (low, high), axis)
        result = made[key]
    _replace(graph, node, result)


def _activation(
    graph: Any, node: Any, x: Any, scale: _Array, zero: _Array, limits: tuple[int, int], axis: int | None
) -> Any:
    """x -> QuantizeLinear -> DequantizeLinear, in unsigned integers: those that processors multiply with weights."""
    low, high = limits
    if low < 0:  # the same numbers, counted from zero
        bits = 8 if low >= -128 and high <= 127 else 16
        shift = 2 ** (bits - 1)
        low, high, zero = low + shift, high + shift, zero + shift
    kind: Any = np.uint8 if high <= 255 else np.uint16
    if low < 0 or high > np.iinfo(kind).max or zero.min() < 0 or zero.max() > np.iinfo(kind).max:
        raise NotPortableError(f"fake quantization to {limits[0]}..{limits[1]} fits no integers that ONNX has")
    if (low, high) != (0, int(np.iinfo(kind).max)):
        if axis is not None:
            raise NotPortableError(
                f"activations are quantized to {limits[0]}..{limits[1]} by channel; only whole ranges can be"
            )
        bounds = [((end - zero) * scale).astype(np.float32) for end in (low, high)]
        x = _insert(graph, node, "Clip", [x, *(_initializer(graph, f"{x.name}_bound", end) for end in bounds)], {}, x)
    name = node.outputs[0].name
    scales, zeros = _initializer(graph, f"{name}_scale", scale), _initializer(graph, f"{name}_zero", zero.astype(kind))
    given = {} if axis is None else {"axis": axis}
    levels = _insert(graph, node, "QuantizeLinear", [x, scales, zeros], given, x, zeros.dtype)
    return _insert(graph, node, "DequantizeLinear", [levels, scales, zeros], given, x)


def _weight(
    graph: Any, node: Any, weight: _Array, scale: _Array, zero: _Array, limits: tuple[int, int], axis: int | None
) -> Any:
    """Integers -> DequantizeLinear."""
    shape = [-1 if index == axis else 1 for index in range(weight.ndim)] if axis is not None else []
    across, zeros = scale.reshape(shape), zero.reshape(shape)
    # As torch does it: a product with the inverse, halves to even.
    levels = np.rint(weight.astype(np.float32) * (np.float32(1) / across)) + zeros
    levels = np.clip(levels, *limits)
    kind = _smallest(min(limits[0], int(zero.min())), max(limits[1], int(zero.max())))
    if any(consumer.op_type == "Gather" for consumer, _ in node.outputs[0].uses()) and np.dtype(kind).itemsize == 1:
        kind = kind if kind in (np.int8, np.uint8) else np.int8  # no runtime looks up rows of four bits
    return _dequantized(
        graph,
        node,
        levels.astype(np.int32).astype(kind),
        scale,
        zero.astype(np.int32).astype(kind),
        axis,
        node.inputs[0].name,
    )


def _smallest(low: int, high: int) -> Any:
    for kind in _WEIGHT_TYPES:
        info = ml_dtypes.iinfo(kind)
        if info.min <= low and high <= info.max:
            return kind
    raise NotPortableError(f"fake quantization to {low}..{high} fits no integers that ONNX has")


def _dequantized(
    graph: Any, before: Any, levels: _Array, scale: _Array, zero: _Array, axis: int | None, name: str
) -> Any:
    inputs = [
        _initializer(graph, f"{name}_integers", levels),
        _initializer(graph, f"{name}_scale", scale),
        _initializer(graph, f"{name}_zero", zero),
    ]
    made = _insert(graph, before, "DequantizeLinear", inputs, {} if axis is None else {"axis": axis}, inputs[0])
    import onnx_ir as ir

    made.type = ir.TensorType(ir.DataType.FLOAT)
    return made


def _move_transposes(graph: Any) -> None:
    """DequantizeLinear -> Transpose as a DequantizeLinear of transposed integers: what a product of integers takes."""
    for node in list(graph):
        source = node.inputs[0].producer() if node.op_type == "Transpose" and node.inputs[0] is not None else None
        if source is None or source.op_type != "DequantizeLinear" or not source.inputs[0].is_initializer():
            continue
        levels, scale, zero = (each.const_value.numpy() for each in source.inputs)
        found = node.attributes.get("perm")
        order = list(found.value) if found is not None else list(reversed(range(levels.ndim)))
        axis = source.attributes["axis"].value if "axis" in source.attributes else None
        moved = np.ascontiguousarray(levels.transpose(order))
        name = f"{source.inputs[0].name}_transposed"
        result = _dequantized(graph, node, moved, scale, zero, None if axis is None else order.index(axis), name)
        _replace(graph, node, result)
        _remove_if_unused(graph, source)


def _look_up_rows(graph: Any) -> None:
    """DequantizeLinear -> Gather of rows as Gather -> times scale: else the whole table is made float at each call."""
    import onnx_ir as ir

    for node in list(graph):
        source = node.inputs[0].producer() if node.op_type == "Gather" and node.inputs[0] is not None else None
        if source is None or source.op_type != "DequantizeLinear" or not source.inputs[0].is_initializer():
            continue
        axis = source.attributes["axis"].value if "axis" in source.attributes else None
        along = node.attributes["axis"].value if "axis" in node.attributes else 0
        levels, scale, zero = source.inputs
        if along != 0 or axis not in (None, 0) or levels.const_value.numpy().ndim != 2:
            continue
        rows = _insert(graph, node, "Gather", [levels, node.inputs[1]], {"axis": 0}, node.outputs[0], levels.dtype)
        if axis is None:
            result = _insert(graph, node, "DequantizeLinear", [rows, scale, zero], {}, node.outputs[0])
        else:
            result = _insert(graph, node, "Cast", [rows], {"to": ir.DataType.FLOAT.value}, node.outputs[0])
            if zero.const_value.numpy().any():
                zeros = _column(graph, f"{zero.name}_column", zero.const_value.numpy().astype(np.float32))
                own = _insert(graph, node, "Gather", [zeros, node.inputs[1]], {"axis": 0}, None)
                result = _insert(graph, node, "Sub", [result, own], {}, node.outputs[0])
            scales = _column(graph, f"{scale.name}_column", scale.const_value.numpy())
            own = _insert(graph, node, "Gather", [scales, node.inputs[1]], {"axis": 0}, None)
            result = _insert(graph, node, "Mul", [result, own], {}, node.outputs[0])
        _replace(graph, node, result)
        _remove_if_unused(graph, source)


def _column(graph: Any, name: str, values: _Array) -> Any:
    return _initializer(graph, name, values.reshape(-1, 1))


def _constant(value: Any) -> _Array | None:
    """The numbers of a value that is the same at each call: a weight, or one in another shape."""
    if value is None:
        return None
    if value.const_value is not None:
        found: _Array = value.const_value.numpy()
        return found
    node = value.producer()
    if node is None:
        return None
    if node.op_type == "Identity":
        return _constant(node.inputs[0])
    if node.op_type == "Reshape":
        inner, shape = _constant(node.inputs[0]), _constant(node.inputs[1])
        return None if inner is None or shape is None else inner.reshape([int(size) for size in shape])
    if node.op_type == "Transpose" and "perm" in node.attributes:
        inner = _constant(node.inputs[0])
        return None if inner is None else inner.transpose(list(node.attributes["perm"].value))
    return None


def _initializer(graph: Any, name: str, values: _Array) -> Any:
    import onnx_ir as ir

    free, number = name, 1
    while free in graph.initializers:
        free, number = f"{name}_{number}", number + 1
    value = ir.Value(name=free, const_value=ir.Tensor(np.ascontiguousarray(values), name=free))
    value.shape, value.dtype = ir.Shape(values.shape), value.const_value.dtype
    graph.register_initializer(value)
    return value


def _insert(
    graph: Any, before: Any, operator: str, inputs: list[Any], attributes: dict[str, Any], like: Any, dtype: Any = None
) -> Any:
    import onnx_ir as ir

    node = ir.node(operator, inputs, attributes)
    made = node.outputs[0]
    made.name = f"{operator.lower()}_{_next(graph)}"
    if like is not None:
        made.shape, made.type = like.shape, ir.TensorType(dtype) if dtype is not None else like.type
    graph.insert_before(before, node)
    return made


def _next(graph: Any) -> int:
    graph.meta["modelpress"] = graph.meta.get("modelpress", 0) + 1
    return int(graph.meta["modelpress"])


def _replace(graph: Any, node: Any, result: Any) -> None:
    old = node.outputs[0]
    old.replace_all_uses_with(result, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _remove_if_unused(graph: Any, node: Any) -> None:
    if not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
        graph.remove(node, safe=True)


def _drop_unused(graph: Any) -> None:
    for node in reversed(list(graph)):
        if all(not value.uses() and not value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
