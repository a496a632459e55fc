"""Weights as safetensors: strict loading with clear errors, shared tensors stored once, digests."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_model
from torch import nn

from modelpress.api.messages import keys_in_words
from modelpress_runner.errors import InvalidModelError

# What torch.compile, activation checkpointing and FSDP put into names, at any place; DistributedDataParallel: "module".
_WRAPPERS = frozenset({"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})


def save(model: nn.Module, path: Path) -> None:
    """Writes the state of `model` as safetensors; tensors that share memory are written once."""
    save_model(model, str(path))


def read(path: Path) -> dict[str, torch.Tensor]:
    """The tensors in a .safetensors file, or in a .pth or .pt file that holds a plain state dict.

    Raises:
        InvalidModelError: another suffix, a damaged file, or a pickle that holds more than tensors.
    """
    if path.suffix == ".safetensors":
        try:
            loaded: dict[str, torch.Tensor] = load_file(str(path))
            return loaded
        except (SafetensorError, OSError) as error:
            raise InvalidModelError(f"{path.name} is no readable safetensors file: {error}") from error
    if path.suffix not in (".pth", ".pt"):
        raise InvalidModelError(f"{path.name}: weights are read from .safetensors, .pth and .pt files")
    try:
        value: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InvalidModelError(
            f"{path.name} does not load with weights_only (it may hold pickled code); save model.state_dict() as "
            "safetensors"
        ) from error
    for wrapper in ("state_dict", "model_state_dict", "model"):
        if isinstance(value, dict) and isinstance(value.get(wrapper), dict):
            value = value[wrapper]
            break
    if not isinstance(value, dict) or not all(isinstance(item, torch.Tensor) for item in value.values()):
        raise InvalidModelError(f"{path.name} holds no state dict; save model.state_dict()")
    return value


def load_strict(model: nn.Module, tensors: dict[str, torch.Tensor], source: str) -> None:
    """Loads `tensors` into `model`; each must fit, and none may be missing.

    A name that is missing is fine if it shares memory with one that is there (tied weights are stored once). What
    wrappers (DistributedDataParallel, torch.compile, a LightningModule) put before every name is taken off, if then
    every name is one of the model's.

    Raises:
        InvalidModelError: names or shapes do not fit.
    """
    own = {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    tensors = _without_wrappers(tensors, own)
    given = {_place(own[name]) for name in tensors if name in own}
    missing = [name for name, value in own.items() if name not in tensors and _place(value) not in given]
    unexpected = [name for name in tensors if name not in own]
    wrong = [
        f"{name} is {tuple(tensors[name].shape)} in the file and {tuple(own[name].shape)} in the model"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    problems = []
    if missing:
        problems.append(f"missing in the file: {keys_in_words(missing, 5)}")
    if unexpected:
        problems.append(f"not in the model: {keys_in_words(unexpected, 5)}")
    problems.extend(wrong[:3])
    if problems:
        raise InvalidModelError(f"{source} does not fit the model: {'; '.join(problems)}")
    with torch.no_grad():
        for name, value in tensors.items():
            own[name].copy_(value)


def _without_wrappers(tensors: dict[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`tensors` under the names of a model, where wrappers are all that keeps them from it; else as they are."""
    for names in _plainer(list(tensors)):
        if len(set(names)) == len(names) and own.keys() >= set(names):
            return dict(zip(names, tensors.values(), strict=True))
    return tensors


def _plainer(names: list[str]) -> Iterator[list[str]]:
    """The names as they are, without what wrappers put into them, and without the parts that all begin with."""
    yield names
    for inside in (_WRAPPERS, {*_WRAPPERS, "module"}):
        parts = [[part for part in name.split(".") if part not in inside] for name in names]
        while all(parts):
            yield [".".join(part) for part in parts]
            if len({part[0] for part in parts}) != 1:
                break
            parts = [part[1:] for part in parts]


def state_digest(model: nn.Module) -> str:
    """sha256 over names, types, shapes and bytes of everything in the model's state dict."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if not isinstance(value, torch.Tensor):
            continue
        digest.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _place(tensor: torch.Tensor) -> tuple[object, ...]:
    return tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape), tuple(tensor.stride())
