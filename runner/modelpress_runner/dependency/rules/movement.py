"""Data movement: the same operation is run on the labels.

Code that takes parts of an axis by number goes on to do so; what that allows to go is said here.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn

from modelpress_runner.dependency.planes import Plane, meet, reshaped
from modelpress_runner.dependency.rules.arguments import argument
from modelpress_runner.dependency.rules.pointwise import unknown
from modelpress_runner.dependency.sizes import is_attribute
from modelpress_runner.dependency.trace import Trace
from modelpress_runner.dependency.units import LABEL
from modelpress_runner.runtime.graph import map_tensors, tensors_in

_VIEWS = ("view", "_unsafe_view", "reshape", "_reshape_alias")


def moved(
    trace: Trace,
    name: str,
    func: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    out: Any,
    along: Collection[int] | None = None,
) -> None:
    """The same operation on the labels. `along`: the only dimensions that it does something along; None: any."""
    source = args[0]
    given = [map_tensors(arg, lambda tensor: tensor.cpu()) for arg in args[1:]]
    results = tensors_in(out)
    planes: list[list[Plane]] = [[] for _ in results]
    for plane in trace.planes(source):
        try:
            if name in _VIEWS and not isinstance(args[1], torch.dtype):
                found = [reshaped(plane.labels, source.shape, results[0].shape)]
            elif name == "repeat":  # copies of what is the same all along are that again
                own = plane.aligned(len(args[1])).labels.shape
                counts = [1 if size == 1 else count for size, count in zip(own, args[1], strict=True)]
                found = [plane.labels.repeat(counts)]
            else:
                own = plane.labels.shape
                wide = [n if along is None or d in along else own[d] for d, n in enumerate(source.shape)]
                found = tensors_in(_run(func, plane.expanded(wide), given, kwargs))
        except Exception:
            trace.freeze([plane], f"{trace.where(name)} has no rule for labels")
            continue
        for mine, labels in zip(planes, found, strict=True):
            mine.append(plane.like(labels))
    if name in _VIEWS and -1 in args[1]:
        left_open = list(args[1]).index(-1)
        parts = [d for d in _parts(source.shape, results[0].shape, left_open) if d not in trace.named]
        planes[0] = trace.rigid(planes[0], parts, f"{trace.where(name)} parts them by number")
    if name == "expand" and trace.copies:
        copies = _copied(trace, source, results[0])
        if copies:  # its width stays, so that heads can go
            planes[0] = trace.rigid(
                planes[0], range(results[0].dim()), f"{trace.where(name)} makes several heads of it"
            )
        planes[0] += copies
    for result, mine in zip(results, planes, strict=True):
        trace.put(result, mine)


def _copied(trace: Trace, source: torch.Tensor, result: torch.Tensor) -> list[Plane]:
    """Labels of the copies of an only head of keys or values, each of which goes with the head of queries it serves."""
    missing = result.dim() - source.dim()
    found = []
    for dim in trace.copies:
        only = dim < missing or source.shape[dim - missing] == 1
        heads = any(dim - missing - 1 in plane.varying for plane in trace.planes(source))
        if only and not heads and result.shape[dim] > 1:
            shape = [1] * result.dim()
            shape[dim] = result.shape[dim]
            found.append(Plane(trace.units.atoms(result.shape[dim]).reshape(shape)))
    return found


def _parts(old: Sequence[int], new: Sequence[int], left_open: int) -> list[int]:
    """The dimensions beside `left_open` that come of the same dimension of the old shape.

    They are numbers of the code; it is the one left open that follows when the old dimension gets shorter.
    """
    inside = math.prod(new[left_open + 1 :])
    around = inside * new[left_open]  # positions of the old tensor from one step of the dimension before to the next
    step = 1
    for size in reversed(old):
        if step <= inside and step * size >= around and size > 1:
            first, last = step, step * size
            break
        step *= size
    else:
        return []
    out, step = [], 1
    for d in reversed(range(len(new))):
        if d != left_open and new[d] > 1 and first <= step and step * new[d] <= last:
            out.append(d)
        step *= new[d]
    return out


def _run(func: Any, labels: torch.Tensor, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    kwargs = {key: value for key, value in kwargs.items() if key not in ("dtype", "device", "layout", "pin_memory")}
    try:
        return func(labels, *args, **kwargs)
    except (RuntimeError, NotImplementedError):
        # Some kernels exist for floating point only; labels are far from 2^53.
        return map_tensors(func(labels.double(), *args, **kwargs), lambda t: t.to(LABEL))


def sliced(trace: Trace, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """A part of an axis. Code that takes equal parts goes on to do so where all parts lose the same places."""
    source, dim = args[0], argument(func, args, kwargs, "dim", 0) % args[0].dim()
    size = source.shape[dim]
    result = tensors_in(out)[0]
    if result.shape[dim] == size and argument(func, args, kwargs, "step", 1) == 1:
        moved(trace, name, func, args, kwargs, out)
        return
    length = result.shape[dim]
    start = (argument(func, args, kwargs, "start", 0) or 0) % max(size, 1)
    reason = f"{trace.where(name)} takes some of them by number"
    if dim in trace.ends:
        _between(trace, source, dim, *trace.ends[dim], reason)
        moved(trace, name, func, args, kwargs, out)
        return
    equal = argument(func, args, kwargs, "step", 1) == 1 and length and size % length == 0 and start % length == 0
    _part(trace, source, dim, size // length if equal else None, reason)
    moved(trace, name, func, args, kwargs, out)


def _between(trace: Trace, source: torch.Tensor, dim: int, start: int | None, stop: int | None, reason: str) -> None:
    """A part whose ends are computed from attributes: what is before each of them goes on to be as long as they say."""
    first = start or 0
    spans = [(0, start), (0, stop), (first, stop)]
    lines = trace.lines(source, dim, reason)
    for begin, end in spans:
        if end is None:
            continue
        size = end - begin
        labels = None if lines is None else lines.narrow(dim, begin, min(size, lines.shape[dim] - begin))
        if is_attribute(size):
            trace.use(size, dim, labels, "slice")
        elif labels is not None and size:
            trace.units.freeze(labels, reason)


def split(trace: Trace, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Several parts of an axis; equal ones lose the same places, others make it rigid."""
    source = args[0]
    dim = argument(func, args, kwargs, "dim", 0) % source.dim()
    parts = tensors_in(out)
    if dim in trace.ends:
        trace.lines(source, dim, f"{trace.where(name)} parts them by number")
    elif len(parts) > 1:
        sizes = {part.shape[dim] for part in parts}
        module = trace.module
        if module is not None and isinstance(module[1], nn.MultiheadAttention):
            sizes = {math.gcd(*sizes)}  # [E, 2 E]: rows of queries; of keys and values
        equal = source.shape[dim] // min(sizes) if len(sizes) == 1 else None
        _part(trace, source, dim, equal, f"{trace.where(name)} parts them by number")
    moved(trace, name, func, args, kwargs, out)


def _part(trace: Trace, source: torch.Tensor, dim: int, equal: int | None, reason: str) -> None:
    """An axis in so many equal parts, whose places are tied; None, or channels in other dimensions too: it is rigid."""
    for plane in trace.planes(source):
        if dim not in plane.varying:
            continue
        if equal is not None and len(plane.varying) == 1:
            rows = plane.labels.reshape(equal, -1)
            trace.units.join(rows[:1], rows, reason)
        else:
            trace.rigid([plane], [dim], reason)


def picked(trace: Trace, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Positions by numbers that the code has: those of an axis with channels are rigid."""
    source = args[0]
    if name == "index":
        dims = [d for d, index in enumerate(args[1]) if index is not None]
        if any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]):
            dims = list(range(source.dim()))
    elif name == "roll" and len(args[1]) == len(argument(func, args, kwargs, "dims", [])) == 1:
        dim = argument(func, args, kwargs, "dims", [])[0] % source.dim()
        _rolled(trace, source, args[1][0], dim)
        moved(trace, name, func, args, kwargs, out, [dim])
        return
    elif name == "roll":
        dims = [d % source.dim() for d in argument(func, args, kwargs, "dims", []) or range(source.dim())]
    else:
        dims = [argument(func, args, kwargs, "dim", 0) % source.dim()]
    trace.rigid(trace.planes(source), dims, f"{trace.where(name)} takes some of them by number")
    moved(trace, name, func, args, kwargs, out, dims)


def _rolled(trace: Trace, source: torch.Tensor, shift: int, dim: int) -> None:
    """As many positions as are moved to the other end are the same ones where others leave, if they stay."""
    reason = f"{trace.where('roll')} takes some of them by number"
    size = source.shape[dim]
    lines = trace.lines(source, dim, reason)
    if lines is not None and shift % size:
        ends = (
            lines.narrow(dim, size - shift % size, shift % size) if shift > 0 else lines.narrow(dim, 0, -shift % size)
        )
        trace.units.freeze(ends if abs(shift) < size else lines, reason)


def flipped(trace: Trace, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """The other way round along some dimensions."""
    moved(trace, name, func, args, kwargs, out, [d % args[0].dim() for d in args[1]])


def kept(trace: Trace, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """The same tensor, laid out otherwise at most."""
    trace.put(out, trace.planes(args[0]))


def shuffled(trace: Trace, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """pixel_shuffle and channel_shuffle: what one channel is made of goes as a whole; groups lose the same places."""
    source, factor = args[:2]
    dim = source.dim() - 3 if name == "pixel_shuffle" else 1
    reason = f"{trace.where(name)} takes them together with something of a fixed size"
    for plane in trace.planes(source):
        if dim not in plane.varying:
            continue
        lines = plane.labels.movedim(dim, 0)
        if name == "pixel_shuffle":
            rows = lines.reshape(-1, factor * factor, *lines.shape[1:])
            trace.units.join(rows[:, :1], rows, reason)
        else:
            rows = lines.reshape(factor, -1, *lines.shape[1:])
            trace.units.join(rows[:1], rows, reason)
    moved(trace, name, func, args, kwargs, out)


def unbound(trace: Trace, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Every position of an axis a tensor of its own: their number is rigid."""
    dim = argument(func, args, kwargs, "dim", 0) % args[0].dim()
    trace.rigid(trace.planes(args[0]), [dim], f"{trace.where(name)} takes them one by one")
    moved(trace, name, func, args, kwargs, out)


def joined(trace: Trace, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """Tensors side by side along an axis, an old one or a new one."""
    result = tensors_in(out)[0]
    dim = argument(func, args, kwargs, "dim", 0) % result.dim()
    parts = [part for part in args[0] if name == "stack" or part.numel()]
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
            (torch.zeros(part.shape[dim], dtype=LABEL) if plane is None else plane.labels.flatten())
            for part, plane in zip(parts, along, strict=True)
        ]
        shape = [1] * result.dim()
        shape[dim] = result.shape[dim]
        found.append(Plane(torch.cat(rows).reshape(shape), all(p is None or p.zero for p in along)))
    across = [[plane for plane in planes if plane is not line] for planes, line in zip(each, along, strict=True)]
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


def restrided(trace: Trace, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """as_strided: the same tensor laid out otherwise, as pooling does with channels last; anything else is unknown."""
    source, sizes, strides = args[:3]
    planes = trace.planes(source)
    steps = torch.empty(sizes, device="meta").stride()
    kept = all(size == 1 or step == stride for size, step, stride in zip(sizes, steps, strides, strict=True))
    if kept and all(plane.fits(sizes) for plane in planes):
        trace.put(out, planes)
    else:
        unknown(trace, name, func, args, kwargs, out)


def gated(trace: Trace, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
    """glu: the halves of an axis, one times a function of the other."""
    source = args[0]
    dim = argument(func, args, kwargs, "dim", -1) % source.dim()
    _part(trace, source, dim, 2, f"{trace.where(name)} parts them by number")
    size = out.shape[dim]
    planes = trace.planes(source)
    trace.put(out, [p.like(p.labels.narrow(dim, 0, size)) if dim in p.varying else p for p in planes])
