"""What is wrong with the places that a job reads from and writes to: its code, its weights, its store."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from urllib.parse import unquote, urlsplit

from .errors import Problem, near
from .stages import sources
from .v1alpha1 import Code, CompressionJobSpec, GitCode, Store, reasons

SCHEMES = ("s3", "gs", "az", "file", "memory")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
ARCHIVE_SUFFIXES = (".tar.gz", ".tgz", ".tar")

# Folders of an image that a volume must not hide, with all that is below them, and those a pod has other use for.
_TAKEN = (
    *("/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/run", "/sbin", "/sys"),
    *("/tmp", "/usr", "/workspace/code", "/var/run"),
)


def location_problems(spec: CompressionJobSpec) -> Iterator[Problem]:
    """Problems of `code` and `store`, wherever the job runs."""
    if spec.code is not None:
        yield from _code_problems(spec.code)
    if spec.store is not None:
        yield from _store_problems(spec.store)


def control_problems(text: str, path: str) -> Iterator[Problem]:
    """Characters that no file of ours has in its name."""
    if control := _CONTROL.search(text):
        yield Problem(path, f"holds the control character U+{ord(control.group()):04X}", "remove it")


def uri_problems(uri: str, path: str) -> Iterator[Problem]:
    """What no store and no file system can make of a URI or a path."""
    if found := list(control_problems(unquote(uri) if uri.startswith("file://") else uri, path)):
        yield from found
        return
    scheme, mark, rest = uri.partition("://")
    if not mark:
        return
    if scheme not in SCHEMES:
        nearest = near(scheme, SCHEMES)
        fix = f"did you mean {nearest}://?" if nearest else "use s3://, gs://, az://, file:// or a path"
        yield Problem(path, f"'{scheme}://' is no scheme that modelpress can read or write", fix)
    elif scheme in ("s3", "gs", "az") and not rest.partition("/")[0]:
        yield Problem(path, f"'{uri}' names no bucket", f"write {scheme}://bucket/prefix")
    elif scheme == "file" and not rest.startswith("/"):
        yield Problem(path, f"'{uri}' takes '{rest.partition('/')[0]}' for a host", f"write file:///{rest}")


def mount_path(store: Store) -> str:
    """Where a pod mounts the volume of a file:// store: the folder that its URI names."""
    return posixpath.normpath("/" + unquote(urlsplit(store.uri).path).lstrip("/"))


def not_on_cluster(spec: CompressionJobSpec) -> Iterator[Problem]:
    """What works on one machine and in no pod, with reason NotOnCluster."""

    def problem(path: str, message: str, fix: str) -> Problem:
        return Problem(path, message, fix, reason=reasons.NOT_ON_CLUSTER)

    if spec.code is not None and spec.code.remote is None:
        fix = "add configMap, git or source beside it, or put the code into the image and remove it"
        yield problem("code.path", "a pod has no access to a folder of this machine", fix)
    if spec.code is not None and spec.code.source is not None:
        yield from (problem(*said) for said in _unreachable(spec.code.source.uri, "code.source.uri"))
    if spec.store is None:
        yield problem("store", "a pod needs a store that outlives it", "add store: {uri: s3://bucket/prefix}")
    elif (kind := _local_kind(spec.store.uri)) is not None and spec.store.volume_claim is None:
        fix = "use s3://, gs:// or az://"
        if spec.store.uri.startswith("file://"):
            fix += ", or add volumeClaim"
        yield problem("store.uri", f"{kind} vanishes with the pod", fix)
    if spec.model.weights:
        yield from (problem(*said) for said in _unreachable(spec.model.weights.uri, "model.weights.uri"))
    for name, split in spec.data.splits.items() if spec.data is not None else ():
        yield from (problem(*said) for said in _unreachable(split.uri, f"data.{name}.uri"))
    if spec.model.hugging_face is not None:
        source = spec.model.hugging_face.source.uri
        yield from (problem(*said) for said in _unreachable(source, "model.huggingFace.source.uri"))
    for path, named in sources(spec.stages, "stages"):
        yield from (problem(*said) for said in _unreachable(named.uri, f"{path}.uri"))


def _unreachable(uri: str, path: str) -> Iterator[tuple[str, str, str]]:
    kind = _local_kind(uri)
    if kind is not None and not uri.startswith(("/", "file://")):  # an absolute path may be in the image
        yield path, f"{kind} is not in a pod", "use s3://, gs:// or az://, or an absolute path in the image"


def _local_kind(uri: str) -> str | None:
    scheme, mark, _ = uri.partition("://")
    if not mark:
        return f"the folder '{uri}'"
    return {"file": f"the folder '{uri}'", "memory": "a store in memory"}.get(scheme)


def _code_problems(code: Code) -> Iterator[Problem]:
    if code.path is not None:
        yield from control_problems(code.path, "code.path")
    if code.config_map is not None:
        first: dict[str, int] = {}
        for index, item in enumerate(code.config_map.items or []):
            if item.path in first:
                message = f"'{item.path}' is also the path of items[{first[item.path]}]"
                yield Problem(f"code.configMap.items[{index}].path", message, "rename one of them")
            first.setdefault(item.path, index)
    if code.git is not None:
        yield from _git_problems(code.git)
    if code.source is not None:
        yield from uri_problems(code.source.uri, "code.source.uri")
        if not code.source.uri.endswith(ARCHIVE_SUFFIXES):
            listed = ", ".join(ARCHIVE_SUFFIXES)
            message = f"an archive needs one of the suffixes {listed}"
            yield Problem("code.source.uri", message, "pack the code with tar czf code.tar.gz")


def _git_problems(git: GitCode) -> Iterator[Problem]:
    if "?" in git.url or "#" in git.url:
        yield Problem("code.git.url", "a repository's URL has no ? or #", "remove it, and name the commit in commit")


def _store_problems(store: Store) -> Iterator[Problem]:
    yield from uri_problems(store.uri, "store.uri")
    if store.path is not None:
        yield from control_problems(store.path, "store.path")
    if store.path is not None and "://" in store.path:
        message = f"a local run needs a folder, found '{store.path}'"
        yield Problem("store.path", message, "write it as ./modelpress-runs, or remove it")
    remote = store.uri.startswith(("s3://", "gs://", "az://"))
    if store.endpoint is not None:
        if not store.uri.startswith("s3://"):
            yield Problem("store.endpoint", "only an s3:// store has an endpoint", "remove it")
        elif not re.match(r"https?://[^/]", store.endpoint):
            message = f"must be the URL of a server, found '{store.endpoint}'"
            yield Problem("store.endpoint", message, "write it as https://host:port")
    if store.region is not None and not store.uri.startswith("s3://"):
        yield Problem("store.region", "only an s3:// store has a region", "remove it")
    if store.secret_ref is not None and not remote:
        yield Problem("store.secretRef", "only an s3://, gs:// or az:// store has credentials", "remove it")
    if store.volume_claim is not None:
        if not store.uri.startswith("file:///"):
            fix = "write the URI as file:///folder, or remove volumeClaim"
            yield Problem("store.volumeClaim", "only a file:// store lies on a volume", fix)
        elif said := _unmountable(mount_path(store)):
            yield Problem("store.uri", f"a volume cannot be mounted at {said}", "write it as file:///models/out")


def _unmountable(path: str) -> str | None:
    if path == "/":
        return "the root of the file system"
    if ":" in path or len(path) > 1024:
        return "a path that has a ':' or more than 1024 characters"
    taken = next((taken for taken in _TAKEN if path == taken or path.startswith(f"{taken}/")), None)
    if taken is None and any(other.startswith(f"{path}/") for other in _TAKEN):
        taken = path
    return f"{path}, because {taken} has another use in a pod" if taken else None
