"""Files that a command is to write: looked at before anything is computed for them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from modelpress.local.errors import UsageError


def cannot_write(option: str, path: Path, error: OSError) -> UsageError:
    """What to say where the file that an option names cannot be written."""
    return UsageError(f"{option}: cannot write {path}: {error.strerror}; name a writable file")


def _is_there(option: str, path: Path) -> UsageError:
    return UsageError(f"{option}: {path} is there already; remove it, or name another file")


def check_output(option: str, path: Path | None, *, new: bool = False) -> None:
    """Looks whether a file could be written, without writing one.

    Args:
        option: that names it.
        path: None: nothing is to be written.
        new: whether it must not be there yet.

    Raises:
        UsageError: it could not be written, or is there already.
    """
    if path is None:
        return
    if new and path.exists():
        raise _is_there(option, path)
    number = 0
    if path.is_dir():
        number = errno.EISDIR
    elif not path.parent.is_dir():
        number = errno.ENOTDIR if path.parent.exists() else errno.ENOENT
    elif not os.access(path if path.exists() else path.parent, os.W_OK):
        number = errno.EACCES
    if number:
        raise cannot_write(option, path, OSError(number, os.strerror(number)))


def write_output(option: str, path: Path, text: str, *, new: bool = False) -> None:
    """Writes a text as UTF-8, its line ends as they are.

    Raises:
        UsageError: it cannot be written, or is there already though it must be `new`.
    """
    try:
        with path.open("x" if new else "w", encoding="utf-8", newline="") as stream:
            stream.write(text)
    except FileExistsError:
        raise _is_there(option, path) from None
    except OSError as error:
        raise cannot_write(option, path, error) from error
