"""The container of a program: a PT2 archive (a zip), written and read without a pickle in it.

`torch.export.save` writes sample inputs and tensors of subclasses as pickles, `torch.export.load` unpickles whatever
entry says it is one, loads native code it finds (data/aotinductor), and trusts the graph, whose strings it evaluates as
Python. So nothing of a file is used before this module and `graphcheck` have seen all of it, and torch's reader is
never given any: `graph` reads what was checked.
"""

from __future__ import annotations

import json
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelpress.plainjson import json_of
from modelpress_runner.errors import ArtifactError

ROOT = "archive"
HEADER = "extra/modelpress.json"
EVAL, TRAIN = "model", "train"  # names of the two programs; other tools know "model"
MAX_HEADER_BYTES = 64 * 2**10
MAX_JSON_BYTES = 64 * 2**20
MAX_LEVELS = 1000  # of JSON; `graphcheck` allows less
_UNFOLDED = 100  # bytes of JSON per byte in the file
_MEMORY = 240  # bytes of memory per byte in the file
MAX_ENTRIES = 200_000
_SLACK = 2**18  # bytes that any entry may unfold into
_EPOCH = (1980, 1, 1, 0, 0, 0)

FIXED = {
    "archive_format": b"pt2",
    "archive_version": b"0",
    "byteorder": b"little",
    ".data/version": b"6\n",
}
_NAME = "(?:model|train)"
_JSON = re.compile(
    rf"models/{_NAME}\.json|data/weights/{_NAME}_weights_config\.json|data/constants/{_NAME}_constants_config\.json"
    rf"|{re.escape(HEADER)}"
)
_RAW = re.compile(r"data/weights/weight_(?:0|[1-9]\d{0,6})|data/constants/tensor_(?:0|[1-9]\d{0,6})")
_EMPTY = re.compile(rf"data/sample_inputs/{_NAME}\.pt")
_PICKLED_NAME = re.compile(r"\.(?:pkl|pickle|pt|pth|bin|ckpt)$|custom_obj|opaque_obj", re.IGNORECASE)


# What the zip reader raises on damaged files.
_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, ValueError, OverflowError),
    *(NotImplementedError, RuntimeError, MemoryError, RecursionError),
)


class Archive:
    """A checked archive, open for reading. Use it as a context manager."""

    def __init__(self, path: Path, zip_file: zipfile.ZipFile, entries: Mapping[str, zipfile.ZipInfo]) -> None:
        self.path = path
        self._zip = zip_file
        self._entries = entries

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    @property
    def names(self) -> list[str]:
        """Names of all entries, without the root folder."""
        return list(self._entries)

    def size(self, name: str) -> int:
        """Bytes of an entry. ArtifactError if it is not there."""
        return self._info(name).file_size

    def read(self, name: str) -> bytes:
        """Bytes of an entry, its checksum verified. ArtifactError if it is missing or damaged."""
        try:
            return self._zip.read(self._info(name))
        except _DAMAGE as error:
            raise damaged(self.path, f"{name}: {error}") from error

    def json(self, name: str) -> Any:
        """An entry parsed as JSON. ArtifactError if it is not JSON, or says a key twice, or NaN."""
        try:
            return json_of(self.document(name), MAX_LEVELS, strict=True)
        except ValueError as error:
            raise damaged(self.path, f"{name}: {error}") from error

    def document(self, name: str) -> bytes:
        """The text of an entry that is JSON. ArtifactError if it unfolds into more than its size in the file allows."""
        text = self.read(name)
        if not within(text, self._info(name).compress_size):
            raise refused(self.path, f"has an entry that unfolds too far, {name!r}")
        return text

    def _info(self, name: str) -> zipfile.ZipInfo:
        if name not in self._entries:
            raise damaged(self.path, f"it has no {name}")
        return self._entries[name]


def open_archive(path: Path) -> Archive:
    """Opens an archive after checking its list of entries.

    Raises:
        ArtifactError: it is not a zip, an entry is none that we write, one has the name of a pickle, two have one name,
            or sizes do not add up (a zip bomb).
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ArtifactError(f"{path} is no regular file; give the file of a program")
        zip_file = zipfile.ZipFile(path)
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist") from error
    except _DAMAGE as error:
        raise damaged(path, str(error)) from error
    try:
        return Archive(path, zip_file, _checked_entries(path, zip_file))
    except _DAMAGE as error:
        zip_file.close()
        raise damaged(path, str(error)) from error
    except BaseException:
        zip_file.close()
        raise


def _checked_entries(path: Path, zip_file: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    infos = zip_file.infolist()
    if len(infos) > MAX_ENTRIES:
        raise refused(path, f"has {len(infos)} entries, more than {MAX_ENTRIES}")
    entries: dict[str, zipfile.ZipInfo] = {}
    stored = 0
    for info in infos:
        name = info.filename.removeprefix(f"{ROOT}/")
        if name == info.filename:
            raise refused(path, f"has the entry {info.filename!r} outside {ROOT}/")
        if name in entries:
            raise refused(path, f"has the entry {name!r} twice")
        if info.flag_bits & 0x1 or stat.S_ISLNK(info.external_attr >> 16):
            raise refused(path, f"has an encrypted or linked entry, {name!r}")
        _check_entry(path, zip_file, name, info)
        stored += info.compress_size
        entries[name] = info
    if stored > path.stat().st_size:
        raise refused(path, "has entries that overlap")
    for name, content in FIXED.items():
        if name not in entries or entries[name].file_size != len(content) or zip_file.read(entries[name]) != content:
            raise refused(path, f"has no {name} that says {content.decode().strip()!r}")
    for name in (HEADER, f"models/{EVAL}.json"):
        if name not in entries:
            raise refused(path, f"has no {name}")
    return entries


def _check_entry(path: Path, zip_file: zipfile.ZipFile, name: str, info: zipfile.ZipInfo) -> None:
    if name in FIXED or name == ".data/serialization_id":
        if info.file_size > 64:
            raise refused(path, f"has an oversized entry, {name!r}")
    elif _JSON.fullmatch(name):
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or not _small(name, info):
            raise refused(path, f"has an oversized entry, {name!r}")
        with zip_file.open(info) as entry:
            if entry.read(1) != b"{":
                raise refused(path, f"has an entry {name!r} that is not JSON and may be a pickle")
    elif _EMPTY.fullmatch(name):
        if info.file_size:
            raise refused(path, f"has pickled sample inputs, {name!r}")
    elif _RAW.fullmatch(name):
        # Raw numbers may look like anything, a pickle too: they are only ever read as the numbers that a list says they
        # are (`tensors`), whatever they are. Stored, so that they cannot unfold into more than the file holds.
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise refused(path, f"has a compressed tensor, {name!r}")
    elif _PICKLED_NAME.search(name):
        raise refused(path, f"has a pickled entry, {name!r}")
    else:
        raise refused(path, f"has an entry that no program has, {name!r}")


def _small(name: str, info: zipfile.ZipInfo) -> bool:
    limit = MAX_HEADER_BYTES if name == HEADER else MAX_JSON_BYTES
    return info.file_size <= min(limit, max(_UNFOLDED * info.compress_size, _SLACK))


def within(text: bytes, size: int) -> bool:
    """Whether a JSON text may be read that takes `size` bytes in a file: they bound what it becomes in memory."""
    mappings, lists, items = (text.count(mark) for mark in (b"{", b"[", b","))
    memory = 240 * mappings + 72 * lists + 64 * items + 2 * len(text)
    return len(text) <= MAX_JSON_BYTES and memory <= max(_MEMORY * size, 16 * _SLACK)


def write_archive(path: Path, documents: Mapping[str, Any], tensors: Mapping[str, bytes]) -> None:
    """Writes an archive: `documents` as JSON (compressed), `tensors` as raw bytes; same content, same bytes.

    Names are those of the entries, without the root folder.
    """
    with zipfile.ZipFile(path, "w") as out:
        for name in sorted(FIXED):
            out.writestr(_info(name), FIXED[name])
        for name in sorted(tensors):
            out.writestr(_info(name), tensors[name])
        for name in sorted(documents):
            text = json.dumps(documents[name], sort_keys=False, separators=(",", ":")).encode()
            size = len(zlib.compress(text, 9)) - 6  # of the stream without zlib's head and checksum
            # What repeats itself so much that a reader would take it for a bomb is stored as it is.
            deflated = within(text, size) and len(text) <= max(_UNFOLDED * size, _SLACK)
            kind = zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED
            out.writestr(_info(name, kind), text, compresslevel=9)


def _info(name: str, compression: int = zipfile.ZIP_STORED) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(f"{ROOT}/{name}", _EPOCH)
    info.compress_type = compression
    info.create_system = 3
    info.external_attr = 0o644 << 16
    return info


def is_raw(name: str) -> bool:
    """Whether an entry of this name holds raw numbers."""
    return _RAW.fullmatch(name) is not None


def damaged(path: Path, why: str) -> ArtifactError:
    """The error that says of a file that it is damaged, and how."""
    return ArtifactError(f"{path.name} is damaged ({why}); fetch the artifact again")


def refused(path: Path, why: str) -> ArtifactError:
    """The error that says of a file what it holds that no file of ours holds."""
    return ArtifactError(f"{path.name} {why}, and is not opened; export the model again with modelpress")
