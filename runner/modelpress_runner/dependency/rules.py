"""What each ATen operation does to labels.

Data movement does to them what it does to the numbers. Pointwise operations tie what stands at one position. What takes
several positions of an axis together, and would give something else without some of them, makes the axis rigid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from modelpress_runner.dependency.contraction import CONTRACTIONS
from modelpress_runner.dependency.planes import Plane, meet, resolved
from modelpress_runner.dependency.trace import Rule, Trace
from modelpress_runner.runtime.graph import map_tensors, tensors_in

_KEEPS_ZERO = frozenset(
    "abs alias asin asinh atan atanh clone detach expm1 floor gelu hardswish hardtanh leaky_relu neg relu relu6 round "
    "selu sgn sign silu sin sinh sqrt tan tanh trunc _to_copy _prelu_kernel elu celu mish copy lift_fresh".split()
)


_VIEWS = ("view", "_unsafe_view", "reshape", "_reshape_alias")
_ZERO_OF_ZEROS = frozenset("mean sum amax amin max min norm linalg_vector_norm var std cumsum".split())


# Pointwise ------------------------------------------------------------------------------------------------------------


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


# Data movement --------------------------------------------------------------------------------------------------------


def moved(trace: Trace, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """The same operation on the labels."""
    source = args[0]
    given = [map_tensors(arg, lambda tensor: tensor.cpu()) for arg in args[1:]]
    results = tensors_in(out)
    planes: list[list[Plane]] = [[] for _ in results]
    for plane in trace.planes(source):
        try:
            found = tensors_in(_run(func, plane.expanded(source.shape), given, kwargs))
        except Exception:
            trace.freeze([plane], f"{trace.where(name)} has no rule for labels")
            continue
        for mine, labels in zip(planes, found, strict=True):
            mine.append(plane.like(labels))
    sizes = args[1] if name in _VIEWS else ()
    left_open = list(sizes).index(-1) if -1 in sizes else None
    for result, mine in zip(results, planes, strict=True):
        trace.put(result, mine, left_open)


def _run(func: Any, labels: torch.Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    kwargs = {key: value for key, value in kwargs.items() if key not in ("dtype", "device", "layout", "pin_memory")}
    if func._schema.name.removeprefix("aten::") in _VIEWS:
        return labels.reshape(args[0])
    try:
        return func(labels, *args, **kwargs)
    except (RuntimeError, NotImplementedError):
        # Some kernels exist for floating point only; labels are far from 2^53.
        return map_tensors(func(labels.double(), *args, **kwargs), lambda t: t.long())


def same(trace: Trace, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """A tensor shaped after the first argument: its sizes follow."""
    for result in tensors_in(out):
        if result.shape == args[0].shape:
            trace.put(result, [Plane(plane.labels) for plane in trace.planes(args[0])])


def sliced(trace: Trace, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """A part of an axis. Code that takes equal parts goes on to do so where all parts lose the same places."""
    source, dim = args[0], _argument(func, args, kwargs, "dim", 0) % args[0].dim()
    size = source.shape[dim]
    result = tensors_in(out)[0]
    if result.shape[dim] == size and _argument(func, args, kwargs, "step", 1) == 1:
        return moved(trace, name, func, args, kwargs, out)
    length = result.shape[dim]
    start = (_argument(func, args, kwargs, "start", 0) or 0) % max(size, 1)
    reason = f"{trace.where(name)} takes some of them by number"
    planes = trace.planes(source)
    for plane in planes:
        if dim not in plane.varying:
            continue
        equal = _argument(func, args, kwargs, "step", 1) == 1 and length and size % length == 0 and start % length == 0
        if equal and len(plane.varying) == 1:
            _alike(trace, plane, dim, size // length, reason)
        else:
            trace.rigid([plane], [dim], reason)
    moved(trace, name, func, args, kwargs, out)
    return None


def split(trace: Trace, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Several parts of an axis; equal ones lose the same places, others make it rigid."""
    source = args[0]
    dim = _argument(func, args, kwargs, "dim", 0) % source.dim()
    parts = tensors_in(out)
    reason = f"{trace.where(name)} parts them by number"
    for plane in trace.planes(source):
        if dim not in plane.varying or len(parts) == 1:
            continue
        if len({part.shape[dim] for part in parts}) == 1 and len(plane.varying) == 1:
            _alike(trace, plane, dim, len(parts), reason)
        else:
            trace.rigid([plane], [dim], reason)
    moved(trace, name, func, args, kwargs, out)


def _alike(trace: Trace, plane: Plane, dim: int, parts: int, reason: str) -> None:
    """Ties the places of `parts` equal parts of an axis."""
    rows = plane.labels.movedim(dim, 0).reshape(parts, -1)
    trace.units.join(rows[:1], rows, reason)


def picked(trace: Trace, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Positions by numbers that the code has: those of an axis with channels are rigid."""
    source = args[0]
    if name == "index":
        dims = [d for d, index in enumerate(args[1]) if index is not None]
        if any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]):
            dims = list(range(source.dim()))
    elif name == "roll":
        dims = [d % source.dim() for d in _argument(func, args, kwargs, "dims", []) or range(source.dim())]
    else:
        dims = [_argument(func, args, kwargs, "dim", 0) % source.dim()]
    trace.rigid(trace.planes(source), dims, f"{trace.where(name)} takes some of them by number")
    moved(trace, name, func, args, kwargs, out)


def shuffled(trace: Trace, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """pixel_shuffle and channel_shuffle: what one channel is made of goes as a whole; groups lose the same places."""
    source, factor = args[:2]
    dim = source.dim() - 3 if name == "pixel_shuffle" else 1
    for plane in trace.planes(source):
        if dim not in plane.varying:
            continue
        lines = plane.labels.movedim(dim, 0)
        if name == "pixel_shuffle":
            rows = lines.reshape(-1, factor * factor, *lines.shape[1:])
            trace.units.join(rows[:, :1], rows, "")
        else:
            rows = lines.reshape(factor, -1, *lines.shape[1:])
            trace.units.join(rows[:1], rows, "")
    moved(trace, name, func, args, kwargs, out)


def unbound(trace: Trace, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Every position of an axis a tensor of its own: their number is rigid."""
    dim = _argument(func, args, kwargs, "dim", 0) % args[0].dim()
    trace.rigid(trace.planes(args[0]), [dim], f"{trace.where(name)} takes them one by one")
    moved(trace, name, func, args, kwargs, out)


def joined(trace: Trace, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Tensors side by side along an axis, an old one or a new one."""
    result = tensors_in(out)[0]
    dim = _argument(func, args, kwargs, "dim", 0) % result.dim()
    parts = [part for part in args[0] if name == "stack" or not (part.dim() == 1 and part.numel() == 0)]
    each = [trace.planes(part) for part in parts]
    if name == "stack":
        each = [[Plane(plane.labels.unsqueeze(dim), plane.zero) for plane in planes] for planes in each]
        parts = [part.unsqueeze(dim) for part in parts]
    reason = f"{trace.where(name)} puts them beside something of a fixed size"
    found: list[Plane] = []
    # Planes along the axis itself stand side by side; across it, all parts lose the same.
    along = [next((plane for plane in planes if plane.varying == [dim]), None) for planes in each]
    if any(along):
        rows = [
            (torch.zeros(part.shape[dim], dtype=torch.long) if plane is None else plane.labels.flatten())
            for part, plane in zip(parts, along, strict=True)
        ]
        shape = [1] * result.dim()
        shape[dim] = result.shape[dim]
        found.append(Plane(torch.cat(rows).reshape(shape), all(p is None or p.zero for p in along)))
    across = [
        [plane for plane in planes if plane is not line] for planes, line in zip(each, along, strict=True)
    ]
    for number, planes in enumerate(across):
        for other, partners in enumerate(across):
            if number != other:
                meet(
                    trace.rigid(planes, [dim], reason),
                    trace.rigid(partners, [dim], reason),
                    [d for d in range(result.dim()) if d != dim and result.shape[d] > 1],
                    trace.units,
                    reason,
                )
    zero = all(all(plane.zero for plane in planes) for planes in across)
    found += [Plane(plane.labels, zero) for planes in across for plane in trace.rigid(planes, [dim], reason)]
    trace.put(result, found)


# What takes an axis together ------------------------------------------------------------------------------------------


def reduced(trace: Trace, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Reductions: what they run over is rigid, but a sum over what is zero."""
    source = args[0]
    dims = _dims(func, args, kwargs, source)
    planes = trace.planes(source)
    reason = f"{trace.where(name)} runs over them"
    if name == "sum":
        exact = [p for p in planes if p.zero and set(p.varying) <= set(dims)]
        planes = [p for p in planes if p not in exact]
    planes = trace.rigid(planes, dims, reason)
    for result in tensors_in(out):
        if result.dim() == source.dim():
            trace.put(result, [Plane(p.labels, p.zero and name in _ZERO_OF_ZEROS) for p in planes])
        elif result.dim() == source.dim() - len(dims):
            kept = [d for d in range(source.dim()) if d not in dims]
            trace.put(result, [Plane(p.labels.permute(*kept, *dims).flatten(len(kept))[..., 0], p.zero) for p in planes])
        elif planes and result.dim() > 0:
            trace.freeze(planes, reason)


def _dims(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], source: torch.Tensor) -> list[int]:
    given = _argument(func, args, kwargs, "dim", None)
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


def layer_norm(trace: Trace, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Statistics over the last dimensions."""
    source, shape = args[0], args[1]
    last = range(source.dim() - len(shape), source.dim())
    reason = _norm_reason(trace, name)
    given = trace.planes(source)
    trace.rigid(given, last, reason)
    for weight in tensors_in(args[2:4]):
        trace.freeze(trace.planes(weight), reason)
    trace.put(tensors_in(out)[0], [Plane(plane.labels) for plane in given])


def batch_norm(trace: Trace, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Each channel alone, with a weight, a bias and statistics of its own."""
    source = args[0]
    vectors = tensors_in(args[1:5])
    result = tensors_in(out)[0]
    planes = _per_channel(trace, source, vectors, f"{trace.where(name)} meets them with something of a fixed size")
    trace.put(result, planes)


def group_norm(trace: Trace, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Statistics over each group: whole groups go."""
    source, weight, bias, groups = args[0], args[1], args[2], args[6]
    reason = _norm_reason(trace, name)
    vectors = tensors_in((weight, bias))
    planes = _per_channel(trace, source, vectors, reason)
    for plane in planes:
        if 1 not in plane.varying:
            continue
        rows = plane.labels.movedim(1, 0).reshape(groups, -1)
        if groups == 1:
            trace.freeze([plane], reason)
        else:
            trace.units.join(rows[:, :1], rows, reason)
    trace.put(tensors_in(out)[0], planes)


def _per_channel(trace: Trace, source: torch.Tensor, vectors: list[torch.Tensor], reason: str) -> list[Plane]:
    dims = source.dim()
    found = trace.rigid(trace.planes(source), [d for d in range(dims) if d != 1], reason)
    shape = [1] * dims
    for vector in vectors:
        shape[1] = vector.numel()
        own = [Plane(plane.labels.reshape(shape)) for plane in trace.planes(vector)]
        meet(found, own, [1], trace.units, reason)
        meet(own, found, [1], trace.units, reason)
        found = resolved([*found, *own], trace.units)
    return [Plane(plane.labels, bool(vectors)) for plane in found]


def _norm_reason(trace: Trace, name: str) -> str:
    where = trace.module
    if where is None or "Norm" not in type(where[1]).__name__:
        return f"{trace.where(name)} takes its statistics over them"
    kind = type(where[1]).__name__
    if kind == "GroupNorm" and getattr(where[1], "num_groups", 0) == 1:
        return f"the GroupNorm '{where[0]}' has one group and takes its statistics over them"
    return f"the {kind} '{where[0]}' takes its statistics over them"


def dropped(trace: Trace, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Dropout: what it gives is shaped as what it takes."""
    for result in tensors_in(out):
        trace.put(result, trace.planes(args[0]))


def gated(trace: Trace, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """glu: the halves of an axis, one times a function of the other."""
    source = args[0]
    dim = _argument(func, args, kwargs, "dim", -1) % source.dim()
    reason = f"{trace.where(name)} parts them by number"
    planes = trace.planes(source)
    for plane in planes:
        if dim in plane.varying:
            if len(plane.varying) == 1:
                _alike(trace, plane, dim, 2, reason)
            else:
                trace.rigid([plane], [dim], reason)
    size = out.shape[dim]
    halves = [
        Plane(p.labels.narrow(dim, 0, size) if dim in p.varying else p.labels, p.zero)
        for p in resolved(planes, trace.units)
    ]
    trace.put(out, halves)


def looked_up(trace: Trace, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Rows of a table."""
    reason = f"{trace.where(name)} looks them up by number"
    planes = trace.rigid(trace.planes(args[0]), [0], reason)
    trace.freeze(trace.planes(args[1]), reason)
    shape = (1,) * (out.dim() - 1)
    trace.put(out, [Plane(plane.labels.reshape(*shape, -1), True) for plane in planes])


def unknown(trace: Trace, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """No rule: everything that passes stays."""
    reason = f"it is not known what {trace.where(name)} does with them"
    for tensor in tensors_in((args, kwargs)):
        trace.freeze(trace.planes(tensor), reason)


def nothing(trace: Trace, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """What gives no tensor, or only fills one that keeps its shape."""


def _argument(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], name: str, default: Any) -> Any:
    if name in kwargs:
        return kwargs[name]
    for number, argument in enumerate(func._schema.arguments):
        if argument.name == name:
            if number < len(args):
                return args[number]
            return argument.default_value if argument.has_default_value() else default
    return default


def _table() -> dict[str, Rule]:
    rules: dict[str, Rule] = {}

    def add(rule: Rule, names: str) -> None:
        for name in names.split():
            rules[name] = rule

    add(
        moved,
        "view _unsafe_view reshape _reshape_alias permute transpose t unsqueeze squeeze expand repeat flip movedim "
        "numpy_T mT pixel_unshuffle diagonal unfold view_as_real view_as_complex",
    )
    add(moved, "detach alias contiguous lift_fresh")
    add(same, "empty_like zeros_like ones_like full_like rand_like randn_like")
    add(sliced, "slice narrow")
    add(split, "split split_with_sizes unsafe_split unsafe_split_with_sizes chunk unsafe_chunk split_copy")
    add(picked, "index index_select select roll")
    add(shuffled, "pixel_shuffle channel_shuffle native_channel_shuffle")
    add(unbound, "unbind")
    add(joined, "cat stack")
    add(
        reduced,
        "mean sum amax amin max min var std var_mean std_mean norm linalg_vector_norm argmax argmin _softmax "
        "_log_softmax softmax log_softmax cumsum cumprod logsumexp sort topk median prod all any",
    )
    add(
        spatial,
        "max_pool1d max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d "
        "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d adaptive_max_pool2d adaptive_max_pool1d "
        "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_bilinear2d upsample_bicubic2d "
        "upsample_linear1d upsample_trilinear3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa reflection_pad1d "
        "reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d",
    )
    add(layer_norm, "native_layer_norm _fused_rms_norm")
    add(batch_norm, "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm")
    add(group_norm, "native_group_norm")
    add(dropped, "native_dropout _fused_dropout bernoulli")
    add(gated, "glu")
    add(looked_up, "embedding")
    add(
        pointwise,
        "masked_fill where _prelu_kernel copy maximum minimum addcmul addcdiv lerp clamp hardswish hardsigmoid hardtanh "
        "elu celu selu leaky_relu gelu silu mish softplus softshrink hardshrink threshold relu6 log_sigmoid_forward "
        "rrelu_with_noise logit nan_to_num rsub",
    )
    add(nothing, "fill zero uniform normal bernoulli_ random set_ resize_ sym_size sym_stride item _local_scalar_dense")
    rules.update(CONTRACTIONS)
    rules["constant_pad_nd"] = padded
    return rules


def padded(trace: Trace, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Constant padding: padded axes are rigid."""
    source, widths = args[0], args[1]
    dims = [source.dim() - 1 - d for d in range(len(widths) // 2) if widths[2 * d] or widths[2 * d + 1]]
    planes = trace.rigid(trace.planes(source), dims, f"{trace.where(name)} adds something of a fixed size beside them")
    trace.put(out, [Plane(plane.labels, plane.zero and not (args[2:] and args[2])) for plane in planes])


RULES = _table()
