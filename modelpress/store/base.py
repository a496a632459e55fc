"""What an artifact store is: one protocol, and which paths it takes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from .errors import StoreError

# S3, GCS and Azure take keys of 1024 bytes, and a URI's own prefix needs some of them. File systems take names of 255
# bytes, and a file being written carries a suffix.
MAX_BYTES = 64 * 2**20  # of an object that is read into memory
MAX_PATH_BYTES = 900
MAX_SEGMENT_BYTES = 240
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_PARTIAL = re.compile(r"#\d+$")


@dataclass(frozen=True)
class ObjectInfo:
    """One object: its path relative to the store's URI, and its size in bytes."""

    path: str
    size: int


@runtime_checkable
class ArtifactStore(Protocol):
    """Objects under one URI. Every implementation passes modelpress.store.testing.ArtifactStoreContract.

    Paths are relative, with `/` between segments; what check_path refuses raises StoreError. A reader sees the whole of
    an object or nothing of it, at any time. Calls may come from several threads and processes at once. All methods
    raise StoreRefusedError or StoreUnavailableError when the store does not let them or does not answer.
    """

    @property
    def uri(self) -> str:
        """The URI that opens this store again; it holds no credentials."""

    def put_bytes(self, path: str, data: bytes) -> None:
        """Write an object; one that is there already is replaced."""

    def put_file(self, path: str, local: Path) -> None:
        """Write a local file as an object, of any size, in bounded memory."""

    def put_if_absent(self, path: str, data: bytes) -> bool:
        """Write an object unless there is one; of any number of callers at most one gets True, and its bytes stand.

        False does not prove that the bytes that stand are another's: a server that answered late may have taken ours.
        """

    def get_bytes(self, path: str, limit: int = MAX_BYTES) -> bytes:
        """The content of an object, of at most `limit` bytes, whatever size is announced.

        Raises:
            ObjectMissingError: there is none.
            TooLargeError: it is larger.
        """

    def get_file(self, path: str, local: Path, size: int | None = None) -> None:
        """Write an object's content to a local file, whole or not at all, in bounded memory; folders are made.

        Args:
            path: of the object.
            local: the file.
            size: how many bytes it must have; where the store says otherwise, nothing is transferred. None: any.

        Raises:
            ObjectMissingError: there is none.
            TooLargeError: it has another size than `size`.
        """

    def copy(self, source: str, target: str) -> None:
        """Copy an object within the store, on the server where it can; an object at `target` is replaced.

        Raises:
            ObjectMissingError: there is no `source`.
        """

    def exists(self, path: str) -> bool:
        """Whether there is an object at this very path (a folder is none)."""

    def list(self, prefix: str) -> list[ObjectInfo]:
        """All objects in the folder `prefix` and below, sorted by path; "" lists everything. `a/b` lists no `a/bc`."""

    def delete(self, path: str) -> None:
        """Delete an object; it is no error if there is none."""

    def delete_prefix(self, prefix: str) -> None:
        """Delete all objects in the folder `prefix` and below, and what broken-off writes left there; "" is refused."""


def check_path(path: str) -> str:
    """The path itself, if every store can hold it.

    Raises:
        StoreError: it is empty, absolute, too long, leaves the folder, or has characters that some store refuses.
    """
    problem = path_problem(path)
    if problem:
        raise StoreError(f"the path {path!r} {problem}; give a relative path such as trials/00001/manifest.json")
    return path


def path_problem(path: str) -> str | None:
    """Why no store takes this path; None if all do."""
    if not path:
        return "is empty"
    if path.startswith("/"):
        return "is absolute"
    if len(path.encode("utf-8", "surrogatepass")) > MAX_PATH_BYTES:
        return f"is longer than {MAX_PATH_BYTES} bytes"
    if _CONTROL.search(path) or "\\" in path:
        return "holds a control character or a backslash"
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return "is not valid Unicode"
    for segment in path.split("/"):
        if segment == "":
            return "has an empty segment"
        if segment in (".", ".."):
            return f"has the segment {segment!r}"
        if len(segment.encode()) > MAX_SEGMENT_BYTES:
            return f"has a segment longer than {MAX_SEGMENT_BYTES} bytes"
        if _PARTIAL.search(segment):
            return "has a segment that ends in # and digits, which marks a file being written"
    return None
