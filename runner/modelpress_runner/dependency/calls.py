"""What shows only where Python code calls torch: whose numbers the sizes are that it asks for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from modelpress_runner.dependency.rules.recurrent import packed
from modelpress_runner.dependency.sizes import FixedSize, NamedSize, is_attribute
from modelpress_runner.dependency.trace import Trace

_SHAPE: Any = torch.Tensor.shape
_SPLITS = ("split", "split_with_sizes", "unsafe_split", "tensor_split")


class Calls(TorchFunctionMode):
    """Tells a trace what its operations do not show.

    - scaled_dot_product_attention divides by the root of a size that it reads itself: that size is rigid. Where it runs
      as a kernel its rule knows that; where it is taken apart, nothing in its parts shows it.
    - Sequences of unequal lengths are laid side by side step by step.
    - Sizes of views, of parts and of copies that are computed from attributes: they can change with what is cut.
    """

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self._trace = trace

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        trace = self._trace
        if func is nn.functional.scaled_dot_product_attention:
            query, key = (args[n] if n < len(args) else kwargs[name] for n, name in enumerate(("query", "key")))
            if kwargs.get("scale") is None:
                for tensor in (query, key):
                    trace.rigid(trace.planes(tensor), [tensor.dim() - 1], trace.where("attention"))
            only = bool(kwargs.get("enable_gqa")) and key.dim() > 2 and key.shape[-3] == 1
            with self._copying([key.dim() - 2] if only else []):
                return func(*args, **kwargs)
        if func is nn.functional.multi_head_attention_forward:
            with self._copying([1]):  # a mask of padding, for each head
                return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name == "_pad_packed_sequence":  # in its parts steps are copied into a tensor that is none of them
            with trace.whole():
                out = func(*args, **kwargs)
            packed(trace, name, torch.ops.aten._pad_packed_sequence.default, args, kwargs, out)
            return out
        if name == "__get__" and func.__self__ is _SHAPE:
            return trace.read(args[0])
        if name == "size":
            sizes = trace.read(args[0])
            dim = args[1] if len(args) > 1 else kwargs.get("dim")
            return sizes if dim is None else sizes[dim]
        if name in ("view_as", "reshape_as"):
            other = args[1] if len(args) > 1 else kwargs["other"]
            func, name = getattr(torch.Tensor, name[:-3]), name[:-3]
            args, kwargs = (args[0], trace.read(other)), {}
        if name in ("view", "reshape", "unflatten"):
            return self._viewed(func, name, args, kwargs)
        if name == "__getitem__":
            trace.ends = _ends(*args)
            try:
                return func(*args, **kwargs)
            finally:
                trace.ends = {}
        if name in _SPLITS and not kwargs.keys() - {"dim", "split_size", "split_size_or_sections"}:
            return self._parted(func, name, args, kwargs)
        if name in ("zeros", "new_zeros"):
            out = func(*args, **kwargs)
            given = args[name == "new_zeros" :] or (kwargs.get("size", ()),)
            if not trace.silent:
                trace.zeros(out, given[0] if given and isinstance(given[0], tuple | list) else given)
            return out
        if name == "expand":
            given = args[1] if len(args) > 1 and isinstance(args[1], tuple | list) else args[1:]
            copies = [dim for dim, size in enumerate(given) if is_attribute(size)]
            with self._copying(copies):
                out = func(*args, **kwargs)
            for dim in copies:
                size = given[dim]
                trace.use(size, dim, trace.along(out, dim), name)
            return out
        return func(*args, **kwargs)

    def _viewed(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        sizes = _sizes(name, args, kwargs)
        named = {dim: size for dim, size in sizes.items() if isinstance(size, NamedSize)}
        trace = self._trace
        trace.named = {dim for dim, size in named.items() if size.attributes}
        try:
            out = func(*args, **kwargs)
        finally:
            trace.named = ()
        for dim, size in named.items():
            trace.same(size, out, dim)
            trace.use(size, dim, trace.along(out, dim), name)
        if fixed := [dim for dim, size in sizes.items() if isinstance(size, FixedSize)]:
            trace.rigid(trace.planes(out), fixed, f"{trace.where(name)} gives them the number of something else")
        return out

    def _parted(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        sizes = args[1] if len(args) > 1 else kwargs.get("split_size", kwargs.get("split_size_or_sections"))
        each = list(sizes) if isinstance(sizes, tuple | list) else [sizes]
        if not any(is_attribute(size) for size in each):
            return func(*args, **kwargs)
        source, trace = args[0], self._trace
        dim = (args[2] if len(args) > 2 else kwargs.get("dim", 0)) % source.dim()
        uneven = len(each) > 1
        trace.ends = {dim: (0, None)} if uneven else {}
        try:
            out = func(*args, **kwargs)
        finally:
            trace.ends = {}
        for number, part in enumerate(out):
            size = each[number] if uneven else each[0]
            trace.use(size, dim, trace.along(part, dim), name)
            if uneven and not is_attribute(size):
                trace.rigid(trace.planes(part), [dim], f"{trace.where(name)} takes some of them by number")
        return out

    @contextlib.contextmanager
    def _copying(self, copies: list[int]) -> Iterator[None]:
        self._trace.copies = copies
        try:
            yield
        finally:
            self._trace.copies = ()


def _sizes(name: str, args: Any, kwargs: Any) -> dict[int, Any]:
    """The sizes that a view is asked for, by dimension of the result."""
    if not args or not isinstance(args[0], torch.Tensor):
        return {}
    given = [*args[1:], *kwargs.values()]
    first = 0
    if name == "unflatten":
        first, given = given[0] % args[0].dim() if isinstance(given[0], int) else 0, given[1:]
    sizes = given[0] if given and isinstance(given[0], tuple | list) else given
    return {first + d: size for d, size in enumerate(sizes)}


def _ends(tensor: Any, index: Any) -> dict[int, tuple[int | None, int | None]]:
    """Where slices begin and end, by dimension, if one of both is computed from attributes."""
    items = list(index) if isinstance(index, tuple) else [index]
    if not isinstance(tensor, torch.Tensor) or not all(item is ... or isinstance(item, slice) for item in items):
        return {}
    place = next((number for number, item in enumerate(items) if item is ...), len(items))
    dims = [*range(place), ..., *range(tensor.dim() - (len(items) - place - 1), tensor.dim())]
    return {
        dim: (item.start, item.stop)
        for dim, item in zip(dims, items, strict=False)
        if isinstance(dim, int)
        and isinstance(item, slice)
        and item.step in (None, 1)
        and any(is_attribute(end) for end in (item.start, item.stop))
        and not any(end is not None and end < 0 for end in (item.start, item.stop))
    }
