"""The manifest: what an attempt wrote, with its sha256. Writing it, put-if-absent, is the commit point of a run."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, JsonValue, ValidationError, field_validator

from modelpress.api.v1alpha1 import ApiModel
from modelpress.api.v1alpha1.metrics import MetricName
from modelpress.plainjson import json_of

from .base import ArtifactStore, path_problem
from .errors import ObjectMissingError, StoreError, StoreUnavailableError, TooLargeError
from .layout import MANIFEST, join

_CHUNK = 1024 * 1024
MAX_BYTES = 16 * _CHUNK  # of a manifest
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ManifestError(StoreError):
    """A manifest, or a file that it names, is foreign or damaged: trying again does not help."""


class _Readable(ApiModel):
    # Later versions only ever add keys, so an older reader skips those it does not know.
    model_config = ConfigDict(extra="ignore")


class FileEntry(_Readable):
    """One file: its path relative to the manifest's folder, sha256 in lower-case hex, size in bytes."""

    path: Annotated[str, Field(min_length=1)]
    sha256: Sha256
    bytes: Annotated[int, Field(ge=0)]

    @field_validator("path")
    @classmethod
    def _inside(cls, path: str) -> str:
        problem = path_problem(path)
        if problem:
            raise ValueError(f"the path {path!r} {problem}")
        return path


class RunMetrics(_Readable):
    """What was measured of the dense and of the compressed model, and what each stage reported."""

    baseline: dict[MetricName, float] = Field(default_factory=dict)
    compressed: dict[MetricName, float] = Field(default_factory=dict)
    stages: list[dict[str, JsonValue]] = Field(default_factory=list)


class Manifest(_Readable):
    """What a committed attempt wrote and measured."""

    api_version: Literal["modelpress.dev/v1alpha1"] = "modelpress.dev/v1alpha1"
    attempt: Annotated[int, Field(ge=1)]
    files: list[FileEntry]
    metrics: RunMetrics = Field(default_factory=RunMetrics)
    spec_digest: str
    code_digest: str | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    required_imports: list[str] = Field(default_factory=list)

    @field_validator("files")
    @classmethod
    def _distinct(cls, files: list[FileEntry]) -> list[FileEntry]:
        paths = [entry.path for entry in files]
        if len(set(paths)) != len(paths):
            raise ValueError("two files have the same path")
        return files

    @cached_property
    def folder(self) -> str:
        """The folder that all files lie in (`1-9f8e7d6c`); "" if they share none."""
        tops = {entry.path.partition("/")[0] if "/" in entry.path else "" for entry in self.files}
        return tops.pop() if len(tops) == 1 else ""

    def name_of(self, entry: FileEntry) -> str:
        """A file's name within the artifact, without the attempt's folder: `model.pt2`."""
        return entry.path[len(self.folder) + 1 :] if self.folder else entry.path

    def find(self, name: str) -> FileEntry | None:
        """The file of this name (`model.pt2`); None if there is none."""
        return self._by_name.get(name)

    @cached_property
    def _by_name(self) -> dict[str, FileEntry]:
        named = {self.name_of(item): item for item in reversed(self.files)}
        return {item.path: item for item in reversed(self.files)} | named


def entry(path: str, local: Path) -> FileEntry:
    """The entry of a local file that is to lie at `path`, relative to the manifest's folder."""
    sha256, size = hash_file(local)
    return FileEntry.model_validate({"path": path, "sha256": sha256, "bytes": size})


def hash_file(local: Path) -> tuple[str, int]:
    """sha256 (lower-case hex) and size in bytes of a local file."""
    digest, size = hashlib.sha256(), 0
    with local.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return digest.hexdigest(), size


def encode(manifest: Manifest) -> bytes:
    """The manifest as canonical JSON: UTF-8, sorted keys, no spaces."""
    return canonical_json(manifest.to_dict())


def canonical_json(value: Any) -> bytes:
    """JSON in one spelling only, so that equal values have equal digests: UTF-8, sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest_of(data: bytes) -> str:
    """sha256 of bytes, lower-case hex."""
    return hashlib.sha256(data).hexdigest()


def read(store: ArtifactStore, prefix: str) -> tuple[Manifest, str] | None:
    """The manifest in the folder `prefix` ("" is the store's own), and the sha256 of its bytes; None if there is none.

    Raises:
        ManifestError: what stands there is no manifest, or one of a version that this modelpress does not read.
    """
    path = join(prefix, MANIFEST)
    try:
        data = store.get_bytes(path, MAX_BYTES)
    except ObjectMissingError:
        return None
    except TooLargeError as error:
        raise ManifestError(f"{error}; it is no manifest") from None
    return _parse(data, f"{store.uri}/{path}"), digest_of(data)


def commit(store: ArtifactStore, prefix: str, manifest: Manifest) -> tuple[Manifest, str]:
    """Write the manifest unless there is one; the files that it names must be in the store already.

    Returns:
        The manifest that stands, ours or an earlier one, and the sha256 of its bytes.

    Raises:
        ManifestError: what stands there is no manifest.
    """
    path = join(prefix, MANIFEST)
    data = encode(manifest)
    for _ in range(3):
        try:
            if store.put_if_absent(path, data):
                return manifest, digest_of(data)
        except StoreUnavailableError:
            # The server may have taken it and its answer may be what got lost.
            standing = read(store, prefix)
            if standing is None:
                raise
            return standing
        standing = read(store, prefix)
        if standing is not None:
            return standing
    raise StoreError(f"{store.uri}/{path}: the manifest is deleted as often as it is written; stop whoever deletes it")


def fetch(
    store: ArtifactStore, prefix: str, manifest: Manifest, to: Path, names: set[str] | None = None
) -> dict[str, Path]:
    """Copy the files that a manifest names into a local folder, and verify the sha256 and the size of each.

    A file lands at `to/<name>`, name being Manifest.name_of: its path without the attempt's folder. A file that
    does not verify is not left there.

    Args:
        store: where the manifest stands.
        prefix: the manifest's folder.
        manifest: as read from there.
        to: the local folder, made if it is not there.
        names: the files wanted, by name or by path; None: all.

    Returns:
        The local path of each file, by name.

    Raises:
        ManifestError: a file is damaged or missing, its path leaves the folder, or no file has a name that is wanted.
    """
    where = f"{store.uri}/{join(prefix, MANIFEST)}"
    wanted = manifest.files
    if names is not None:
        known = [manifest.name_of(item) for item in manifest.files]
        for name in sorted(names):
            if manifest.find(name) is None:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean {near[0]!r}" if near else f"it has {', '.join(known) or 'no files'}"
                raise ManifestError(f"{where}: it names no file {name!r}; {hint}")
        wanted = [item for item in wanted if manifest.name_of(item) in names or item.path in names]
    for item in wanted:
        problem = path_problem(item.path)
        if problem:
            raise ManifestError(f"{where}: the path {item.path!r} {problem}; do not use this artifact")
    fetched: dict[str, Path] = {}
    for item in wanted:
        name = manifest.name_of(item)
        local = to / name
        part = local.with_name(f"{local.name}.unverified")
        try:
            store.get_file(join(prefix, item.path), part, item.bytes)
            sha256, size = hash_file(part)
            if (sha256, size) != (item.sha256, item.bytes):
                raise ManifestError(
                    f"{store.uri}/{join(prefix, item.path)}: damaged or replaced: sha256 {sha256}, {size} bytes, where "
                    f"the manifest has {item.sha256} and {item.bytes}; run the job again, or restore the file"
                )
            part.replace(local)
        except TooLargeError as error:
            raise ManifestError(f"{error}; damaged or replaced: run the job again, or restore the file") from None
        except ObjectMissingError:
            raise ManifestError(
                f"{store.uri}/{join(prefix, item.path)}: the manifest names this file, but it is not there; "
                "run the job again, or restore the file"
            ) from None
        finally:
            with contextlib.suppress(OSError):
                part.unlink()
        fetched[name] = local
    return fetched


def _parse(data: bytes, where: str) -> Manifest:
    try:
        value = json_of(data)
    except ValueError:
        raise ManifestError(f"{where}: this is not JSON, so it is no manifest of ours; move it away") from None
    version = value.get("apiVersion") if isinstance(value, dict) else None
    if version != "modelpress.dev/v1alpha1":
        found = f"apiVersion {version!r}" if version else "no apiVersion"
        raise ManifestError(
            f"{where}: it has {found} where modelpress.dev/v1alpha1 is read; "
            "move it away if it is not a manifest of modelpress, else use the version of modelpress that wrote it"
        )
    try:
        return Manifest.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ManifestError(f"{where}: the manifest is damaged at {field}: {first['msg']}; run the job again") from None
