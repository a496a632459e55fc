"""The artifact store over obstore, the Python binding of Apache's object_store."""

from __future__ import annotations

import builtins
import contextlib
import errno
import functools
import os
import re
import secrets
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Literal, TypeVar

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotSupportedError
from obstore.store import LocalStore

from .base import MAX_BYTES, ObjectInfo, check_path
from .errors import (
    PATH_TAKEN,
    ObjectMissingError,
    StoreError,
    StoreRefusedError,
    StoreUnavailableError,
    TooLargeError,
    explain,
    path_taken,
    server_code,
)

T = TypeVar("T")
_MIB = 1024 * 1024
_PART = 8 * _MIB
# A server that sends a byte now and then keeps a connection alive: so many bytes a second must come, taken over each
# piece of a download, and over so many seconds at least.
MIN_RATE = 16 * 1024
MIN_SECONDS = 60.0
_MAX_PARTS = 9_000  # S3 and GCS take 10,000
_CONCURRENT_PARTS = 4
_FAILURES = (BaseError, OSError, ValueError)
_COPY_BY_STREAM = ("EntityTooLarge", "InvalidRequest", "NotImplemented")  # S3 copies at most 5 GB in one request
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EMLINK)


class _SlowError(Exception):
    """A server takes too long."""


class ObjectStorage:
    """An ArtifactStore in a bucket or in memory.

    Files go up in parts of at least 8 MiB, four at a time. A broken-off upload is aborted where the server can still be
    reached; a lifecycle rule of the bucket should remove the others.
    """

    def __init__(
        self,
        uri: str,
        scheme: str,
        prefix: str,
        *,
        client: Any,
        patient: Any,
        endpoint: str | None = None,
        timeout: float = 30.0,
    ) -> None:
        self._uri = uri
        self._scheme = scheme
        self._prefix = prefix
        self._client = client
        self._patient = patient  # for requests that carry or move a lot
        self._endpoint = endpoint
        self._timeout = timeout

    @property
    def uri(self) -> str:
        return self._uri

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._uri}>"

    def put_bytes(self, path: str, data: bytes) -> None:
        key = self._key(path)
        with self._explained(path):
            client = self._writable(patient=len(data) > _MIB)
            self._run(lambda: obstore.put(client, key, data, use_multipart=len(data) > _PART, chunk_size=_PART))

    def put_file(self, path: str, local: Path) -> None:
        key = self._key(path)
        size = _readable_size(local)
        part = max(_PART, -(-size // _MAX_PARTS))
        client = self._writable(patient=size > _MIB)
        with self._explained(path):
            if self._client is not self._patient and client is self._patient:
                # A server that is not there must not take the patience that a slow upload gets.
                with contextlib.suppress(FileNotFoundError):
                    self._run(lambda: obstore.head(self._client, key))
            self._run(
                lambda: obstore.put(
                    client, key, local, use_multipart=size > part, chunk_size=part, max_concurrency=_CONCURRENT_PARTS
                )
            )

    def put_if_absent(self, path: str, data: bytes) -> bool:
        key = self._key(path)
        client = self._writable(patient=len(data) > _MIB)
        for tried in range(5):
            with self._explained(path):
                try:
                    self._run(lambda: obstore.put(client, key, data, mode="create"))
                except AlreadyExistsError as error:
                    code = server_code(str(error))
                    if code in PATH_TAKEN:
                        raise path_taken(self._where(path)) from None
                    # S3 says so where another request on this key was under way, whatever became of that one.
                    if code == "ConditionalRequestConflict":
                        time.sleep(0.05 * 2**tried)
                        continue
                    return False
                return True
        raise StoreUnavailableError(
            f"{self._where(path)}: others kept writing this object while it was to be created; try again later"
        )

    def get_bytes(self, path: str, limit: int = MAX_BYTES) -> bytes:
        key = self._key(path)
        client = self._readable(path)
        with self._explained(path):
            result = self._run(lambda: obstore.get(client, key))
        too_large = TooLargeError(f"{self._where(path)}: is larger than {limit} bytes, so it is none of ours")
        if result.meta["size"] > limit:
            raise too_large
        parts: builtins.list[bytes] = []
        got = 0
        for chunk in self._chunks(result, _MIB, path):
            parts.append(bytes(chunk))
            got += len(parts[-1])
            if got > limit:
                raise too_large
        return b"".join(parts)

    def get_file(self, path: str, local: Path, size: int | None = None) -> None:
        key = self._key(path)
        client = self._readable(path)
        with self._explained(path):
            result = self._run(lambda: obstore.get(client, key))
            announced = result.meta["size"]
        if size is not None and announced != size:
            raise TooLargeError(f"{self._where(path)}: has {announced} bytes where {size} are known of it")
        part = local.with_name(f".{local.name[:200]}.{secrets.token_hex(4)}.part")
        with _local_errors(local):
            local.parent.mkdir(parents=True, exist_ok=True)
            file = part.open("xb")
        got = 0
        try:
            with file:
                for chunk in self._chunks(result, 4 * _MIB, path):
                    with _local_errors(local):
                        got += file.write(chunk)
            if got != announced:
                raise StoreUnavailableError(f"{self._where(path)}: {got} of {announced} bytes arrived; try again later")
            with _local_errors(local):
                part.replace(local)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def copy(self, source: str, target: str) -> None:
        old, new = self._key(source), self._key(target)
        client = self._readable(source, patient=True)
        if old == new:
            if not self.exists(source):
                raise ObjectMissingError(f"{self._where(source)} does not exist, so it cannot be copied")
            return
        with self._explained(source):
            try:
                self._run(lambda: obstore.copy(client, old, new))
            except NotSupportedError:
                self._run(lambda: self._stream_copy(client, old, new))
            except BaseError as error:
                number = re.search(r"\(os error (\d+)\)", str(error))
                linkless = number is not None and int(number.group(1)) in _NO_LINKS
                if not linkless and server_code(str(error)) not in _COPY_BY_STREAM:
                    raise
                self._run(lambda: self._stream_copy(client, old, new))

    def exists(self, path: str) -> bool:
        key = self._key(path)
        try:
            client = self._readable(path)
            with self._explained(path):
                try:
                    self._run(lambda: obstore.head(client, key))
                except FileNotFoundError:
                    # The answer to HEAD has no body, so it cannot tell a missing object from a missing bucket.
                    self._run(lambda: obstore.get(client, key))
        except ObjectMissingError:
            return False
        return True

    def list(self, prefix: str) -> list[ObjectInfo]:
        folder = self._key(prefix) if prefix else self._prefix
        skip = len(self._prefix) + 1 if self._prefix else 0
        with self._explained(prefix):
            found = self._run(lambda: obstore.list(self._client, folder or None).collect())
        return sorted((ObjectInfo(item["path"][skip:], item["size"]) for item in found), key=lambda info: info.path)

    def delete(self, path: str) -> None:
        key = self._key(path)
        with contextlib.suppress(ObjectMissingError):
            client = self._readable(path)
            with self._explained(path):
                self._run(lambda: obstore.delete(client, [key]))

    def delete_prefix(self, prefix: str) -> None:
        check_path(prefix)
        for _ in range(5):  # somebody else may be deleting the same objects, which some servers report as an error
            found = [self._key(info.path) for info in self.list(prefix)]
            if not found:
                return
            with contextlib.suppress(ObjectMissingError), self._explained(prefix):
                for start in range(0, len(found), 1000):
                    batch = found[start : start + 1000]
                    self._run(functools.partial(obstore.delete, self._client, batch))
        raise StoreError(
            f"{self._where(prefix)}: objects keep appearing while they are deleted; stop the run that writes"
        )

    def _stream_copy(self, client: Any, old: str, new: str) -> None:
        result = obstore.get(client, old)
        part = max(_PART, -(-result.meta["size"] // _MAX_PARTS))
        obstore.put(client, new, result.stream(min_chunk_size=part), chunk_size=part, max_concurrency=_CONCURRENT_PARTS)

    def _key(self, path: str) -> str:
        check_path(path)
        return f"{self._prefix}/{path}" if self._prefix else path

    def _where(self, path: str) -> str:
        return f"{self._uri}/{path}"

    def _readable(self, path: str, *, patient: bool = False) -> Any:
        return self._patient if patient else self._client

    def _writable(self, *, patient: bool = False) -> Any:
        return self._patient if patient else self._client

    def _chunks(self, result: Any, size: int, path: str) -> Iterator[Any]:
        """The body in pieces of `size` bytes and more, the last one apart; each must arrive at MIN_RATE."""
        chunks = iter(result.stream(min_chunk_size=size))
        within = max(MIN_SECONDS, size / MIN_RATE)
        while True:
            with self._explained(path):
                try:
                    chunk = self._run(lambda: next(chunks, None), within)
                except _SlowError:
                    raise StoreUnavailableError(
                        f"{self._where(path)}: fewer than {MIN_RATE} bytes a second arrive; try again later"
                    ) from None
            if chunk is None:
                return
            yield chunk

    def _run(self, call: Callable[[], T], within: float | None = None) -> T:
        """The call's result. The library does not look for signals, so the main thread waits where Python does.

        Args:
            within: seconds; of a call to a server that takes longer the result is no longer waited for.

        Raises:
            _SlowError: it took longer.
        """
        aside = threading.current_thread() is not threading.main_thread()
        if self._scheme in ("file", "memory") or (aside and within is None):
            return call()
        box: Future[T] = Future()

        def work() -> None:
            try:
                box.set_result(call())
            except BaseException as error:
                box.set_exception(error)

        threading.Thread(target=work, name="modelpress-store", daemon=True).start()
        try:
            return box.result(within)
        except TimeoutError:
            if box.done():
                raise
            raise _SlowError from None

    def _explain(self, error: BaseException, path: str) -> StoreError:
        return explain(
            error, scheme=self._scheme, store=self._uri, path=path, endpoint=self._endpoint, timeout=self._timeout
        )

    @contextlib.contextmanager
    def _explained(self, path: str) -> Iterator[None]:
        try:
            yield
        except _FAILURES as error:
            raise self._explain(error, path) from None


class FolderStore(ObjectStorage):
    """An ArtifactStore in a folder. Objects are files; a file being written is called `name#1` and is never listed."""

    def __init__(self, uri: str, root: Path) -> None:
        super().__init__(uri, "file", "", client=None, patient=None)
        self._root = root
        self._lock = threading.Lock()

    def put_if_absent(self, path: str, data: bytes) -> bool:
        created = super().put_if_absent(path, data)
        if not created and self._kind(path) == "folder":
            raise path_taken(self._where(path))
        return created

    def list(self, prefix: str) -> builtins.list[ObjectInfo]:
        if prefix:
            check_path(prefix)
        for _ in range(5):
            try:
                self._readable(prefix)
                return super().list(prefix)
            except ObjectMissingError:
                # No such folder; or one that somebody removed while it was being read.
                if self._kind(prefix) != "folder":
                    return []
        raise StoreUnavailableError(f"{self._where(prefix)}: the folder changes while it is listed; try again later")

    def delete(self, path: str) -> None:
        check_path(path)
        if self._has_root() and self._kind(path) == "file":
            super().delete(path)

    def delete_prefix(self, prefix: str) -> None:
        check_path(prefix)
        with self._explained(prefix):
            while self._has_root() and self._kind(prefix) == "folder":
                # What a killed process left half-written goes too. A writer that is still there may add to the folder.
                with contextlib.suppress(FileNotFoundError):
                    shutil.rmtree(self._root / prefix)

    def _readable(self, path: str, *, patient: bool = False) -> Any:
        if not self._has_root():
            raise ObjectMissingError(f"{self._where(path)} does not exist; there is no folder {self._root}")
        client = self._open()
        above = path
        while above := above.rpartition("/")[0]:
            # What lies below a file is not there, as in a bucket; the library calls it an error.
            if self._kind(above) == "file":
                raise ObjectMissingError(f"{self._where(path)} does not exist; {self._root / above} is a file")
        if path:
            self._check_regular(path)
        return client

    def _check_regular(self, path: str) -> None:
        try:
            mode = (self._root / path).stat().st_mode
        except OSError:
            return  # the library says what is wrong there
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise StoreRefusedError(f"{self._where(path)}: is neither a file nor a folder; remove it")

    def _writable(self, *, patient: bool = False) -> Any:
        if self._client is None:
            try:
                self._root.mkdir(parents=True, exist_ok=True)
            except FileExistsError:
                raise self._is_file() from None
            except OSError as error:
                raise self._explain(error, "") from None
        self._has_root()
        return self._open()

    def _open(self) -> Any:
        with self._lock:
            if self._client is None:
                with self._explained(""):
                    self._client = LocalStore(self._root, automatic_cleanup=True)
            return self._client

    def _has_root(self) -> bool:
        kind = self._kind("")
        if kind == "file":
            raise self._is_file()
        return kind == "folder"

    def _kind(self, path: str) -> Literal["file", "folder"] | None:
        try:
            return "folder" if stat.S_ISDIR((self._root / path).stat().st_mode) else "file"
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._explain(error, path) from None

    def _is_file(self) -> StoreRefusedError:
        return StoreRefusedError(f"{self._uri}: is a file, not a folder; give a folder")


def _readable_size(local: Path) -> int:
    with _local_errors(local, "read"), local.open("rb") as file:
        return os.fstat(file.fileno()).st_size


@contextlib.contextmanager
def _local_errors(local: Path, doing: str = "written") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"the local file {local} cannot be {doing}: {error.strerror or error}; check its path, owner and disk"
        ) from None
