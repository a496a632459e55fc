"""The container of a program: a PT2 archive (a zip), written and read without a pickle in it.

`torch.export.save` writes sample inputs and tensors of subclasses as pickles, `torch.export.load` unpickles whatever
entry says it is one, loads native code it finds (data/aotinductor), and trusts the graph, whose strings it evaluates as
Python. So nothing of a file goes to torch before this module and `graphcheck` have seen all of it, and torch is
never given the file itself: it gets a fresh archive made of the entries that were checked.
"""

from __future__ import annotations

import io
import json
import pickletools
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelpress_runner.errors import ArtifactError

ROOT = "archive"
HEADER = "extra/modelpress.json"
EVAL, TRAIN = "model", "train"  # names of the two programs; other tools know "model"
MAX_JSON_BYTES = 512 * 2**20
MAX_ENTRIES = 200_000
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
    *(NotImplementedError, RuntimeError),
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
            raise _damaged(self.path, f"{name}: {error}") from error

    def json(self, name: str) -> Any:
        """An entry parsed as JSON. ArtifactError if it is not JSON, or says a key twice, or NaN."""
        try:
            return json.loads(self.read(name), object_pairs_hook=_unique_keys, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise _damaged(self.path, f"{name}: {error}") from error

    def _info(self, name: str) -> zipfile.ZipInfo:
        if name not in self._entries:
            raise _damaged(self.path, f"it has no {name}")
        return self._entries[name]


def open_archive(path: Path) -> Archive:
    """Opens an archive after checking its list of entries.

    Raises:
        ArtifactError: it is not a zip, an entry is none that we write, one is or may be a pickle, two have one name, or
            sizes do not add up (a zip bomb).
    """
    try:
        zip_file = zipfile.ZipFile(path)
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} does not exist") from error
    except _DAMAGE as error:
        raise _damaged(path, str(error)) from error
    try:
        return Archive(path, zip_file, _checked_entries(path, zip_file))
    except _DAMAGE as error:
        zip_file.close()
        raise _damaged(path, str(error)) from error
    except BaseException:
        zip_file.close()
        raise


def _checked_entries(path: Path, zip_file: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    infos = zip_file.infolist()
    if len(infos) > MAX_ENTRIES:
        raise _refused(path, f"has {len(infos)} entries, more than {MAX_ENTRIES}")
    entries: dict[str, zipfile.ZipInfo] = {}
    stored = 0
    for info in infos:
        name = info.filename.removeprefix(f"{ROOT}/")
        if name == info.filename:
            raise _refused(path, f"has the entry {info.filename!r} outside {ROOT}/")
        if name in entries:
            raise _refused(path, f"has the entry {name!r} twice")
        if info.flag_bits & 0x1 or stat.S_ISLNK(info.external_attr >> 16):
            raise _refused(path, f"has an encrypted or linked entry, {name!r}")
        _check_entry(path, zip_file, name, info)
        stored += info.compress_size
        entries[name] = info
    if stored > path.stat().st_size:
        raise _refused(path, "has entries that overlap")
    for name, content in FIXED.items():
        if name not in entries or entries[name].file_size != len(content) or zip_file.read(entries[name]) != content:
            raise _refused(path, f"has no {name} that says {content.decode().strip()!r}")
    for name in (HEADER, f"models/{EVAL}.json"):
        if name not in entries:
            raise _refused(path, f"has no {name}")
    return entries


def _check_entry(path: Path, zip_file: zipfile.ZipFile, name: str, info: zipfile.ZipInfo) -> None:
    if name in FIXED or name == ".data/serialization_id":
        if info.file_size > 64:
            raise _refused(path, f"has an oversized entry, {name!r}")
    elif _JSON.fullmatch(name):
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.file_size > MAX_JSON_BYTES:
            raise _refused(path, f"has an oversized entry, {name!r}")
        with zip_file.open(info) as entry:
            if entry.read(1) != b"{":
                raise _refused(path, f"has an entry {name!r} that is not JSON and may be a pickle")
    elif _EMPTY.fullmatch(name):
        if info.file_size:
            raise _refused(path, f"has pickled sample inputs, {name!r}")
    elif _RAW.fullmatch(name):
        # Raw numbers may look like anything; they are only ever read as raw numbers, whatever they are. Stored, so
        # that they cannot unfold into more than the file holds.
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise _refused(path, f"has a compressed tensor, {name!r}")
        with zip_file.open(info) as entry:
            if _is_pickled(entry):
                raise _refused(path, f"has a pickled entry, {name!r}")
    elif _PICKLED_NAME.search(name):
        raise _refused(path, f"has a pickled entry, {name!r}")
    else:
        raise _refused(path, f"has an entry that no program has, {name!r}")


def _is_pickled(stream: Any) -> bool:
    """Whether the bytes are a torch.save archive (a zip) or a pickle that names or calls something.

    The opcodes are parsed, never run. Numbers that are a whole pickle with a call in it by chance do not happen.
    """
    head = stream.read(4)
    if head == b"PK\x03\x04":
        return True
    stream.seek(0)
    calls = False
    try:
        for opcode, _, _ in pickletools.genops(stream):
            calls = calls or opcode.name in _CALLS
            if opcode.name == "STOP":
                return calls
    except Exception:  # the parser raises whatever the bytes bring up; then they are no pickle
        return False
    return False


_CALLS = {
    *("GLOBAL", "STACK_GLOBAL", "REDUCE", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "BUILD"),
    *("EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID"),
}


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
            text = json.dumps(documents[name], sort_keys=False, separators=(",", ":"))
            out.writestr(_info(name, zipfile.ZIP_DEFLATED), text, compresslevel=9)


def torch_archive(model: Any, weights_config: Any, constants_config: Any) -> io.BytesIO:
    """An archive with one program and no numbers, as `torch.export.load` takes it: every tensor's entry is empty.

    torch makes zeros for those; who opens a program puts the real numbers in their place.
    """
    payloads = {f"data/weights/{meta['path_name']}" for meta in weights_config["config"].values()}
    payloads |= {f"data/constants/{meta['path_name']}" for meta in constants_config["config"].values()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as out:
        for name in sorted(FIXED):
            out.writestr(_info(name), FIXED[name])
        for name in sorted(payloads):
            out.writestr(_info(name), b"")
        out.writestr(_info(f"data/weights/{EVAL}_weights_config.json"), json.dumps(weights_config))
        out.writestr(_info(f"data/constants/{EVAL}_constants_config.json"), json.dumps(constants_config))
        out.writestr(_info(f"models/{EVAL}.json"), json.dumps(model))
        out.writestr(_info(f"data/sample_inputs/{EVAL}.pt"), b"")
    buffer.seek(0)
    return buffer


def _info(name: str, compression: int = zipfile.ZIP_STORED) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(f"{ROOT}/{name}", _EPOCH)
    info.compress_type = compression
    info.create_system = 3
    info.external_attr = 0o644 << 16
    return info


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in pairs:
        if key in out:
            raise ValueError(f"the key {key!r} is there twice")
        out[key] = value
    return out


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _damaged(path: Path, why: str) -> ArtifactError:
    return ArtifactError(f"{path.name} is damaged ({why}); fetch the artefact again")


def _refused(path: Path, why: str) -> ArtifactError:
    return ArtifactError(f"{path.name} {why}, and is not opened; export the model again with modelpress")
