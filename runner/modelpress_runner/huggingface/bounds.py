"""What a folder's files say, held against what they weigh, before transformers builds anything of it.

A configuration is data of strangers: it may ask for ten million layers beside weights of a few kilobytes, name weights
in other folders, or name code that transformers would fetch.
"""

from __future__ import annotations

import contextlib
import json
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.modules import module as hooks

from modelpress.plainjson import json_of
from modelpress_runner.errors import InvalidModelError, first_line

_PATH = "spec.model.huggingFace.source.uri"
CONFIG, INDEX, WEIGHTS = "config.json", "model.safetensors.index.json", "model.safetensors"
MAX_CONFIG_BYTES, MAX_INDEX_BYTES, MAX_HEADER_BYTES = 4 * 2**20, 64 * 2**20, 64 * 2**20
_SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*\.safetensors")
# Keys whose integers say how much is built; positions, lengths and identifiers may be any number.
_SIZE = re.compile(r"layer|depth|block|hidden|vocab|label|expert|head|dim|size|embd|inner|channel|group|stage|^n_|num_")
_NO_SIZE = re.compile(r"position|ctx|window|token|length|seq|theta|base|freq|_id$|_ids$")
MAX_SIZE, MAX_SMALL = 2**24, 2**18
# What makes transformers read other files than the folder's weights, or other packages' code.
_ELSEWHERE = {
    "quantization_config": "quantized weights are not read; give the model as it was before",
    "transformers_weights": "it names its weights itself; save the model anew with save_pretrained",
    "use_pretrained_backbone": "it takes a part of its weights from elsewhere; save the whole model",
}


@dataclass(frozen=True)
class Weight:
    """How much the safetensors of a folder hold: bytes of all files, and number of tensors."""

    bytes: int
    tensors: int


def checked(folder: Path) -> dict[str, Any]:
    """config.json of a folder, as it may be given to transformers.

    Raises:
        InvalidModelError: a file is no JSON object; weights lie elsewhere; sizes are beyond what the weights can hold.
    """
    config = _object(folder, CONFIG, MAX_CONFIG_BYTES)
    weight = weigh(folder)
    limit = min(MAX_SIZE, max(MAX_SMALL, weight.bytes // 2))
    total = 0
    for key, value in _entries(config):
        if key in _ELSEWHERE and value not in (None, False, {}):
            raise InvalidModelError(f"config.json has {key}: {_ELSEWHERE[key]}", _PATH)
        if type(value) is int and _SIZE.search(key) and not _NO_SIZE.search(key):
            total += abs(value)
            if abs(value) > limit or total > 4 * limit:
                message = f"{key} in config.json is larger than weights of {weight.bytes} bytes can be"
                raise InvalidModelError(f"{message}; write the folder anew with save_pretrained", _PATH)
    return config


def weigh(folder: Path) -> Weight:
    """The weights of a folder, one file or those that its index names.

    Raises:
        InvalidModelError: a file is damaged; the index names a file that lies elsewhere or is hidden.
    """
    names = [WEIGHTS] if (folder / WEIGHTS).is_file() else []
    if (folder / INDEX).is_file():
        listed = _object(folder, INDEX, MAX_INDEX_BYTES).get("weight_map")
        shards = sorted({str(name) for name in listed.values()}) if isinstance(listed, dict) else []
        for name in shards:
            if not (_SHARD.fullmatch(name) and (folder / name).is_file()):
                message = f"{INDEX} names {name[:100]!r}, which is no safetensors file in the folder"
                raise InvalidModelError(f"{message}; write the folder anew with save_pretrained", _PATH)
        names = names or shards
    return Weight(sum((folder / name).stat().st_size for name in names), sum(_tensors(folder, name) for name in names))


@contextlib.contextmanager
def bounded(weight: Weight) -> Iterator[None]:
    """Inside, no model is built of more modules, parameters or buffers than such weights can be of.

    Raises:
        InvalidModelError: one was to be.
    """
    modules, numbers = 1_000 + 4 * weight.tensors, 2**24 + 2 * weight.bytes

    def module(*_: Any) -> None:
        nonlocal modules
        modules -= 1
        if modules < 0:
            raise _too_much("layers", weight)

    def tensor(_: nn.Module, name: str, value: Any) -> None:
        nonlocal numbers
        numbers -= 0 if value is None else value.numel()
        if numbers < 0:
            raise _too_much("numbers", weight)

    handles = [
        hooks.register_module_module_registration_hook(module),
        hooks.register_module_parameter_registration_hook(tensor),
        hooks.register_module_buffer_registration_hook(tensor),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _too_much(what: str, weight: Weight) -> InvalidModelError:
    return InvalidModelError(
        f"config.json asks for more {what} than weights of {weight.bytes} bytes and {weight.tensors} tensors can have; "
        "write the folder anew with save_pretrained",
        _PATH,
    )


def _object(folder: Path, name: str, limit: int) -> dict[str, Any]:
    try:
        with (folder / name).open("rb") as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise ValueError(f"it has more than {limit} bytes")
        value = json_of(data)
    except (OSError, ValueError) as error:
        raise InvalidModelError(f"{name} is no JSON object ({error}); write the folder anew", _PATH) from error
    if not isinstance(value, dict):
        raise InvalidModelError(f"{name} is no JSON object; write the folder anew", _PATH)
    return value


def _entries(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every value below, with the key that it, or the list that it is in, stands under."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield name, item
            yield from _entries(item, name)
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, int):
                yield key, item
            else:
                yield from _entries(item, key)


def _tensors(folder: Path, name: str) -> int:
    """Number of tensors in a safetensors file, from its header."""
    try:
        with (folder / name).open("rb") as file:
            size = struct.unpack("<Q", file.read(8))[0]
            if size > MAX_HEADER_BYTES:
                raise ValueError(f"a header of {size} bytes")
            return len(json.loads(file.read(size)))
    except (OSError, ValueError, RecursionError, MemoryError, TypeError, struct.error) as error:
        message = f"the model does not load ({name} is damaged: {first_line(error)}); write the folder anew"
        raise InvalidModelError(message, _PATH) from error
