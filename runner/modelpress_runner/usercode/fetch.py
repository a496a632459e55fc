"""The user's code where no folder of this machine holds it: from a mounted ConfigMap, a commit, or an archive."""

from __future__ import annotations

import hashlib
import logging
import shutil
import tarfile
import zlib
from pathlib import Path, PurePosixPath

from modelpress.api.v1alpha1 import ArchiveCode, ConfigMapCode, GitCode, Store
from modelpress.request import CODE_FOLDER, GIT_SECRET_FOLDER, RunRequest
from modelpress.store import ObjectMissingError, open_store
from modelpress_runner.errors import CodeUnavailableError, InvalidSpecError, first_line
from modelpress_runner.usercode import git as gitclone

log = logging.getLogger("modelpress")

MAX_FILES = 100_000
MAX_BYTES = 2 * 1024**3  # of an archive's files together


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

    Raises:
        InvalidSpecError: damaged, too large, or with a member that is a link, a device, or outside of the folder.
    """
    path = "spec.code.source.uri"
    total = 0
    try:
        with archive.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"  # gzip's first bytes (RFC 1952)
        with tarfile.open(archive, "r:gz" if packed else "r:") as file:
            for count, member in enumerate(file, 1):
                total += member.size
                if count > MAX_FILES or total > MAX_BYTES:
                    limit = f"{MAX_FILES} files or {MAX_BYTES >> 20} MiB"
                    raise InvalidSpecError(f"{name} has more than {limit} unpacked; pack the code alone", path)
                _write_member(file, member, target, name)
    except (tarfile.TarError, EOFError, zlib.error, OSError, ValueError) as error:
        message = f"{name} cannot be unpacked ({first_line(error)}); pack it anew with tar czf code.tar.gz -C FOLDER ."
        raise InvalidSpecError(message, path) from error


def _write_member(file: tarfile.TarFile, member: tarfile.TarInfo, target: Path, name: str) -> None:
    relative = PurePosixPath(member.name)
    where = target / relative
    what = None
    if relative.is_absolute() or ".." in relative.parts:
        what = "lies outside of the folder"
    elif not (member.isreg() or member.isdir()):
        what = "is a link or a device"
    if what is not None:
        message = f"{member.name!r} in {name} {what}; pack plain files and folders, for example with tar --dereference"
        raise InvalidSpecError(message, "spec.code.source.uri")
    if member.isdir():
        where.mkdir(parents=True, exist_ok=True)
        return
    content = file.extractfile(member)
    assert content is not None  # a regular file has content
    where.parent.mkdir(parents=True, exist_ok=True)
    with content, where.open("wb") as out:
        shutil.copyfileobj(content, out)
