"""A tar as tarfile reads it, between limits: what is read of it in all, and what the headers of one member may take.

Left alone, tarfile reads whatever a header says of its length into memory, calls itself for each header that comes
before another one, and goes back where a size is negative.
"""

from __future__ import annotations

import re
import tarfile
from typing import IO, Any

HEADER_READS = 64  # an ordinary member has 1, one with a long name or with extended headers 3
HEADER_BYTES = 256 * 1024
MAX_GLOBAL = 64  # keywords that hold for all members that follow
_DIGITS = re.compile(rb"[0-9]{32}")  # tarfile's patterns take quadratic time on such, on Python below 3.11.10


class TooLargeError(Exception):
    """A limit is reached; the message says what there is too much of."""


class BoundedTar:
    """The members of an uncompressed tar, one after another.

    Args:
        stream: seekable; its end need not be known.
        limit: bytes that may be read or passed over.
        headers: bytes that the headers of all members may take, beyond the first block of each.

    Raises:
        TooLargeError: here, of `next`, and of reading what `open` gave.
        tarfile.TarError: likewise; it is no tar.
    """

    def __init__(self, stream: IO[bytes], limit: int, headers: int) -> None:
        self._stream = _Counted(stream, limit, headers)
        with self._stream.header():  # tarfile reads the first one as it opens the file
            self._file = tarfile.TarFile(fileobj=self._stream)  # type: ignore[arg-type]

    def next(self) -> tarfile.TarInfo | None:
        """The next member, with a size of 0 or more; None after the last."""
        with self._stream.header():
            member = self._file.next()
        self._file.members.clear()  # type: ignore[attr-defined]  # it keeps all that it has seen
        if len(self._file.pax_headers) > MAX_GLOBAL:
            raise TooLargeError(f"more than {MAX_GLOBAL} keywords that hold for all members")
        if member is not None and member.size < 0:
            raise tarfile.ReadError(f"the size of {member.name!r} is negative")
        return member

    def open(self, member: tarfile.TarInfo) -> IO[bytes]:
        """The content of the member that `next` gave last, a regular file."""
        content = self._file.extractfile(member)
        assert content is not None  # a regular file has content
        return content


class _Counted:
    """As much of a file as tarfile asks for. In a `with header()` all that is read is a member's headers."""

    def __init__(self, stream: IO[bytes], limit: int, headers: int) -> None:
        self._stream, self._limit, self._left = stream, limit, headers
        self._in_header = False
        self._reads = self._bytes = 0

    def header(self) -> _Counted:
        self._reads = self._bytes = 0
        self._left += tarfile.BLOCKSIZE + 1  # a member's first block, and the byte before it
        return self

    def __enter__(self) -> None:
        self._in_header = True

    def __exit__(self, *_: Any) -> None:
        self._in_header = False

    def tell(self) -> int:
        return self._stream.tell()

    def seek(self, position: int) -> int:
        self._hold(position)
        return self._stream.seek(position)

    def read(self, size: int) -> bytes:
        if self._in_header:
            self._reads, self._bytes = self._reads + 1, self._bytes + size
            if self._reads > HEADER_READS or self._bytes > HEADER_BYTES:
                most = f"{HEADER_BYTES >> 10} KiB or {HEADER_READS} pieces"
                raise TooLargeError(f"a member whose headers take more than {most}")
            self._left -= size
            if self._left < 0:
                raise TooLargeError("more in the headers of its members than its size allows")
        self._hold(self._stream.tell() + size)
        data = self._stream.read(size)
        if self._in_header and size > tarfile.BLOCKSIZE and _DIGITS.search(data):
            raise tarfile.ReadError("a header has a number of 32 digits")
        return data

    def _hold(self, position: int) -> None:
        if position > self._limit:
            raise TooLargeError(f"more than {self._limit >> 20} MiB unpacked")
