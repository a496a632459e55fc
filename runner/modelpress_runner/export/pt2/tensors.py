"""Tensors in a PT2 archive: raw numbers in entries of their own, and a list of names, shapes and entries."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modelpress_runner.export.pt2.archive import Archive, damaged, is_raw, refused

_SHARED = 64 * 2**20  # bytes that equal constants may take beyond the file's size
_STRIDED = 7  # torch.strided, as the format numbers it
_CPU = {"type": "cpu", "index": None}


class Payloads:
    """Collects the numbers of an archive's tensors: `entries` are the bytes by the name of the entry."""

    def __init__(self) -> None:
        self.entries: dict[str, bytes] = {}
        self._constants: dict[tuple[torch.dtype, bytes], str] = {}
        self._counts = {"weight": 0, "tensor": 0}

    def add(self, held: Mapping[str, torch.Tensor], kind: str) -> dict[str, Any]:
        """Adds tensors, tied ones and equal constants once.

        Args:
            held: by name.
            kind: "weight", or "tensor" for constants.

        Returns:
            The list of them, as weights_config.json and constants_config.json have it.
        """
        places: dict[Any, str] = {}
        config: dict[str, Any] = {}
        for name, tensor in held.items():
            dense = tensor.detach() if _is_dense(tensor) else tensor.detach().contiguous()
            key: Any = name
            if tensor.numel():
                key = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
            if key not in places:
                places[key] = self._entry(dense, kind)
            config[name] = {
                "path_name": places[key],
                "is_param": isinstance(tensor, nn.Parameter),
                "use_pickle": False,
                "tensor_meta": _meta(tensor, dense),
            }
        return {"config": config}

    def _entry(self, dense: torch.Tensor, kind: str) -> str:
        data = b""
        if dense.numel():
            data = dense.as_strided((dense.numel(),), (1,)).contiguous().view(torch.uint8).numpy().tobytes()
        digest = (dense.dtype, hashlib.sha256(data).digest()) if kind == "tensor" else None
        if digest in self._constants:
            return self._constants[digest]
        name = f"{kind}_{self._counts[kind]}"
        self._counts[kind] += 1
        self.entries[f"data/{'weights' if kind == 'weight' else 'constants'}/{name}"] = data
        if digest is not None:
            self._constants[digest] = name
        return name


def _meta(tensor: torch.Tensor, dense: torch.Tensor) -> dict[str, Any]:
    from torch._export.serde.serialize import _TORCH_TO_SERIALIZE_DTYPE

    return {
        "dtype": int(_TORCH_TO_SERIALIZE_DTYPE[dense.dtype]),
        "sizes": [{"as_int": size} for size in dense.shape],
        "requires_grad": tensor.requires_grad,
        "device": _CPU,
        "strides": [{"as_int": stride} for stride in dense.stride()],
        "storage_offset": {"as_int": 0},
        "layout": _STRIDED,
    }


def _is_dense(tensor: torch.Tensor) -> bool:
    return _fills(tensor.shape, tensor.stride())


def _fills(sizes: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether such a tensor fills its stretch of memory without gap or overlap, in whatever order of dimensions."""
    if len(sizes) != len(strides):
        return False
    if 0 in sizes:
        return True
    expected = 1
    held = ((size, stride) for size, stride in zip(sizes, strides, strict=True) if size != 1)
    for size, stride in sorted(held, key=lambda item: item[1]):
        if stride != expected:
            return False
        expected *= size
    return True


def check_entries(archive: Archive, lists: Iterable[tuple[str, Any]]) -> None:
    """Refuses an archive whose raw entries are not exactly the tensors that its lists name.

    This is what makes an entry a tensor, not what its bytes look like: honest numbers can look like anything.

    Args:
        archive: with the raw entries.
        lists: (folder, payload config that `graphcheck.check_payload` passed) of all programs.

    Raises:
        ArtifactError: a tensor is not a dense one on the CPU, or has not exactly the bytes of its entry; an entry is
            missing, of two types at once, or in no list.
    """
    types: dict[str, torch.dtype] = {}
    made: set[Any] = set()
    taken = 0
    for folder, listed in lists:
        for name, described in listed["config"].items():
            entry = f"data/{folder}/{described['path_name']}"
            dtype, sizes, strides = _described(described["tensor_meta"], archive.path, name)
            claimed, size = math.prod(sizes) * dtype.itemsize, archive.size(entry)
            if claimed != size:
                raise damaged(archive.path, f"{name} is {'larger' if claimed > size else 'smaller'} than its numbers")
            if not _fills(sizes, strides):
                raise damaged(archive.path, f"{name} is no plain, dense tensor on the CPU")
            if types.setdefault(entry, dtype) != dtype:
                raise damaged(archive.path, f"{name} is of another type than another tensor with its numbers")
            # Tied weights are one object; every name of a constant gets numbers of its own.
            key = (entry, *sizes, None, *strides, described["is_param"]) if folder == "weights" else len(made)
            taken += 0 if key in made else size
            made.add(key)
    if taken > 2 * archive.path.stat().st_size + _SHARED:
        raise refused(archive.path, "has names that share their numbers so often that they take far more than the file")
    for entry in archive.names:
        if is_raw(entry) and entry not in types:
            raise refused(archive.path, f"has an entry that no list names, {entry!r}")


def _described(meta: Any, path: Path, name: str) -> tuple[torch.dtype, list[int], list[int]]:
    from torch._export.serde.serialize import _SERIALIZE_TO_TORCH_DTYPE

    dtype = _SERIALIZE_TO_TORCH_DTYPE.get(meta.get("dtype"))
    plain = meta.get("layout") == _STRIDED and meta.get("device") == _CPU
    if dtype is None or not plain or meta["storage_offset"]["as_int"]:
        raise damaged(path, f"{name} is no plain, dense tensor on the CPU")
    return dtype, [size["as_int"] for size in meta["sizes"]], [stride["as_int"] for stride in meta["strides"]]


def filled(archive: Archive, listed: Any, folder: str) -> dict[str, torch.Tensor]:
    """The tensors of a list that `check_entries` passed, by name; tied weights are one object.

    Raises:
        ArtifactError: a truth value is neither 0 nor 1, or a parameter of whole numbers wants a gradient.
    """
    filled: dict[str, torch.Tensor] = {}
    made: dict[Any, torch.Tensor] = {}
    for name, described in listed["config"].items():
        dtype, sizes, strides = _described(described["tensor_meta"], archive.path, name)
        learns, parameter = described["tensor_meta"].get("requires_grad") is True, described["is_param"]
        key = (described["path_name"], dtype, *sizes, None, *strides, parameter)
        if key not in made or folder == "constants":
            data = bytearray(archive.read(f"data/{folder}/{described['path_name']}"))
            flat = torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
            if dtype == torch.bool and data and int(flat.max()) > 1:
                raise damaged(archive.path, f"{name} has truth values that are neither 0 nor 1")
            tensor = flat.view(dtype).as_strided(sizes, strides)
            if parameter and learns and not (dtype.is_floating_point or dtype.is_complex):
                raise damaged(archive.path, f"{name} has whole numbers and wants a gradient")
            made[key] = nn.Parameter(tensor, learns) if parameter else tensor
        filled[name] = made[key]
    return filled
