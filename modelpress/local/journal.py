"""The state directory of one local run: every object is one JSON file, replaced atomically, guarded by a lock.

    <local state>/<namespace>/<name>-<uid8>/
        lock                              held (flock) by the process that works on it; holds its pid
        object.json                       the CompressionJob or CompressionSweep
        trials/<name>.json                a sweep's trials
        jobs/<name>.json                  child Jobs: processes, running or over
        runs/<job>-<uid8>/                request.json, result.json, progress.jsonl and runner.log of one process
        events.jsonl                      what happened, for people
        commit.json                       several changes that belong together, until each file has them

A file is written under another name, flushed to disk and renamed, so whatever instant the process is killed at, each
file holds one whole version: the one before or the one after. Changes of several files that belong together are first
written to one file, commit.json; the next start carries out what a killed process left there (a redo log).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modelpress.plainjson import DEPTH, json_of

from .errors import LockedError, StateError
from .regular import irregular, open_regular, read_regular

FORMAT = 1
COMMIT = "commit.json"
MAX_BYTES = 64 * 2**20  # of one object
_OURS = re.compile(
    r"object\.json|(?:trials|jobs)/[a-z0-9][a-z0-9.-]{0,252}\.json|runs/[a-z0-9][a-z0-9.-]{0,252}/request\.json"
)


def write_atomic(path: Path, text: str) -> None:
    """Replace `path` by `text`; readers and crashes see the whole old or the whole new text.

    Raises:
        OSError: the folder is not writable, or the disk is full.
    """
    draft = path.with_name(f".{path.name}.tmp")
    draft.unlink(missing_ok=True)  # of a killed process, or a link that was put there
    with os.fdopen(open_regular(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


class Journal:
    """Reads and writes the files of one state directory. Use `open`, which also takes the lock."""

    def __init__(self, root: Path, lock: int) -> None:
        self.root = root
        self._lock: int | None = lock
        self._batch: dict[str, str | None] | None = None  # relative path -> text, or None for a removal

    @classmethod
    def open(cls, root: Path) -> Journal:
        """Create the directory if need be and lock it for this process.

        Raises:
            LockedError: another process holds it.
            StateError: it cannot be created or written.
        """
        try:
            for folder in (root, root / "trials", root / "jobs", root / "runs"):
                folder.mkdir(parents=True, exist_ok=True)
                if folder != root and folder.is_symlink():
                    raise StateError(f"{folder} is a link; remove the folder {root} to start over")
            lock = open_regular(root / "lock", os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise StateError(_cannot(root, error)) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(lock, 64, 0).decode(errors="replace").strip() or "unknown"
            os.close(lock)
            raise LockedError(
                f"process {holder} is already running this, with its state in {root}; wait until it ends, "
                f"or stop it with: kill {holder}"
            ) from error
        try:
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            os.close(lock)
            raise StateError(_cannot(root, error)) from error
        journal = cls(root, lock)
        try:
            journal._redo()
        except BaseException:
            journal.close()
            raise
        return journal

    def close(self) -> None:
        """Let go of the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # Whole objects ---------------------------------------------------------------------------------------------------

    def write(self, relative: str, value: dict[str, Any]) -> None:
        """Write one object.

        Raises:
            StateError: the disk is full, or the directory is not writable.
        """
        self.write_text(relative, json.dumps({"format": FORMAT, **value}, separators=(",", ":")))

    def write_text(self, relative: str, text: str) -> None:
        """Write one file of any text; same errors as write."""
        self._change(relative, text)

    def remove(self, relative: str) -> None:
        """Forget one object; it may be gone already."""
        self._change(relative, None)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """All changes made inside reach the disk at the end, all or none. What is read inside is older.

        What was changed before an exception reaches the disk as well: it has happened.

        Raises:
            StateError: as write.
        """
        assert self._batch is None, "transactions do not nest"
        self._batch = {}
        try:
            yield
        finally:
            batch, self._batch = self._batch, None
            if len(batch) > 1:
                self._change(COMMIT, json.dumps({"format": FORMAT, "changes": batch}))
            for relative, text in batch.items():
                self._change(relative, text)
            if len(batch) > 1:
                self._change(COMMIT, None)

    def _change(self, relative: str, text: str | None) -> None:
        if self._batch is not None:
            self._batch[relative] = text
            return
        path = self.root / relative
        if path.parent.is_symlink():
            raise self.damaged(str(path.parent.relative_to(self.root)), "it is a link")
        try:
            if text is None:
                path.unlink(missing_ok=True)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(path, text)
        except OSError as error:
            raise StateError(_cannot(self.root, error)) from error

    def _redo(self) -> None:
        left = self.read(COMMIT)
        if left is None:
            return
        changes = left.get("changes")
        known = isinstance(changes, dict) and all(
            _OURS.fullmatch(relative) and (text is None or isinstance(text, str)) for relative, text in changes.items()
        )
        if not known or not isinstance(changes, dict):
            raise self.damaged(COMMIT, "it changes what is no file of a run")
        for relative, text in changes.items():
            self._change(relative, text)
        self._change(COMMIT, None)

    def read(self, relative: str) -> dict[str, Any] | None:
        """One object, or None if it was never written.

        Raises:
            StateError: the file is damaged, or was written by a newer version.
        """
        path = self.root / relative
        try:
            value = json_of(read_regular(path, MAX_BYTES), 2 * DEPTH)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise self.damaged(relative, "it is a link") from error
            if error.errno in (errno.EINVAL, errno.EFBIG, errno.ENXIO, errno.EISDIR):
                raise self.damaged(relative, str(error.strerror)) from error
            raise StateError(_cannot(self.root, error)) from error
        except ValueError as error:
            raise self.damaged(relative, str(error)) from error
        if not isinstance(value, dict) or value.pop("format", None) != FORMAT:
            raise StateError(f"{path} was written by another version of modelpress; remove {self.root} to start over")
        return value

    def damaged(self, relative: str, why: str) -> StateError:
        """The error that says of a file of the state that it is not as we wrote it."""
        return StateError(f"{self.root / relative} is damaged ({why}); remove the folder {self.root} to start over")

    def read_all(self, folder: str) -> Iterator[dict[str, Any]]:
        """Every object of a folder, by name."""
        for path in sorted((self.root / folder).glob("*.json")):
            value = self.read(f"{folder}/{path.name}")
            if value is not None:
                yield value

    def append_event(self, event: dict[str, Any]) -> None:
        """Add a line to events.jsonl. It is for people: a line lost in a crash changes nothing."""
        try:
            descriptor = open_regular(self.root / "events.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            with os.fdopen(descriptor, "a", encoding="utf-8") as file:
                file.write(json.dumps(event) + "\n")
        except OSError as error:
            raise StateError(_cannot(self.root, error)) from error

    def run_folder(self, job: str, uid: str) -> Path:
        """Folder of one process's files."""
        return self.root / "runs" / f"{job}-{uid.replace('-', '')[:8]}"

    def check_run(self, folder: Path) -> None:
        """Whether a process may write into its folder.

        Raises:
            StateError: it is a link, or has in it what is neither a file nor a folder.
        """
        odd = irregular([folder])
        if odd is not None:
            raise self.damaged(str(odd.relative_to(self.root)), "it is neither a file nor a folder")


def _cannot(root: Path, error: OSError) -> str:
    return f"cannot keep state in {root}: {error.strerror or error}; give a writable folder with --store"
