"""Plain data and tensors as bytes, for what processes that train together tell each other. Nothing in it is evaluated.

A message is JSON in UTF-8, and behind it the bytes of its tensors. What JSON has no word for is a mapping of one key:

    {"$tuple": [...]}   {"$map": [[key, value], ...]}   {"$bytes": "base64"}   {"$tensor": [dtype, shape]}

A pickle would be code of whoever answers at the port where ranks meet.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from typing import Any

import torch

from modelpress_runner.errors import CompressionError

MAX_TEXT_BYTES = 1 << 28
_MAX_DEPTH = 64
_DTYPES = {str(each): each for each in vars(torch).values() if isinstance(each, torch.dtype)}


def encode(value: Any) -> tuple[bytes, torch.Tensor]:
    """The JSON of a value, and the bytes of its tensors in order: uint8, (n,), on the CPU.

    Takes None, bool, int, float, str, bytes, list, tuple, mappings with keys of str or int, and dense tensors.

    Raises:
        TypeError: something else is in it; the text says where.
    """
    tensors: list[torch.Tensor] = []
    text = json.dumps(_plain(value, tensors, "value", 0), separators=(",", ":")).encode()
    return text, torch.cat(tensors) if tensors else torch.empty(0, dtype=torch.uint8)


def decode(text: bytes, numbers: torch.Tensor) -> Any:
    """What `encode` took; tensors on the CPU, each with memory of its own.

    Raises:
        CompressionError: it is none of what `encode` gives.
    """
    reader = _Reader(numbers)
    try:
        value = reader.value(json.loads(text), 0)
        if reader.used != numbers.numel():
            raise ValueError(f"{numbers.numel() - reader.used} bytes belong to no tensor")
    except (ValueError, TypeError, KeyError, RecursionError, RuntimeError) as error:
        raise CompressionError(f"another process of this run sent something else than plain data: {error}") from None
    return value


def _plain(value: Any, tensors: list[torch.Tensor], where: str, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise TypeError(f"{where} is nested deeper than {_MAX_DEPTH} levels")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        items = [_plain(item, tensors, f"{where}[{index}]", depth + 1) for index, item in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    if isinstance(value, Mapping):
        if bad := next((key for key in value if not isinstance(key, (str, int))), None):
            raise TypeError(f"{where} has a key that is {type(bad).__name__}, not str or int")
        found = [(key, _plain(item, tensors, f"{where}[{key!r}]", depth + 1)) for key, item in value.items()]
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return dict(found)
        return {"$map": [list(pair) for pair in found]}
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode()}
    if isinstance(value, torch.Tensor) and value.layout is torch.strided and not value.is_quantized:
        whole = value.detach().cpu().contiguous()
        tensors.append(whole.reshape(-1).view(torch.uint8))
        return {"$tensor": [str(value.dtype), list(value.shape)]}
    raise TypeError(f"{where} is {type(value).__name__}; processes tell each other plain data and dense tensors only")


class _Reader:
    """Builds a value, and takes the bytes of its tensors one after another."""

    def __init__(self, numbers: torch.Tensor) -> None:
        self._numbers = numbers
        self.used = 0

    def value(self, plain: Any, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise ValueError(f"it is nested deeper than {_MAX_DEPTH} levels")
        if isinstance(plain, list):
            return [self.value(item, depth + 1) for item in plain]
        if not isinstance(plain, dict):
            return plain
        first: tuple[str, Any] = next(iter(plain.items()), ("", None))
        name, item = first
        if not name.startswith("$"):
            return {key: self.value(item, depth + 1) for key, item in plain.items()}
        if len(plain) != 1:
            raise ValueError(f"{name} stands beside other keys")
        if name == "$tuple":
            return tuple(self.value(each, depth + 1) for each in item)
        if name == "$map":
            return {key: self.value(each, depth + 1) for key, each in item}
        if name == "$bytes":
            return base64.b64decode(item, validate=True)
        if name == "$tensor":
            return self._tensor(*item)
        raise ValueError(f"there is no {name}")

    def _tensor(self, name: str, shape: list[int]) -> torch.Tensor:
        dtype = _DTYPES[name]
        if any(type(each) is not int or each < 0 for each in shape):
            raise ValueError(f"a tensor has the shape {shape}")
        size = math.prod(shape) * dtype.itemsize
        if self.used + size > self._numbers.numel():
            raise ValueError("a tensor has more numbers than were sent")
        data = self._numbers[self.used : self.used + size].clone()
        self.used += size
        return data.view(dtype).reshape(shape) if size else torch.empty(shape, dtype=dtype)
