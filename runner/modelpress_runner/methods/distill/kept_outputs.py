"""What a teacher gave for samples that come again: asked once, then taken from memory, or from another trial's run.

A sample is known by the content of all that the teacher is called with for it, so one that augmentation has changed is
another one, and never gets what belongs to the first.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from modelpress.store.manifest import canonical_json, digest_of, hash_file
from modelpress_runner.methods.context import SharedFiles
from modelpress_runner.methods.distill.outputs import compared
from modelpress_runner.runtime.example_inputs import map_tensors, tensors
from modelpress_runner.training.calls import Call
from modelpress_runner.training.fingerprint import fingerprint

_NO_PART = "num_items_in_batch"  # of the loss, not of what the teacher gives
_DOUBT = 256  # samples without one that another run knew, and the data is another each time
_CLOSE = {torch.float64: 1e-6, torch.float32: 1e-3}  # how near a sample alone comes to itself in its batch
_COARSE = 5e-2  # in types of 16 bits

log = logging.getLogger("modelpress")

Row = dict[str, torch.Tensor]  # what a teacher gives for one sample, by name, on the CPU


class KeptOutputs:
    """Gives a teacher's outputs, calling it for unknown samples only.

    Args:
        teacher: in eval mode.
        top: how many of the greatest outputs of the last dimension are kept; the others take the mean of their
            exponentials, so that the softmax at temperature 1 keeps its mass on either side. None: all.
        limit: bytes in memory; beyond it nothing more is kept.
        files: where other runs find them; None: nowhere.
        repeats: whether each sample should come at least twice in this training.
        note: takes what people should know.
    """

    def __init__(
        self,
        teacher: nn.Module,
        top: int | None,
        limit: int,
        files: SharedFiles | None,
        repeats: bool,
        note: Callable[[str], None],
    ) -> None:
        self._teacher, self._top, self._limit, self._files = teacher, top, limit, files
        self._repeats, self._note = repeats, note
        self._rows: dict[bytes, Row] = {}
        self._new: list[bytes] = []
        self._bytes = self._asked = self._hits = 0
        self._refused = self._full = False
        self._alone: bool | None = None  # whether a sample's outputs do not hang on the others in its batch
        self._folder = f"{_digest(teacher)}-{top or 'all'}"
        for path in [] if files is None else files.read(self._folder):
            self._take(path)
        self._known = len(self._rows)

    def outputs(self, call: Call) -> dict[str, torch.Tensor]:
        """As `compared` gives them of the teacher's outputs, on the device of the call's tensors."""
        arguments = (call.inputs, {key: value for key, value in call.kwargs.items() if key != _NO_PART})
        batch = _batch(arguments)
        if self._refused or batch is None or (batch > 1 and not self._may(arguments, batch)):
            return self._ask(call.inputs, call.kwargs)
        keys = _keys(arguments, batch)
        rows = [self._rows.get(key) for key in keys]
        missing = [number for number, row in enumerate(rows) if row is None]
        self._count(batch, batch - len(missing))
        if missing:
            given = self._ask(*_part(arguments, missing))
            if any(not value.ndim or value.shape[0] != len(missing) for value in given.values()):
                self._refuse("the teacher's outputs are not one for each sample")
                return self._ask(call.inputs, call.kwargs)
            for place, number in enumerate(missing):
                row = self._packed({name: value[place] for name, value in given.items()})
                rows[number] = row
                self._keep(keys[number], row)
        whole = [row for row in rows if row is not None]
        if any(_like(row) != _like(whole[0]) for row in whole):
            return self._ask(call.inputs, call.kwargs)
        device = tensors(arguments)[0].device
        return _unpacked({name: torch.stack([row[name] for row in whole]).to(device) for name in whole[0]})

    def finish(self) -> None:
        """Hands on what is new, unless nothing of it will ever come again."""
        if self._refused or not self._asked:
            return
        if self._repeats and not self._hits:
            self._note(
                f"what the teacher gave was kept for {len(self._rows)} samples and none of them came again: the "
                "training draws or augments its data anew each time; remove teacherCache"
            )
            return
        if self._files is None or not self._new:
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "outputs.safetensors"
            save_file(self._plain(), path)
            self._files.add(self._folder, f"{hash_file(path)[0]}.safetensors", path)

    @property
    def record(self) -> dict[str, int]:
        """How many samples were asked for, and for how many of them the teacher was not called."""
        return {"samples": self._asked, "known": self._hits}

    def _ask(self, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, torch.Tensor]:
        return {name: value.detach() for name, value in compared(self._teacher(*inputs, **kwargs)).items()}

    def _refuse(self, reason: str) -> None:
        self._refused, self._rows, self._new = True, {}, []
        self._note(f"what the teacher gives is not kept: {reason}")

    def _may(self, arguments: Any, batch: int) -> bool:
        """Looked at once: the first sample of a batch, alone, gives what it gives among the others."""
        if self._alone is None:
            try:
                alone = self._ask(*_part(arguments, [0]))
                together = self._ask(*arguments)
                self._alone = all(
                    alone[name].shape[1:] == value.shape[1:] and _close(alone[name][0], value[0])
                    for name, value in together.items()
                    if value.ndim and value.shape[0] == batch
                )
            except Exception as error:
                self._refuse(f"it cannot be called with one sample alone ({type(error).__name__}: {error})")
                self._alone = False
            if not self._alone and not self._refused:
                self._refuse("what it gives for a sample depends on the others in its batch, or on chance")
        return self._alone

    def _count(self, asked: int, hits: int) -> None:
        self._asked, self._hits = self._asked + asked, self._hits + hits
        if self._known and not self._hits and self._asked >= _DOUBT:
            self._refuse(
                f"none of the first {self._asked} samples is among the {self._known} that another run has kept; the "
                "training draws or augments its data anew each time"
            )

    def _keep(self, key: bytes, row: Row) -> None:
        if self._full or self._refused or key in self._rows:
            return
        size = len(key) + sum(value.numel() * value.element_size() for value in row.values())
        if self._bytes + size > self._limit:
            self._full = True
            self._note(f"what the teacher gives is kept for {len(self._rows)} samples; there is no room for more")
            return
        self._rows[key] = row
        self._bytes += size
        self._new.append(key)

    def _packed(self, given: Row) -> Row:
        out: Row = {}
        for name, value in given.items():
            if self._top is None or value.shape[-1] <= self._top + 1:
                out[name] = value.cpu().clone()
                continue
            values, places = value.topk(self._top, -1)
            others = value.to(torch.promote_types(value.dtype, torch.float32)).scatter(-1, places, -torch.inf)
            mean = others.logsumexp(-1, keepdim=True) - torch.log(torch.tensor(float(value.shape[-1] - self._top)))
            out[f"{name}.values"] = values.cpu().clone()
            out[f"{name}.places"] = places.to(torch.int32).cpu()
            out[f"{name}.rest"] = mean.to(value.dtype).cpu()
            out[f"{name}.size"] = torch.tensor(value.shape[-1], dtype=torch.int32)
        return out

    def _plain(self) -> dict[str, torch.Tensor]:
        """The new rows as tensors, those of the same shapes together: `<group>/<name>`, and `<group>/` their keys."""
        groups: dict[str, list[bytes]] = {}
        for key in self._new:
            groups.setdefault(repr(_like(self._rows[key])), []).append(key)
        out: dict[str, torch.Tensor] = {}
        for number, keys in enumerate(groups.values()):
            out[f"{number}/"] = torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8).reshape(len(keys), -1)
            for name in self._rows[keys[0]]:
                out[f"{number}/{name}"] = torch.stack([self._rows[key][name] for key in keys])
        return out

    def _take(self, path: Path) -> None:
        try:
            found = load_file(path)
            groups: dict[str, dict[str, torch.Tensor]] = {}
            for name, value in found.items():
                group, _, own_name = name.partition("/")
                groups.setdefault(group, {})[own_name] = value
            for own in groups.values():
                keys = own.pop("")
                if not own or any(len(value) != len(keys) for value in own.values()):
                    raise ValueError("rows are missing")
                size = sum(value[:1].numel() * value.element_size() for value in own.values())
                for number, key in enumerate(keys.numpy()):
                    if self._bytes + size > self._limit:
                        return
                    self._bytes += size
                    self._rows[key.tobytes()] = {name: value[number].clone() for name, value in own.items()}
        except (SafetensorError, ValueError, KeyError, OSError) as error:
            log.warning("outputs of the teacher that another run has kept cannot be read (%s)", type(error).__name__)


def _unpacked(stacked: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Outputs as they were given; of those kept in part, the others are what `rest` says."""
    out: dict[str, torch.Tensor] = {}
    for name, value in stacked.items():
        stem, _, kind = name.rpartition(".")
        if kind == "values" and f"{stem}.rest" in stacked:
            rest, places = stacked[f"{stem}.rest"], stacked[f"{stem}.places"].long()
            size = int(stacked[f"{stem}.size"][0])
            out[stem] = rest.expand(*rest.shape[:-1], size).scatter(-1, places, value)
        elif not (kind in ("rest", "places", "size") and f"{stem}.values" in stacked):
            out[name] = value
    return out


def _digest(teacher: nn.Module) -> str:
    """Of what a teacher is: its modules and its weights. Runs that share a folder have their code alike."""
    weights = ((name, value) for name, value in teacher.state_dict().items() if isinstance(value, torch.Tensor))
    state = [[name, str(value.dtype), fingerprint(value).item()] for name, value in weights]
    return digest_of(canonical_json([repr(teacher), state]))


def _batch(arguments: Any) -> int | None:
    """How many samples a call has: the first dimension of all its tensors; None where they differ or there is none."""
    sizes = {tensor.shape[0] if tensor.ndim else None for tensor in tensors(arguments)}
    return sizes.pop() if len(sizes) == 1 else None


def _part(arguments: Any, rows: list[int]) -> Any:
    """The arguments for these samples alone."""

    def part(tensor: torch.Tensor) -> torch.Tensor:
        return tensor[torch.tensor(rows, device=tensor.device)]

    return map_tensors(arguments, part)


def _keys(arguments: Any, batch: int) -> list[bytes]:
    """A digest for each sample: its part of every tensor, with place, type and shape, and all that is no tensor."""
    common = hashlib.blake2b(digest_size=16)
    parts: list[torch.Tensor] = []
    for path, value in _leaves(arguments):
        if isinstance(value, torch.Tensor):
            common.update(f"{path} {value.dtype} {tuple(value.shape[1:])}\n".encode())
            flat = value.detach().contiguous().cpu().reshape(batch, -1)
            parts.append(flat.view(torch.uint8) if flat.numel() else flat.to(torch.uint8))
        else:
            common.update(f"{path} {value!r}\n".encode())
    joined = torch.cat(parts, 1).numpy()
    keys = []
    for row in joined:
        digest = common.copy()
        digest.update(row.tobytes())
        keys.append(digest.digest())
    return keys


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key in value:
            yield from _leaves(value[key], f"{path}.{key}")
    elif isinstance(value, tuple | list):
        for number, item in enumerate(value):
            yield from _leaves(item, f"{path}[{number}]")
    else:
        yield path, value


def _like(row: Row) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (value.shape, value.dtype) for name, value in row.items()}


def _close(one: torch.Tensor, other: torch.Tensor) -> bool:
    bound = _CLOSE.get(one.dtype, _COARSE)
    return torch.allclose(one, other, rtol=bound, atol=bound * float(other.abs().max().clamp(min=1e-6)))
