"""Files in a folder that may come from elsewhere: regular ones alone, never through a link, of bounded size.

A pipe would keep its reader waiting for ever, a device has no end, and a link leads out of the folder.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path


def open_regular(path: Path, flags: int, mode: int = 0o644) -> int:
    """A descriptor, as os.open gives it.

    Raises:
        OSError: as os.open; or it is there and no regular file.
    """
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return descriptor


def read_regular(path: Path, limit: int) -> bytes:
    """The content of a file of at most `limit` bytes.

    Raises:
        OSError: as open_regular; or it is larger.
    """
    with os.fdopen(open_regular(path, os.O_RDONLY), "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"it is larger than {limit} bytes", str(path))
    return data


def irregular(folders: Iterable[Path]) -> Path | None:
    """The first of these folders that is a link, or of what is in them, that is neither a file nor a folder."""
    for folder in folders:
        if folder.is_symlink():
            return folder
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            kind = path.lstat().st_mode
            if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
                return path
    return None
