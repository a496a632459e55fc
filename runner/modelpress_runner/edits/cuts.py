"""shrink.json: the list of cuts that makes a dense model small, and its replay."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from modelpress_runner.edits.axes import axis_of, shrink
from modelpress_runner.edits.axes import cut as cut_tensor
from modelpress_runner.edits.masks import Masks
from modelpress_runner.errors import ArtifactError, CompressionError, InvalidModelError

VERSION = 1


@dataclass(frozen=True)
class Cut:
    """One shrunk axis: `kept` are the indices of the module's parameters along it that stay, ascending.

    axis "out" is what the module gives (output channels of a convolution, features of a norm), "in" what it takes.
    """

    module: str
    axis: str
    kept: tuple[int, ...]


def write(cuts: Iterable[Cut]) -> dict[str, Any]:
    """The content of shrink.json: {"version": 1, "cuts": [{"module", "axis", "kept"}]}, in order of replay."""
    return {
        "version": VERSION,
        "cuts": [{"module": cut.module, "axis": cut.axis, "kept": list(cut.kept)} for cut in cuts],
    }


def read(data: Any) -> list[Cut]:
    """The cuts in the content of a shrink.json.

    Raises:
        ArtifactError: it is of another version, or damaged.
    """
    if not isinstance(data, Mapping) or data.get("version") != VERSION or not isinstance(data.get("cuts"), list):
        found = data.get("version") if isinstance(data, Mapping) else type(data).__name__
        raise ArtifactError(f"shrink.json is not of version {VERSION} (found {found!r}); it needs another modelpress")
    return [_cut(item, number) for number, item in enumerate(data["cuts"])]


def replay(model: nn.Module, cuts: Iterable[Cut], masks: Masks | None = None) -> None:
    """Applies `cuts` to `model` in place, one after the other, and to its `masks`, if they are given.

    Kept values are copied bit by bit; parameters keep dtype, device and requires_grad, but are new objects, so
    optimizers must be built again.

    Raises:
        InvalidModelError: the model is not the dense model that the cuts were made for. It may then be cut in part.
    """
    modules = {name for name, _ in model.named_modules()}
    for cut in cuts:
        try:
            view = axis_of(model, cut.module, cut.axis)
            if not cut.kept or cut.kept[-1] >= view.size:
                raise CompressionError(
                    f"'{cut.module}' has {view.size} {cut.axis} channels; the cut keeps numbers up to "
                    f"{cut.kept[-1] if cut.kept else 'none'}"
                )
            kept = kept_vector(cut.kept, view.size)
            # The masks of a plain parameter are those of its module.
            tensors = (masks or {}).get(cut.module if cut.module in modules else cut.module.rpartition(".")[0], {})
            for name in tensors.keys() & view.tensors.keys():
                tensors[name] = cut_tensor(view, name, tensors[name], kept)
            shrink(view, kept)
        except CompressionError as error:
            raise InvalidModelError(f"{error}; the model is not the one that was shrunk") from error


def kept_vector(kept: Iterable[int], size: int) -> torch.Tensor:
    """Bool (size,), True at the indices `kept`."""
    vector = torch.zeros(size, dtype=torch.bool)
    vector[torch.tensor(list(kept), dtype=torch.long)] = True
    return vector


def _cut(item: Any, number: int) -> Cut:
    try:
        module, axis, kept = item["module"], item["axis"], item["kept"]
        ok = (
            isinstance(module, str)
            and axis in ("in", "out")
            and isinstance(kept, list)
            and bool(kept)
            and all(type(index) is int and index >= 0 for index in kept)
            and all(a < b for a, b in itertools.pairwise(kept))
        )
    except (KeyError, TypeError):
        ok = False
    if not ok:
        raise ArtifactError(
            f"shrink.json: cuts[{number}] is damaged; it needs module, axis (in, out) and kept (ascending numbers)"
        )
    return Cut(module, axis, tuple(kept))
