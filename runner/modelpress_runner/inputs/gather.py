"""The files that a recipe names: the model's source and the data, brought to this machine, with a digest of them."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from modelpress.api.stages import sources
from modelpress.api.v1alpha1 import CompressionJobSpec, Data, DataSource, FolderSource, Source
from modelpress.store.manifest import hash_file
from modelpress_runner.errors import InvalidSpecError
from modelpress_runner.inputs import rows
from modelpress_runner.inputs.hub import fetch
from modelpress_runner.inputs.rows import Rows
from modelpress_runner.inputs.uri_resolver import UriResolver

log = logging.getLogger("modelpress")


@dataclass(frozen=True)
class Inputs:
    """What a recipe reads besides the user's code.

    Attributes:
        data: the splits of `data` by name.
        source: the folder of `model.huggingFace.source`.
        sources: what stages read, by its field: spec.stages[1].distill.teacher.weights.
        digest: sha256 over the contents of all of it; "" where there is nothing.
    """

    data: dict[str, Rows] = field(default_factory=dict)
    source: Path | None = None
    sources: dict[str, Path] = field(default_factory=dict)
    digest: str = ""


@contextlib.contextmanager
def gathered(spec: CompressionJobSpec, base: str | None) -> Iterator[Inputs]:
    """The files of a recipe, for as long as the context is open.

    Args:
        spec: the recipe.
        base: the folder that relative paths refer to; None: the working directory.

    Raises:
        InvalidSpecError: something is missing, or is not what the recipe says.
        StoreError: the object store refuses or fails.
    """
    with tempfile.TemporaryDirectory(prefix="modelpress-inputs-") as folder:
        yield _gather(spec, UriResolver(base, Path(folder), spec.store))


def digest_of(path: Path) -> str:
    """sha256 of a file; of a folder that over the relative paths and digests of its files, hidden ones left out."""
    if path.is_file():
        return hash_file(path)[0]
    total = hashlib.sha256()
    files = {item.relative_to(path).as_posix(): item for item in path.rglob("*") if item.is_file()}
    for relative in sorted(files):
        if not any(part.startswith(".") for part in relative.split("/")):
            total.update(f"{relative}\0{hash_file(files[relative])[0]}\0".encode())
    return total.hexdigest()


def _gather(spec: CompressionJobSpec, resolver: UriResolver) -> Inputs:
    found: dict[str, str] = {}
    source = None
    if spec.model.hugging_face is not None:
        source = fetch(spec.model.hugging_face.source, resolver)
        found["source"] = digest_of(source)
    data = _data(spec.data, resolver, found) if spec.data is not None else {}
    given = {path: _source(named, resolver, path) for path, named in sources(spec.stages, "spec.stages")}
    found |= {path: digest_of(local) for path, local in given.items()}
    if not found:
        return Inputs()
    text = "".join(f"{name}\0{digest}\0" for name, digest in sorted(found.items()))
    return Inputs(data, source, given, hashlib.sha256(text.encode()).hexdigest())


def _source(named: Source | FolderSource, resolver: UriResolver, path: str) -> Path:
    name = hashlib.sha256(path.encode()).hexdigest()[:8]
    if isinstance(named, FolderSource):
        return fetch(named, resolver, name, path)
    local = resolver.file(named.uri, name, f"{path}.uri")
    _check_digest(named, digest_of(local), path)
    return local


def _check_digest(named: Source | DataSource, found: str, path: str) -> None:
    if named.sha256 is not None and named.sha256 != found:
        message = f"{named.uri} has sha256 {found}, not {named.sha256}; correct the digest or the file"
        raise InvalidSpecError(message, f"{path}.sha256")


def _data(data: Data, resolver: UriResolver, found: dict[str, str]) -> dict[str, Rows]:
    out: dict[str, Rows] = {}
    for name, split in data.splits.items():
        path = f"spec.data.{name}"
        if split.form is None:
            raise InvalidSpecError(f"nothing says which format {split.uri} has; add format", f"{path}.format")
        fetch = resolver.directory if split.form == "imageFolder" else resolver.file
        local = fetch(split.uri, name, f"{path}.uri")
        found[name] = digest_of(local)
        _check_digest(split, found[name], path)
        whole = rows.read(local, split.form, name)
        samples = getattr(split, "samples", None)
        out[name] = whole if samples is None else whole[:samples]
    return out
