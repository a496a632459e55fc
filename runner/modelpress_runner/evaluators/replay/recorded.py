"""What a training step got and gave, in short: a checksum of the batch, and its loss with what stands beside it."""

from __future__ import annotations

import collections
import functools
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

_SAMPLED = 64  # numbers of a tensor that its checksum looks at
_KEPT = 64  # numbers of a tensor that are kept as they are; of a larger one only its shape is
_DEPTH = 6
_WITHOUT_NUMPY = frozenset(
    {torch.bfloat16} | {getattr(torch, name) for name in dir(torch) if name.startswith("float8")}
)
_TEXT = {value: str(value) for value in vars(torch).values() if isinstance(value, torch.dtype)}
_PLAIN = (bool, int, float, str, bytes, type(None))


def digest(batch: Any) -> int | list[Any]:
    """What tells one batch from another: types, shapes, and some numbers of each tensor; its checksum, or its parts.

    Nothing is copied to the host here, for a training step must not wait for its device: numbers that are on one are
    left there, and `checksum` makes the number once there is time.
    """
    parts: list[Any] = []
    for item in batch if type(batch) in (list, tuple) else (batch,):
        _collect(item, 1, parts)
    for part in parts:
        if type(part) is not bytes:
            return parts
    return zlib.crc32(b"".join(parts))


def checksum(parts: int | list[Any]) -> int:
    """Of what `digest` gave."""
    if isinstance(parts, int):
        return parts
    return zlib.crc32(b"".join([_bytes(part.cpu()) if isinstance(part, torch.Tensor) else part for part in parts]))


def _collect(value: Any, depth: int, parts: list[Any]) -> None:
    if isinstance(value, torch.Tensor):
        text, places = _looked_at(value.shape)
        parts.append(text)
        if value.is_cpu and not value.requires_grad:
            try:
                parts.append(value.numpy().take(places).tobytes())
                return
            except (TypeError, RuntimeError):  # a type that NumPy has not, or no plain memory
                pass
        if value.layout is torch.strided and value.numel() and not value.is_meta:
            some = value.detach().flatten()[:: max(1, value.numel() // _SAMPLED)].clone()
            some = torch.view_as_real(some) if some.is_complex() else some
            parts.append(_bytes(some) if value.is_cpu else some)
    elif isinstance(value, _PLAIN):
        parts.append(repr(value).encode())
    elif isinstance(value, list | tuple) and depth < _DEPTH:
        for item in value:
            _collect(item, depth + 1, parts)
    elif isinstance(value, Mapping) and depth < _DEPTH:
        for key, item in value.items():
            parts.append(repr(str(key)).encode())
            _collect(item, depth + 1, parts)
    else:
        parts.append(repr(type(value).__name__).encode())


@functools.lru_cache(maxsize=256)
def _looked_at(shape: torch.Size) -> tuple[bytes, np.ndarray[Any, Any]]:
    """A shape in text, and which numbers of a tensor of that shape are looked at."""
    size = shape.numel()
    return repr(f"{tuple(shape)}").encode(), np.arange(0, size, max(1, size // _SAMPLED))


def _bytes(numbers: torch.Tensor) -> bytes:
    if numbers.dtype in _WITHOUT_NUMPY:
        numbers = numbers.view(torch.uint8)
    data: bytes = numbers.resolve_neg().numpy().tobytes()
    return data


class Recorded:
    """What a training step gave; tensors stay where they are until `plain`."""

    def __init__(self, output: Any) -> None:
        self._kept = _kept(output, 0)

    def plain(self) -> Any:
        """As lists and plain data."""
        return _plain(self._kept)

    @staticmethod
    def rebuilt(plain: Any, backward: Callable[[], None]) -> Any:
        """What `plain` gave, as the training step had given it. A loss goes backward by calling `backward`.

        A tensor that was too large to be kept is one without numbers: whoever reads some gets an error.
        """
        return _rebuilt(plain, backward)


def _kept(value: Any, depth: int) -> Any:
    if isinstance(value, torch.Tensor):
        if value.is_cpu and value.dim() == 0 and value.is_floating_point():  # as a loss is
            return ["tensor", value.item(), _TEXT[value.dtype], [], "cpu", value.requires_grad]
        numbers = None
        if value.numel() <= _KEPT and not value.is_complex() and value.layout is torch.strided:
            numbers = _numbers(value.detach()) if value.is_cpu else value.detach().clone()
        return ["tensor", numbers, str(value.dtype), list(value.shape), str(value.device), value.requires_grad]
    if isinstance(value, _PLAIN):
        return ["plain", value]
    if depth < _DEPTH:
        if isinstance(value, Mapping):
            kind = "output" if _is_model_output(type(value)) else "dict"
            name = f"{type(value).__module__}:{type(value).__qualname__}"
            return [kind, name, [[key, _kept(item, depth + 1)] for key, item in value.items() if isinstance(key, str)]]
        if isinstance(value, list | tuple):
            items = [_kept(item, depth + 1) for item in value]
            if hasattr(value, "_fields"):
                return ["named", type(value).__name__, list(value._fields), items]
            return ["tuple" if isinstance(value, tuple) else "list", items]
    return ["other"]


def _plain(kept: Any) -> Any:
    if isinstance(kept, torch.Tensor):
        return _numbers(kept)
    return [_plain(item) for item in kept] if isinstance(kept, list) else kept


def _numbers(value: torch.Tensor) -> Any:
    return value.double().tolist() if value.is_floating_point() and value.dtype is not torch.float32 else value.tolist()


class _Unknown:
    """Stands for what cannot be kept: using it raises."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{name} of what the training step gave is not kept")


def _rebuilt(kept: Any, backward: Callable[[], None]) -> Any:
    kind, *rest = kept
    if kind == "tensor":
        numbers, dtype, shape, device, wants = rest
        of_type = getattr(torch, dtype.removeprefix("torch."))
        if numbers is None:
            return torch.empty(shape, dtype=of_type, device="meta")
        value = torch.tensor(numbers, dtype=torch.float64 if of_type.is_floating_point else None)
        value = value.to(of_type).reshape(shape).to(device)
        return _Loss.apply(torch.zeros((), requires_grad=True), value, backward) if wants else value
    if kind == "plain":
        return rest[0]
    if kind in ("output", "dict"):
        by_name = {key: _rebuilt(item, backward) for key, item in rest[1]}
        return _model_output(rest[0])(**by_name) if kind == "output" else by_name
    if kind == "named":
        name, fields, items = rest
        return collections.namedtuple(name, fields)(*(_rebuilt(item, backward) for item in items))
    if kind in ("tuple", "list"):
        items = [_rebuilt(item, backward) for item in rest[0]]
        return tuple(items) if kind == "tuple" else items
    return _Unknown()


class _Loss(torch.autograd.Function):
    """A number that goes backward."""

    @staticmethod
    def forward(ctx: Any, anchor: torch.Tensor, value: torch.Tensor, backward: Callable[[], None]) -> torch.Tensor:
        ctx.own = backward
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[None, None, None]:
        ctx.own()
        return None, None, None


def _is_model_output(kind: type) -> bool:
    return kind.__module__.startswith("transformers.") and any(
        each.__name__ == "ModelOutput" and each.__module__.startswith("transformers.") for each in kind.__mro__
    )


def _model_output(name: str) -> Any:
    """A class of transformers' outputs; a dict where it is none."""
    import importlib

    module, _, qualified = name.partition(":")
    if not module.startswith("transformers."):
        return dict
    found = getattr(importlib.import_module(module), qualified, None)
    return found if isinstance(found, type) and _is_model_output(found) else dict
