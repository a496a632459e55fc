"""Tensors in a PT2 archive: raw numbers in entries of their own, and a list of names, shapes and entries."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from modelpress_runner.errors import ArtifactError
from modelpress_runner.export.pt2 import graphcheck
from modelpress_runner.export.pt2.archive import Archive


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
    from torch._export.serde.serialize import _TORCH_TO_SERIALIZE_DTYPE, _TORCH_TO_SERIALIZE_LAYOUT

    return {
        "dtype": int(_TORCH_TO_SERIALIZE_DTYPE[dense.dtype]),
        "sizes": [{"as_int": size} for size in dense.shape],
        "requires_grad": tensor.requires_grad,
        "device": {"type": "cpu", "index": None},
        "strides": [{"as_int": stride} for stride in dense.stride()],
        "storage_offset": {"as_int": 0},
        "layout": int(_TORCH_TO_SERIALIZE_LAYOUT[dense.layout]),
    }


def _is_dense(tensor: torch.Tensor) -> bool:
    """Whether the tensor fills its stretch of memory without gap or overlap, in whatever order of dimensions."""
    expected = 1
    for size, stride in sorted(
        ((size, stride) for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size != 1),
        key=lambda item: item[1],
    ):
        if stride != expected:
            return False
        expected *= size
    return True


def check_sizes(archive: Archive, listed: Any, folder: str) -> None:
    """Refuses a list whose tensors are larger than their entries, before anything of their size is made."""
    for name, meta in listed["config"].items():
        entry = f"data/{folder}/{meta['path_name']}"
        if graphcheck.elements(meta) > archive.size(entry):
            raise ArtifactError(
                f"{archive.path.name} is damaged ({name} is larger than its numbers); fetch the artefact again"
            )


def filled(archive: Archive, empty: Mapping[str, Any], listed: Any, folder: str) -> dict[str, torch.Tensor]:
    """The tensors of `empty`, with the numbers of the archive; tied ones are one object."""
    filled: dict[str, torch.Tensor] = {}
    made: dict[Any, torch.Tensor] = {}
    for name, meta in listed["config"].items():
        like = empty[name]
        key = (meta["path_name"], like.dtype, tuple(like.shape), like.stride(), isinstance(like, nn.Parameter))
        if key not in made or folder == "constants":
            entry = f"data/{folder}/{meta['path_name']}"
            if archive.size(entry) != like.numel() * like.element_size() or not _is_dense(like):
                raise ArtifactError(
                    f"{archive.path.name} is damaged ({name} does not fit its numbers); fetch the artefact again"
                )
            tensor = like.detach()
            if like.numel():
                flat = torch.frombuffer(bytearray(archive.read(entry)), dtype=torch.uint8).view(like.dtype)
                tensor = flat.as_strided(like.shape, like.stride())
            made[key] = nn.Parameter(tensor, like.requires_grad) if isinstance(like, nn.Parameter) else tensor
        filled[name] = made[key]
    return filled
