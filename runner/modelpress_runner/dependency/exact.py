"""A forward pass in another precision and with other weights than the model has, without a copy of either.

Two interposers do it, at the two places where torch lets one stand between a model's code and its kernels: weights are
handed out where the code calls torch (a TorchFunctionMode; what slips through there is caught below), and every
operation runs in the wide precision, whatever precision the code asks for (a TorchDispatchMode).
"""

from __future__ import annotations

import contextlib
import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from modelpress_runner.runtime.flops import flops

CACHE_BYTES = 256 << 20  # of weights in the wide precision that are kept for their next use, if that is all of them
FEW_BYTES = 32 << 20  # that are kept where it is not: before one of them is used again all others were

_NARROW = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_COMPLEX = {torch.float64: torch.complex128, torch.float32: torch.complex64}
# What a tensor says of itself that is the same for the weight that stands in for it.
_HARMLESS = frozenset(
    [
        "shape",
        "device",
        "layout",
        "names",
        "ndim",
        "requires_grad",
        "is_leaf",
        "grad",
        "grad_fn",
        "is_cuda",
        "is_cpu",
        "is_mps",
        "is_meta",
        "is_sparse",
        "is_quantized",
        "is_nested",
        "itemsize",
        "nbytes",
        "size",
        "dim",
        "ndimension",
        "numel",
        "nelement",
        "is_floating_point",
        "is_complex",
        "is_contiguous",
        "get_device",
        "stride",
        "storage_offset",
        "requires_grad_",
        "__len__",
        "__hash__",
        "__repr__",
        "is_inference",
        "_backward_hooks",
        "_version",
        "output_nr",
        "retains_grad",
    ]
)
# Random numbers are the same constants for models of all widths: the shapes that they are drawn for differ.
_UNIFORM = ("rand", "rand_like", "uniform_")
_NORMAL = ("randn", "randn_like", "normal", "normal_", "log_normal_", "cauchy_")
_COINS = ("bernoulli", "bernoulli_")


def cache_limit(parameters: int) -> int:
    """Bytes of weights that are kept for a model of so many parameters."""
    return CACHE_BYTES if 8 * parameters <= CACHE_BYTES else min(FEW_BYTES, CACHE_BYTES)


class Weights:
    """The weights that stand in for parameters, made when they are used and kept within `limit`.

    Args:
        sources: by id of the parameter, what makes its weight in a run.
        limit: bytes.
    """

    def __init__(self, sources: dict[int, Callable[[], torch.Tensor]], limit: int) -> None:
        self._sources, self._limit = sources, limit
        self._kept: OrderedDict[int, torch.Tensor] = OrderedDict()
        self._bytes = 0
        self.used: set[int] = set()  # whose weight was asked for since it was last cleared

    def __contains__(self, tensor: object) -> bool:
        return id(tensor) in self._sources

    def get(self, tensor: torch.Tensor) -> torch.Tensor:
        """The weight in the place of the parameter."""
        key = id(tensor)
        self.used.add(key)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        with _disable_current_modes():
            value = self._sources[key]()
        size = value.numel() * value.element_size()
        if size <= self._limit:
            self._kept[key] = value
            self._bytes += size
            while self._bytes > self._limit:
                _, gone = self._kept.popitem(last=False)
                self._bytes -= gone.numel() * gone.element_size()
        return value

    def forget(self) -> None:
        """Makes all weights anew from now on."""
        self._kept.clear()
        self._bytes = 0
        self.used = set()


@dataclass
class Seen:
    """What passed by in a run: (rows, indices) of every embedding that was looked up, and floating point operations."""

    tables: list[tuple[int, torch.Tensor]] = field(default_factory=list)
    flops: int = 0


class _Handing(TorchFunctionMode):
    """Hands the code's calls of torch the weights in the place of the parameters."""

    def __init__(self, weights: Weights, wide: torch.dtype | None) -> None:
        super().__init__()
        self._weights, self._wide = weights, wide

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if args and isinstance(args[0], torch.Tensor) and args[0] in self._weights:
            name = getattr(func, "__name__", "")
            if name == "__get__":
                name = getattr(getattr(func, "__self__", None), "__name__", "")
            if name == "dtype" and self._wide is not None:
                return _widened(args[0].dtype, self._wide)
            if name in _HARMLESS:
                return func(*args, **kwargs)
        # Kernels that are called whole (an LSTM) want their arguments in one precision. What is written to stays.
        name = getattr(func, "__name__", "_")
        change = self._hand if name.endswith("_") or "out" in kwargs else self._widen
        return func(*_mapped(args, change), **_mapped(kwargs, change))

    def _hand(self, value: Any) -> Any:
        return self._weights.get(value) if isinstance(value, torch.Tensor) and value in self._weights else value

    def _widen(self, value: Any) -> Any:
        return widened(self._hand(value), self._wide) if isinstance(value, torch.Tensor) else value


class _Widening(TorchDispatchMode):
    """Runs every operation in the wide precision; `wide` None leaves precisions as they are."""

    def __init__(self, weights: Weights, wide: torch.dtype | None, seen: Seen, loose: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not type it
        self._weights, self._wide, self._seen, self._loose = weights, wide, seen, loose

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to say so would import the compiler, which takes seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not isinstance(func, torch._ops.OpOverload):  # control flow: what it runs comes by here in its turn
            return func(*args, **kwargs)
        name, written, aliases = _facts(func)
        args = tuple(_mapped(arg, self._hand if n in written else self._widen) for n, arg in enumerate(args))
        kwargs = {key: _mapped(arg, self._hand if key in written else self._widen) for key, arg in kwargs.items()}
        if name in ("embedding", "_embedding_bag"):
            self._seen.tables.append((args[0].shape[0], args[1]))
        constant = _constant(name, func, args, kwargs)
        if constant is not None:
            return constant
        if self._loose and name == "native_layer_norm":
            return _without_masked(func, args)
        out = func(*args, **kwargs)
        self._seen.flops += flops(func, args, kwargs, out)
        return out if aliases else _mapped(out, self._widen)

    def _hand(self, value: Any) -> Any:
        return self._weights.get(value) if isinstance(value, torch.Tensor) and value in self._weights else value

    def _widen(self, value: Any) -> Any:
        if isinstance(value, torch.dtype) and self._wide is not None:
            return _widened(value, self._wide)
        return widened(self._hand(value), self._wide) if isinstance(value, torch.Tensor) else value


@contextlib.contextmanager
def exactly(weights: Weights, wide: torch.dtype | None, seen: Seen, loose: bool = False) -> Iterator[None]:
    """Runs the block with `weights` in the place of parameters and, unless it is None, in the precision `wide`.

    Dropout keeps everything, and random numbers are constants, in which models of different widths do not differ.
    What passes by is added to `seen`. `loose`: LayerNorms go without channels whose weight is zero.
    """
    with torch.no_grad(), _Widening(weights, wide, seen, loose), _Handing(weights, wide):
        yield


def _without_masked(func: Any, args: Any) -> Any:
    """native_layer_norm(input, normalized_shape, weight, bias, eps), its statistics over unmasked channels alone."""
    source, shape, weight, bias, eps = args
    kept = torch.ones(shape, dtype=torch.bool, device=source.device) if weight is None else weight != 0
    if len(shape) != 1 or bool(kept.all()) or not bool(kept.any()):
        return func(*args)
    bias = None if bias is None else bias[kept]
    some, mean, rstd = func(source[..., kept], [int(kept.sum())], weight[kept], bias, eps)
    out = torch.zeros_like(source)
    out[..., kept] = some
    return out, mean, rstd


def widened(tensor: torch.Tensor, wide: torch.dtype | None) -> torch.Tensor:
    """The tensor in the precision `wide` if it is of another floating or complex one; None: as it is."""
    if wide is None or tensor.layout != torch.strided:
        return tensor
    dtype = _widened(tensor.dtype, wide)
    return tensor if dtype == tensor.dtype else tensor.to(dtype)


@functools.cache
def _facts(func: Any) -> tuple[str, frozenset[int | str], bool]:
    """An operation's name, the arguments that it writes to by number and name, and whether it gives a view."""
    schema = func._schema
    written: set[int | str] = set()
    for number, argument in enumerate(schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            written |= {number, argument.name}
    aliases = bool(written) or any(result.alias_info is not None for result in schema.returns)
    return schema.name.rpartition("::")[2], frozenset(written), aliases


def _widened(dtype: torch.dtype, wide: torch.dtype) -> torch.dtype:
    if dtype in _NARROW:
        return wide
    return _COMPLEX[wide] if dtype.is_complex else dtype


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, tuple | list):
        items = [_mapped(item, change) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, dict):
        return {key: _mapped(item, change) for key, item in value.items()}
    return change(value)


def _constant(name: str, func: Any, args: Any, kwargs: Any) -> Any:
    """What stands for the random numbers of an operation; None: it draws none."""
    if name in ("native_dropout", "_fused_dropout"):
        return args[0].clone(), torch.ones_like(args[0], dtype=torch.bool)
    if name == "randperm":
        return torch.arange(args[0], device=kwargs.get("device"))
    if name in _COINS:
        return _filled(name, func, args, kwargs, 1.0)
    if name in _NORMAL:
        return _filled(name, func, args, kwargs, 0.7)
    if name == "exponential_":
        return _filled(name, func, args, kwargs, 1.0)
    if name in _UNIFORM:
        low, high = (0.0, 1.0) if name != "uniform_" or len(args) < 3 else (args[1], args[2])
        return _filled(name, func, args, kwargs, low + (high - low) * 0.5)
    return None


def _filled(name: str, func: Any, args: Any, kwargs: Any, value: float) -> torch.Tensor:
    # The operation itself knows what it gives; only its numbers are replaced, and none are used up.
    with torch.random.fork_rng(devices=[]):
        out: torch.Tensor = func(*args, **kwargs)
    return out.fill_(value)
