"""The forms that a model can be measured and kept in, by the name in `target.format`: one file each."""

from __future__ import annotations

from modelpress_runner.export.formats.base import Form, Format
from modelpress_runner.export.formats.eager import Compiled, Eager
from modelpress_runner.export.formats.pt2 import Pt2
from modelpress_runner.export.formats.transformers import Transformers

_FORMATS: dict[str, Format] = {each.name: each for each in (Eager(), Compiled(), Pt2(), Transformers())}


def format_of(name: str) -> Format:
    """The format of this name; KeyError if there is none."""
    return _FORMATS[name]


def format_names() -> tuple[str, ...]:
    """The names of all formats."""
    return tuple(_FORMATS)


__all__ = ["Form", "Format", "format_names", "format_of"]
