"""shrink.json: the list of edits that makes of a dense model the structure of a compressed one, and its replay."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

import modelpress_runner.edits.attributes
import modelpress_runner.edits.bypass
import modelpress_runner.edits.cuts
import modelpress_runner.edits.entries
import modelpress_runner.edits.half_precision
import modelpress_runner.edits.quantize
import modelpress_runner.edits.rescale  # noqa: F401 - all make their kinds known
from modelpress_runner.edits.base import Edit, edit_kind
from modelpress_runner.edits.masks import Masks
from modelpress_runner.errors import ArtifactError

VERSION = 2
_CUTS_ONLY = 1  # {"version": 1, "cuts": [{"module", "axis", "kept"}]}


def write(edits: Iterable[Edit]) -> dict[str, Any]:
    """The content of shrink.json: {"version": 2, "edits": [{"edit": kind, ...}]}, in order of replay."""
    return {"version": VERSION, "edits": [{"edit": edit.kind, **edit.to_plain()} for edit in edits]}


def read(data: Any) -> list[Edit]:
    """The edits in the content of a shrink.json, of this version or an earlier one.

    Raises:
        ArtifactError: it is of a later version, has an edit of an unknown kind, or is damaged.
    """
    version = data.get("version") if isinstance(data, Mapping) else type(data).__name__
    name = {VERSION: "edits", _CUTS_ONLY: "cuts"}.get(version) if type(version) is int else None
    listed = data.get(name) if name is not None else None
    if not isinstance(listed, list):
        raise ArtifactError(
            f"shrink.json is of version {version!r}, and versions {_CUTS_ONLY} to {VERSION} are read; it needs another "
            "modelpress"
        )
    return [_edit(item, f"{name}[{number}]", version == _CUTS_ONLY) for number, item in enumerate(listed)]


def replay(model: nn.Module, edits: Iterable[Edit], masks: Masks | None = None) -> None:
    """Makes `edits` to `model` in place, one after the other, and to its `masks`, if they are given.

    Raises:
        InvalidModelError: the model is not the dense model that they were made for. It may then be changed in part.
    """
    for edit in edits:
        edit.apply(model, masks)


def _edit(item: Any, where: str, cuts_only: bool) -> Edit:
    if not isinstance(item, Mapping):
        raise ArtifactError(f"shrink.json: {where} is damaged; it must be an object")
    plain = dict(item)
    kind = "cut" if cuts_only else plain.pop("edit", None)
    try:
        known = edit_kind(kind)
    except (KeyError, TypeError):
        raise ArtifactError(
            f"shrink.json: {where} is an edit of the kind {kind!r}, which is not known here; install the version of "
            "modelpress, or the plug-in, that made it"
        ) from None
    try:
        return known.from_plain(plain)
    except ValueError as error:
        raise ArtifactError(f"shrink.json: {where} is damaged; {error}") from None
