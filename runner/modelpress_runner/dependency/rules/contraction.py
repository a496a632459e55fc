"""What products do to labels: matrix products, convolutions, attention.

The terms of a contracted axis are summed, so one can go if its factor on the other side goes with it and one of both is
exactly zero while it is masked; weights are. The result has the axes that are free on either side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from modelpress_runner.dependency.planes import Plane, compact, meet, resolved, rigid, tied
from modelpress_runner.dependency.rules.pointwise import unknown
from modelpress_runner.dependency.trace import Rule, Trace
from modelpress_runner.dependency.units import LABEL
from modelpress_runner.runtime.graph import tensors_in

_BATCH, _ROW, _COLUMN = 0, 1, 2


def _contract(
    trace: Trace, left: tuple[torch.Tensor, list[Plane]], right: tuple[torch.Tensor, list[Plane]], name: str
) -> list[Plane]:
    """Planes (b, n, m) of the product of (b, n, k) and (b, k, m)."""
    where = trace.where(name)
    reason = f"{where} takes them together with something of a fixed size"
    a, p = left
    b, q = right
    # A channel that stands in several dimensions, as those of attention's heads do, goes by the others.
    p = _apart(trace, p, _COLUMN, where)
    q = _apart(trace, q, _ROW, where)
    inner = ([x for x in p if x.varying == [_COLUMN]], [x for x in q if x.varying == [_ROW]])
    if inner[0] or inner[1]:
        for x in inner[0]:
            for y in inner[1]:
                if x.zero or y.zero:
                    trace.units.join(x.labels.flatten(), y.labels.flatten(), reason)
                else:
                    trace.freeze([x, y], f"{where} sums them up where they need not be zero")
        if not (inner[0] and inner[1]):
            trace.freeze([*inner[0], *inner[1]], reason)
    p = [x for x in p if x.varying != [_COLUMN]]
    q = [x for x in q if x.varying != [_ROW]]
    for mine, other, theirs in ((p, b, q), (q, a, p)):
        over = [x for x in mine if _BATCH in x.varying]
        partners = [x for x in theirs if _BATCH in x.varying]
        meet(over, partners, [_BATCH] if other.shape[0] > 1 and other.stride(0) else [], trace.units, reason)
    return resolved([*p, *q], trace.units)


def _apart(trace: Trace, planes: list[Plane], dim: int, where: str) -> list[Plane]:
    out = []
    for plane in planes:
        if dim in plane.varying and len(plane.varying) > 1:
            left = rigid(plane, [dim], trace.units, f"{where} sums them up")
            out += [] if left is None else [left]
        else:
            out.append(plane)
    return resolved(out, trace.units)


def _three(planes: list[Plane]) -> list[Plane]:
    return [Plane(plane.labels.unsqueeze(0), plane.zero) for plane in planes]


def matrices(trace: Trace, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """mm, bmm, addmm, baddbmm."""
    added = name.rstrip("_") in ("addmm", "baddbmm")
    a, b = args[1:3] if added else args[:2]
    if a.dim() == 2:
        found = _contract(trace, (a[None], _three(trace.planes(a))), (b[None], _three(trace.planes(b))), name)
        found = [Plane(plane.labels[0], plane.zero) for plane in found]
    else:
        found = _contract(trace, (a, trace.planes(a)), (b, trace.planes(b)), name)
    _put(trace, out, found, args[0] if added else None, name)


def vectors(trace: Trace, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """mv, dot, addmv: as matrices with one column."""
    added = name.rstrip("_") == "addmv"
    a, b = args[1:3] if added else args[:2]
    left = a if a.dim() == 2 else a[None]
    p = [Plane(x.labels if a.dim() == 2 else x.labels[None], x.zero) for x in trace.planes(a)]
    q = [Plane(x.labels[:, None], x.zero) for x in trace.planes(b)]
    found = _contract(trace, (left[None], _three(p)), (b[None, :, None], _three(q)), name)
    _put(
        trace,
        out,
        [Plane(x.labels.reshape(-1) if out.dim() else x.labels.reshape(()), x.zero) for x in found],
        args[0] if added else None,
        name,
    )


def _put(trace: Trace, out: torch.Tensor, found: list[Plane], bias: torch.Tensor | None, name: str) -> None:
    """The result, with a bias or without."""
    if bias is not None:
        own = [plane.aligned(out.dim()) for plane in trace.planes(bias)]
        reason = f"{trace.where(name)} meets them with something of a fixed size"
        real = [d for d in range(out.dim() - bias.dim(), out.dim()) if bias.shape[d - out.dim()] > 1]
        found = _biased(trace, found, own, [d for d, size in enumerate(out.shape) if size > 1], real, reason)
    trace.put(out, found)


def _biased(
    trace: Trace, found: list[Plane], own: list[Plane], wide: Sequence[int], real: Sequence[int], reason: str
) -> list[Plane]:
    """Planes of a product, real along `wide`, plus a bias, real along `real`: zero where both are."""
    tied((found, wide), (own, real), trace.units, reason)
    zero = bool(own) and all(plane.zero for plane in own)
    return [Plane(plane.labels, plane.zero and zero) for plane in resolved(found, trace.units)]


def convolution(trace: Trace, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """convolution(input, weight, bias, stride, padding, dilation, transposed, output_padding, groups)."""
    source, weight, bias, transposed, groups = args[0], args[1], args[2], args[6], args[8]
    where = trace.where(name)
    reason = f"{where} takes them together with something of a fixed size"
    dims = source.dim()
    given = trace.rigid(trace.planes(source), [0, *range(2, dims)], f"{where} slides over them")
    own = trace.planes(weight)
    own = trace.rigid(own, range(2, weight.dim()), f"{where} slides over them")
    # The kernel's dimension 0 is the outputs', or the inputs' of a transposed one; the other holds those of one group.
    outer, inner = ([p for p in own if p.varying == [d]] for d in (0, 1))
    mixed = [p for p in own if len(p.varying) > 1]
    trace.freeze(mixed, reason)
    channels = _flat(given, source.shape[1])
    if groups == 1:
        into, made = (outer, inner) if transposed else (inner, outer)
        made_labels = _flat(made, out.shape[1])
        trace.units.join(channels, _flat(into, source.shape[1]), reason)
    else:
        axes = trace.axes.get(id(weight), {})
        made_labels = axes.get("out", torch.zeros(out.shape[1], dtype=LABEL))
        _join_groups(trace, channels, axes.get("in"), made_labels, groups, reason)
    shape = [1] * out.dim()
    shape[1] = out.shape[1]
    found = resolved([Plane(compact(made_labels.reshape(shape)), True)], trace.units)
    if bias is not None:
        own = [Plane(plane.labels.reshape(shape), plane.zero) for plane in trace.planes(bias)]
        found = _biased(trace, found, own, [1], [1], reason)
    trace.put(out, found)


def _flat(planes: Sequence[Plane], size: int) -> torch.Tensor:
    """Labels (size,); 0: no channels."""
    for plane in planes:
        if plane.labels.numel() == size:
            return plane.labels.flatten()
    return torch.zeros(size, dtype=LABEL)


def by_group(groups: int, inputs: int, outputs: int) -> bool:
    """Whether a convolution loses whole groups, outputs with inputs; if not, the same places of all groups.

    With many small groups that keeps more freedom than to keep all of them equal.
    """
    return groups > 1 and groups >= min(inputs, outputs) // groups


def _join_groups(
    trace: Trace, channels: torch.Tensor, into: torch.Tensor | None, made: torch.Tensor, groups: int, reason: str
) -> None:
    rows, made_rows = channels.reshape(groups, -1), made.reshape(groups, -1)
    if by_group(groups, channels.numel(), made.numel()):
        trace.units.join(made_rows[:, :1], made_rows, reason)
        trace.units.join(made_rows[:, :1], rows, reason)
    else:
        trace.units.join(channels, torch.zeros_like(channels) if into is None else into, reason)
        trace.units.join(rows[:1], rows, reason)
        trace.units.join(made_rows[:1], made_rows, reason)


def attention(trace: Trace, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """scaled_dot_product_attention of (..., length, width) as one kernel."""
    query, key, value = args[:3]
    where = trace.where("attention")
    reason = f"{where} takes them together with something of a fixed size"
    results = tensors_in(out)
    result = results[0]
    dims = result.dim()
    last = dims - 1
    q, k = (trace.rigid(trace.planes(t), [dims - 2, last], f"{where} divides by their number") for t in (query, key))
    v = trace.rigid(trace.planes(value), [dims - 2], reason)
    alone = [plane for plane in v if plane.varying == [last]]
    v = trace.rigid([plane for plane in v if plane.varying != [last]], [last], reason)
    heads = range(dims - 2)
    members = [(query, q), (key, k), (value, v)]
    members = [(tensor, _repeated(planes, tensor, query)) for tensor, planes in members]
    for mask in tensors_in((args[3:], kwargs)):
        across = range(mask.dim() - 2, mask.dim())
        bias = trace.rigid(trace.planes(mask), across, f"{where} adds them to what it compares")
        members.append((mask[(None,) * (dims - mask.dim())], [plane.aligned(dims) for plane in bias]))
    for number, (_, planes) in enumerate(members):
        for other, (tensor, partners) in enumerate(members):
            if number != other:
                real = [d for d in heads if tensor.shape[d] > 1 and tensor.stride(d)]
                meet(planes, partners, real, trace.units, reason)
    found = [Plane(plane.labels) for _, planes in members[:2] for plane in planes]
    mixed = [*found, *members[2][1]]
    if any(set(plane.varying) & set(heads) for plane in mixed):
        alone = trace.rigid(alone, [last], f"{where} has several heads of that width")
    trace.put(result, [*mixed, *alone])


def _repeated(planes: list[Plane], tensor: torch.Tensor, query: torch.Tensor) -> list[Plane]:
    """Planes of keys and values that serve several heads of the query each, one for each of those."""
    out = []
    for plane in planes:
        labels = plane.labels
        for d in range(tensor.dim() - 2):
            if labels.shape[d] > 1 and tensor.shape[d] != query.shape[d]:
                labels = labels.repeat_interleave(query.shape[d] // tensor.shape[d], d)
        out.append(Plane(labels, plane.zero))
    return out


def grouped(trace: Trace, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """grouped_mm of rows (n, k), which lie by expert, and a matrix (k, m) for each expert: as with one matrix."""
    rows, experts = args[:2]
    if rows.dim() != 2 or experts.dim() != 3 or tensors_in((args[3:], kwargs.get("bias"))):
        unknown(trace, name, func, args, kwargs, out)
        return
    for tensor in tensors_in((args[2:], kwargs)):
        trace.freeze(trace.planes(tensor), f"{trace.where(name)} takes experts by number")
    given = trace.rigid(trace.planes(experts), [0], f"{trace.where(name)} takes experts by number")
    found = _contract(trace, (rows[None], _three(trace.planes(rows))), (experts[:1], given), name)
    trace.put(out, [Plane(plane.labels[0], plane.zero) for plane in found])


CONTRACTIONS: dict[str, Rule] = {
    **dict.fromkeys(("mm", "bmm", "addmm", "baddbmm"), matrices),
    **dict.fromkeys(("_grouped_mm", "grouped_mm_fallback"), grouped),
    **dict.fromkeys(("mv", "dot", "addmv", "vdot"), vectors),
    **dict.fromkeys(("convolution", "_convolution", "cudnn_convolution", "mkldnn_convolution"), convolution),
    **dict.fromkeys(
        (
            "_scaled_dot_product_flash_attention_for_cpu",
            "_scaled_dot_product_flash_attention",
            "_scaled_dot_product_efficient_attention",
            "_scaled_dot_product_cudnn_attention",
            "_scaled_dot_product_fused_attention_overrideable",
        ),
        attention,
    ),
}
