"""Operations on what stands at one position, and those that keep the shape of their argument."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from modelpress_runner.dependency.planes import Plane, meet
from modelpress_runner.dependency.trace import Trace
from modelpress_runner.runtime.graph import tensors_in

_KEEPS_ZERO = frozenset(
    [
        "abs",
        "alias",
        "asin",
        "asinh",
        "atan",
        "atanh",
        "clone",
        "detach",
        "expm1",
        "floor",
        "gelu",
        "hardswish",
        "hardtanh",
        "leaky_relu",
        "neg",
        "relu",
        "relu6",
        "round",
        "selu",
        "sgn",
        "sign",
        "silu",
        "sin",
        "sinh",
        "sqrt",
        "tan",
        "tanh",
        "trunc",
        "_to_copy",
        "_prelu_kernel",
        "elu",
        "celu",
        "mish",
        "copy",
        "lift_fresh",
    ]
)


def pointwise(trace: Trace, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Operands broadcast; what stands at one position is tied."""
    results = tensors_in(out)
    dims = max((t.dim() for t in results), default=0)
    operands = [t for t in tensors_in((args, kwargs)) if t.dim() <= dims]
    aligned = [(t, [plane.aligned(dims) for plane in trace.planes(t)]) for t in operands]
    reason = f"{trace.where(name)} meets them with something of a fixed size"
    for number, (_, planes) in enumerate(aligned):
        for other, (tensor, partners) in enumerate(aligned):
            if number != other:
                meet(planes, partners, real_dims(tensor, dims), trace.units, reason)
    planes = [plane for _, each in aligned for plane in each]
    keeps = _keeps_zero(name.rstrip("_"), aligned, args)
    for result in results:
        if result.dim() == dims:
            trace.put(result, [Plane(plane.labels, plane.zero and keeps) for plane in planes])


def real_dims(tensor: torch.Tensor, dims: int) -> list[int]:
    """The dimensions, of `dims`, along which a tensor brings positions of its own: neither missing, nor of size 1, nor
    expanded."""
    missing = dims - tensor.dim()
    return [
        missing + d
        for d, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True))
        if size > 1 and stride != 0
    ]


def _keeps_zero(name: str, operands: Sequence[tuple[torch.Tensor, list[Plane]]], args: tuple[Any, ...]) -> bool:
    if name in _KEEPS_ZERO or name == "mul":
        return True
    if name == "div":
        return bool(operands[0][1])
    if name in ("add", "sub"):
        numbers = [arg for arg in args[:2] if not isinstance(arg, torch.Tensor)]
        return not any(numbers) and all(planes and all(plane.zero for plane in planes) for _, planes in operands)
    return False


def same(trace: Trace, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """A tensor shaped after the first argument: its sizes follow."""
    for result in tensors_in(out):
        if result.shape == args[0].shape:
            trace.put(result, [Plane(plane.labels) for plane in trace.planes(args[0])])


def dropped(trace: Trace, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Dropout: what it gives is shaped as what it takes."""
    for result in tensors_in(out):
        trace.put(result, trace.planes(args[0]))


def unknown(trace: Trace, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """No rule: everything that passes stays."""
    reason = f"it is not known what {trace.where(name)} does with them"
    for tensor in tensors_in((args, kwargs)):
        trace.freeze(trace.planes(tensor), reason)


def nothing(trace: Trace, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """What gives no tensor, or only fills one that keeps its shape."""
