"""What takes positions of an axis together: reductions, pooling, padding, norms, look-ups in tables."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from modelpress_runner.dependency.norms import RootMeanSquare
from modelpress_runner.dependency.planes import Plane, resolved, tied
from modelpress_runner.dependency.rules.arguments import argument
from modelpress_runner.dependency.trace import Trace
from modelpress_runner.runtime.graph import tensors_in

_ZERO_OF_ZEROS = frozenset(
    ["mean", "sum", "amax", "amin", "max", "min", "norm", "linalg_vector_norm", "var", "std", "cumsum"]
)


def reduced(trace: Trace, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Reductions: what they run over is rigid, but for sums, and norms, of what is zero.

    A mean that nothing uses holds nothing: nn.MultiheadAttention averages its heads' weights for whoever may want them.
    """
    source = args[0]
    dims = _dims(func, args, kwargs, source)
    planes = trace.planes(source)
    reason = f"{trace.where(name)} runs over them"
    if name == "sum" or (name == "linalg_vector_norm" and argument(func, args, kwargs, "ord", 2) in (1, 2)):
        planes = [plane for plane in planes if not (plane.zero and set(plane.varying) <= set(dims))]
    if name == "cumsum" and all(plane.zero and plane.varying == dims for plane in planes):
        trace.put(tensors_in(out)[0], [Plane(plane.labels) for plane in planes])  # zeros add nothing to what is behind
        return
    results = tensors_in(out)
    if name == "mean" and any(set(plane.varying) & set(dims) for plane in planes):
        trace.postpone(results[0], lambda result: _reduce(trace, name, planes, dims, result, reason))
        return
    for result in results:
        _reduce(trace, name, planes, dims, result, reason)


def _reduce(trace: Trace, name: str, planes: list[Plane], dims: list[int], result: torch.Tensor, reason: str) -> None:
    planes = trace.rigid(resolved(planes, trace.units), dims, reason)
    found = []
    for plane in planes:
        size = plane.labels.dim()
        if result.dim() == size:
            found.append(Plane(plane.labels, plane.zero and name in _ZERO_OF_ZEROS))
        elif result.dim() == size - len(dims):
            kept = [d for d in range(size) if d not in dims]
            found.append(Plane(plane.labels.permute(*kept, *dims).flatten(len(kept))[..., 0], plane.zero))
        elif result.dim() > 0:
            trace.freeze([plane], reason)
    trace.put(result, found)


def _dims(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], source: torch.Tensor) -> list[int]:
    given = argument(func, args, kwargs, "dim", None)
    if given is None or given == []:
        return list(range(source.dim()))
    return sorted({d % source.dim() for d in (given if isinstance(given, list | tuple) else [given])})


def spatial(trace: Trace, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Pooling, resizing and padding of images: samples and channels stay as they are."""
    source = args[0]
    first = source.dim() - _spatial_dims(name, source)
    planes = trace.rigid(trace.planes(source), range(first, source.dim()), f"{trace.where(name)} runs over them")
    for result in tensors_in(out):
        if result.dim() == source.dim():
            trace.put(result, [Plane(plane.labels, plane.zero) for plane in planes])


def _spatial_dims(name: str, source: torch.Tensor) -> int:
    return next((n for n in (1, 2, 3) if f"{n}d" in name), source.dim() - 2)


def padded(trace: Trace, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Constant padding: padded axes are rigid."""
    source, widths = args[0], args[1]
    dims = [source.dim() - 1 - d for d in range(len(widths) // 2) if widths[2 * d] or widths[2 * d + 1]]
    planes = trace.rigid(trace.planes(source), dims, f"{trace.where(name)} adds something of a fixed size beside them")
    trace.put(out, [Plane(plane.labels, plane.zero and not (args[2:] and args[2])) for plane in planes])


def layer_norm(trace: Trace, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Statistics over the last dimensions."""
    source, shape = args[0], args[1]
    last = range(source.dim() - len(shape), source.dim())
    reason = _norm_reason(trace, name)
    given = trace.planes(source)
    if not trace.exact and name == "native_layer_norm" and len(shape) == 1 and args[2] is not None:
        trace.put(tensors_in(out)[0], _loosely(trace, source, args[2:4], reason))
        return
    trace.rigid(given, last, reason)
    for weight in tensors_in(args[2:4]):
        trace.freeze(trace.planes(weight), reason)
    trace.put(tensors_in(out)[0], [Plane(plane.labels) for plane in given])


def _loosely(trace: Trace, source: torch.Tensor, vectors: Any, reason: str) -> list[Plane]:
    """Planes of a LayerNorm's result whose channels may go, although its statistics are others then."""
    last = source.dim() - 1
    found = [plane for plane in trace.planes(source) if last not in plane.varying]
    along = [plane for plane in trace.planes(source) if plane.varying == [last]]
    trace.rigid([p for p in trace.planes(source) if last in p.varying and p.varying != [last]], [last], reason)
    for vector in tensors_in(vectors):
        shape = [1] * last + [vector.numel()]
        own = [Plane(plane.labels.reshape(shape)) for plane in trace.planes(vector)]
        along = tied((along, [last]), (own, [last]), trace.units, reason)
    name = trace.module[0] if trace.module else "layer_norm"
    trace.approximate += [(plane.labels, name) for plane in along]
    return [*(Plane(plane.labels) for plane in found), *(Plane(plane.labels, True) for plane in along)]


def norm(trace: Trace, module: nn.Module, form: RootMeanSquare, source: torch.Tensor, result: torch.Tensor) -> None:
    """A norm by the root of a mean of squares as a whole: channels that are zero may leave it."""
    reason = f"{trace.where('norm')} meets them with something of a fixed size"
    last = source.dim() - 1
    weight = module._parameters[form.parameter]
    assert weight is not None
    found = []
    for plane in trace.planes(source):
        if plane.varying != [last] or not plane.zero:
            found += trace.rigid(
                [plane], [last], f"{trace.where('norm')} takes their squares where they need not be zero"
            )
        else:
            found.append(plane)
    shape = [1] * last + [weight.numel()]
    own = [Plane(plane.labels.reshape(shape)) for plane in trace.planes(weight)]
    along = [plane for plane in found if last in plane.varying]
    across = [plane for plane in found if last not in plane.varying]
    trace.put(
        result, [Plane(p.labels, True) for p in tied((along, [last]), (own, [last]), trace.units, reason)] + across
    )


def batch_norm(trace: Trace, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Each channel alone, with a weight, a bias and statistics of its own."""
    reason = f"{trace.where(name)} meets them with something of a fixed size"
    trace.put(tensors_in(out)[0], _per_channel(trace, args[0], args[1], args[2:5], reason))


def group_norm(trace: Trace, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Statistics over each group: whole groups go."""
    source, weight, bias, groups = args[0], args[1], args[2], args[6]
    reason = _norm_reason(trace, name)
    planes = _per_channel(trace, source, weight, bias, reason)
    for plane in planes:
        if 1 not in plane.varying:
            continue
        rows = plane.labels.movedim(1, 0).reshape(groups, -1)
        if groups == 1:
            trace.freeze([plane], reason)
        else:
            trace.units.join(rows[:, :1], rows, reason)
    trace.put(tensors_in(out)[0], planes)


def _per_channel(
    trace: Trace, source: torch.Tensor, weight: torch.Tensor | None, others: Any, reason: str
) -> list[Plane]:
    """Planes of a norm's result, whose weight and other vectors have an entry for each channel."""
    dims = source.dim()
    found = trace.rigid(trace.planes(source), [d for d in range(dims) if d != 1], reason)
    shape = [1] * dims
    for vector in tensors_in((weight, others)):
        shape[1] = vector.numel()
        own = [Plane(plane.labels.reshape(shape)) for plane in trace.planes(vector)]
        found = tied((found, [1]), (own, [1]), trace.units, reason)
    # A masked weight, and with it a masked bias, give zero whatever the statistics are.
    return [Plane(plane.labels, weight is not None) for plane in found]


def _norm_reason(trace: Trace, name: str) -> str:
    where = trace.module
    if where is None or "Norm" not in type(where[1]).__name__:
        return f"{trace.where(name)} takes its statistics over them"
    kind = type(where[1]).__name__
    if kind == "GroupNorm" and getattr(where[1], "num_groups", 0) == 1:
        return f"the GroupNorm '{where[0]}' has one group and takes its statistics over them{trace.line()}"
    return f"the {kind} '{where[0]}' takes its statistics over them{trace.line()}"


def looked_up(trace: Trace, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Rows of a table."""
    reason = f"{trace.where(name)} looks them up by number"
    planes = trace.rigid(trace.planes(args[0]), [0], reason)
    trace.freeze(trace.planes(args[1]), reason)
    shape = (1,) * (out.dim() - 1)
    trace.put(out, [Plane(plane.labels.reshape(*shape, -1), True) for plane in planes])
