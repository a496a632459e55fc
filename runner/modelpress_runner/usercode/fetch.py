"""The user's code where no folder of this machine holds it: from a mounted ConfigMap, a commit, or an archive."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import logging
import os
import shutil
import tarfile
import zlib
from pathlib import Path, PurePosixPath

from modelpress.api.v1alpha1 import ArchiveCode, ConfigMapCode, GitCode, Store
from modelpress.request import CODE_FOLDER, GIT_SECRET_FOLDER, RunRequest
from modelpress.store import ObjectMissingError, open_store
from modelpress_runner.errors import CodeUnavailableError, InvalidSpecError, first_line
from modelpress_runner.usercode import git as gitclone
from modelpress_runner.usercode.bounded import BoundedTar, TooLargeError

log = logging.getLogger("modelpress")

MAX_FILES = 100_000  # of an archive, folders included
MAX_BYTES = 2 * 1024**3  # of an archive's files together
MAX_RATIO, MAX_SMALL = 100, 32 * 1024**2  # unpacked: so many times the archive, and what any may take, in bytes
MAX_DEPTH = 64


def with_code(
    request: RunRequest,
    folder: Path,
    *,
    mount: str = CODE_FOLDER,
    git_secret: str = GIT_SECRET_FOLDER,
) -> RunRequest:
    """The request with `code_path` set to the user's code; as it is if that is there already, or in the image.

    Args:
        folder: empty; where fetched code goes.
        mount: where a pod has its ConfigMap.
        git_secret: where a pod has the Secret of its repository.

    Raises:
        InvalidSpecError: what the specification names does not exist, or is not what it says.
        CodeUnavailableError: it cannot be had now; another attempt may.
        StoreError: the object store refuses or fails.
    """
    code = request.spec.code
    place = None if code is None else code.remote
    if isinstance(place, ConfigMapCode):
        if request.code_path != mount:
            return request  # a local run's folder
        found = _copy_mounted(place, Path(mount), folder / "code", request.namespace)
    elif request.code_path is not None or place is None:
        return request
    elif isinstance(place, GitCode):
        log.info("fetching %s at %s", place.url, place.commit)
        found = gitclone.clone(place, folder, Path(git_secret))
    else:
        log.info("fetching %s", place.uri)
        found = _unpacked(place, folder, request.spec.store)
    return request.model_copy(update={"code_path": str(found)})


def _copy_mounted(place: ConfigMapCode, mount: Path, target: Path, namespace: str) -> Path:
    """A copy: the mounted files are links, and they change under a run when somebody edits the ConfigMap."""
    versions = mount / "..data"  # the kubelet swaps this link when the ConfigMap changes
    source = versions.resolve() if versions.exists() else mount
    if source.is_dir():
        shutil.copytree(source, target)
    if not target.is_dir() or not any(target.iterdir()):
        raise CodeUnavailableError(
            f"there is no ConfigMap {place.name} in the namespace {namespace}, or it has none of the keys asked for; "
            f"create it with kubectl create configmap {place.name} --from-file=FOLDER",
            "spec.code.configMap.name",
        )
    for index, item in enumerate(place.items or []):
        if not (target / item.path).is_file():
            raise CodeUnavailableError(
                f"the ConfigMap {place.name} has no key {item.key}; add it", f"spec.code.configMap.items[{index}].key"
            )
    return target


def _unpacked(place: ArchiveCode, folder: Path, store: Store | None) -> Path:
    archive = _download(place, folder, store)
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != place.sha256:
        raise InvalidSpecError(
            f"{place.uri} has sha256 {found}, not {place.sha256}; correct the digest, or store what it belongs to",
            "spec.code.source.sha256",
        )
    target = folder / "code"
    target.mkdir()
    unpack(archive, target, place.uri)
    return target


def _download(place: ArchiveCode, folder: Path, store: Store | None) -> Path:
    path = "spec.code.source.uri"
    if "://" not in place.uri:
        local = Path(place.uri).expanduser()
        if not local.is_file():
            raise InvalidSpecError(f"there is no file {local.absolute()}; correct the path", path)
        return local
    parent, _, name = place.uri.rpartition("/")
    if not name or parent.endswith((":", ":/")):
        raise InvalidSpecError(f"{place.uri} names no file; give the URI of an archive", path)
    local = folder / "archive"
    same = store if store is not None and place.uri.startswith("s3://") else None
    source = open_store(parent, endpoint=same.endpoint if same else None, region=same.region if same else None)
    try:
        source.get_file(name, local)
    except ObjectMissingError:
        raise InvalidSpecError(f"there is no object {place.uri}; correct the URI", path) from None
    return local


def unpack(archive: Path, target: Path, name: str) -> None:
    """Writes the files of a .tar or .tar.gz below `target`; owners and permissions are not kept.

    How much may come out is bounded by the archive's own size S: 100 S bytes (32 MiB if that is more), and 1,000 files
    and folders, with one more for each 512 bytes of S.

    Raises:
        InvalidSpecError: damaged, too large, or with a member that is a link, a device, or outside of the folder.
    """
    path = "spec.code.source.uri"
    try:
        with archive.open("rb") as raw:
            size = os.fstat(raw.fileno()).st_size
            packed = raw.read(2) == b"\x1f\x8b"  # gzip's first bytes (RFC 1952)
            raw.seek(0)
            limit = min(MAX_BYTES + MAX_FILES * 1024, max(MAX_SMALL, MAX_RATIO * size))
            with gzip.GzipFile(fileobj=raw) if packed else contextlib.nullcontext(raw) as stream:
                file = BoundedTar(stream, limit, 1024**2 + 2 * size)  # type: ignore[arg-type]
                _Unpacking(file, target, name, min(MAX_FILES, 1000 + size // 512), min(MAX_BYTES, limit)).run()
    except TooLargeError as error:
        raise InvalidSpecError(f"{name} has {error}; pack the code alone", path) from None
    except (tarfile.TarError, EOFError, zlib.error, OSError, ValueError) as error:
        message = f"{name} cannot be unpacked ({first_line(error)}); pack it anew with tar czf code.tar.gz -C FOLDER ."
        raise InvalidSpecError(message, path) from error


class _Unpacking:
    """One archive on its way into a folder."""

    def __init__(self, file: BoundedTar, target: Path, name: str, files: int, limit: int) -> None:
        self._file, self._target, self._name = file, target, name
        self._most, self._limit = files, limit
        self._entries = self._bytes = 0
        self._folders = {target}

    def run(self) -> None:
        while (member := self._file.next()) is not None:
            self._count(bytes=member.size)
            self._write(member)

    def _count(self, bytes: int = 0) -> None:
        self._entries, self._bytes = self._entries + 1, self._bytes + bytes
        if self._entries > self._most or self._bytes > self._limit:
            raise TooLargeError(f"more than {self._most} files or {self._limit >> 20} MiB unpacked")

    def _write(self, member: tarfile.TarInfo) -> None:
        relative = PurePosixPath(member.name)
        what = None
        if relative.is_absolute() or ".." in relative.parts:
            what = "lies outside of the folder"
        elif not (member.isreg() or member.isdir()):
            what = "is a link or a device"
        elif member.issparse():
            what = "is a file with holes"
        elif len(relative.parts) > MAX_DEPTH:
            what = f"lies deeper than {MAX_DEPTH} folders"
        if what is not None:
            message = f"{member.name[:200]!r} in {self._name} {what}; pack plain files and folders, for example with "
            raise InvalidSpecError(f"{message}tar --dereference", "spec.code.source.uri")
        where = self._target / relative
        if member.isdir():
            self._make(where)
            return
        self._make(where.parent)
        with self._file.open(member) as content, where.open("wb") as out:
            shutil.copyfileobj(content, out)

    def _make(self, folder: Path) -> None:
        if folder in self._folders:
            return
        self._make(folder.parent)
        folder.mkdir(exist_ok=True)
        self._folders.add(folder)
        self._count()
