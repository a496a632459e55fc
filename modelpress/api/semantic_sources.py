"""What is wrong with a file of weights or the folder of a pretrained model, found without opening either."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from .errors import Problem
from .semantic_locations import uri_problems
from .v1alpha1 import FolderSource, Source

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt")
HUB = "hf://"
_HUB_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)?")


def source_problems(source: Source | FolderSource, path: str) -> Iterator[Problem]:
    """Problems of a source at `path`: where it lies, and what it can be."""
    if isinstance(source, Source):
        yield from _weights_problems(source, path)
    else:
        yield from _folder_problems(source, path)


def _weights_problems(source: Source, path: str) -> Iterator[Problem]:
    yield from uri_problems(source.uri, f"{path}.uri")
    suffix = PurePosixPath(source.uri).suffix
    if suffix not in WEIGHT_SUFFIXES:
        listed = ", ".join(WEIGHT_SUFFIXES)
        found = f"'{suffix}'" if suffix else "none"
        message = f"weights need one of the suffixes {listed}; found {found}"
        yield Problem(f"{path}.uri", message, "save the state_dict as .safetensors")


def _folder_problems(source: FolderSource, path: str) -> Iterator[Problem]:
    if source.uri.startswith(HUB):
        if not _HUB_NAME.fullmatch(source.uri.removeprefix(HUB)):
            yield Problem(f"{path}.uri", f"'{source.uri}' names no repository", "write it as hf://organisation/name")
        return
    yield from uri_problems(source.uri, f"{path}.uri")
    if source.revision is not None:
        yield Problem(f"{path}.revision", "only an hf:// repository has revisions", "remove it")
