"""The forms that a model can be measured and kept in, by the name in `target.format`: one file each."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import nn

from modelpress_runner.errors import CompressionError, InvalidModelError
from modelpress_runner.export.formats.base import Form, Format, FreeAxes
from modelpress_runner.export.formats.eager import Compiled, Eager
from modelpress_runner.export.formats.onnxruntime import OnnxRuntime
from modelpress_runner.export.formats.openvino import OpenVino
from modelpress_runner.export.formats.pt2 import Pt2
from modelpress_runner.export.formats.transformers import Transformers
from modelpress_runner.export.layout import Layout

_FORMATS: dict[str, Format] = {
    each.name: each for each in (Eager(), Compiled(), Pt2(), Transformers(), OnnxRuntime(), OpenVino())
}


def format_of(name: str) -> Format:
    """The format of this name; KeyError if there is none."""
    return _FORMATS[name]


def format_names() -> tuple[str, ...]:
    """The names of all formats."""
    return tuple(_FORMATS)


def exports(named: Collection[str], target: str) -> list[Format]:
    """The formats of which an artifact has files besides model.pt2: those in `export.formats`, and the target's own."""
    found = [each for each in _FORMATS.values() if each.exported in named or each.name == target]
    return [each for each in found if each.exported is not None and each.name != "pt2"]


def write_export(
    kind: Format, model: nn.Module, example: Any, folder: Path, layout: Layout | None, free: FreeAxes | None
) -> list[Path]:
    """Writes the files of a format into `folder`.

    Raises:
        CompressionError: the model has no such form.
        InvalidModelError: there is no example input to write it with.
    """
    assert kind.file is not None
    field = "spec.export.formats"
    if example is None:
        raise InvalidModelError(f"{kind.file} is written with an example input, and there is none", field)
    path = folder / kind.file
    try:
        kind.write(model, example, path, layout, free)
    except CompressionError as error:
        raise CompressionError(str(error).removeprefix(f"{error.path}: "), field) from error
    return kind.files(path)


__all__ = ["Form", "Format", "exports", "format_names", "format_of", "write_export"]
