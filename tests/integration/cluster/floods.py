"""What strangers may do to an operator's port, on loopback and bounded: bombs, silence, slow and huge headers."""

from __future__ import annotations

import contextlib
import functools
import socket
import time
import zlib
from collections.abc import Iterator

UNFOLDED = 256 * 1024 * 1024


@functools.cache
def folded() -> bytes:
    """What unfolds to UNFOLDED bytes; made once, in a second of the processor."""
    return zlib.compress(bytes(UNFOLDED), 9)


def connect(port: int, address: str = "127.0.0.1", seconds: float = 5.0) -> socket.socket:
    """A connection from one of loopback's addresses."""
    return socket.create_connection(("127.0.0.1", port), timeout=seconds, source_address=(address, 0))


@contextlib.contextmanager
def held(port: int, count: int, text: bytes = b"", addresses: int = 1) -> Iterator[list[socket.socket]]:
    """So many connections that say this much and no more, from so many addresses."""
    open_: list[socket.socket] = []
    try:
        for number in range(count):
            with contextlib.suppress(OSError):
                one = connect(port, f"127.0.0.{2 + number % addresses}")
                open_.append(one)
                one.sendall(text)
        yield open_
    finally:
        for one in open_:
            one.close()


def alive(connections: list[socket.socket]) -> int:
    """How many of them the other side has not closed."""
    count = 0
    for one in connections:
        one.setblocking(False)
        try:
            count += one.recv(1, socket.MSG_PEEK) != b""
        except BlockingIOError:
            count += 1
        except OSError:
            pass
    return count


def bomb(port: int, encoding: str = "deflate") -> bytes:
    """Send one; the status line of the answer."""
    body = folded()
    head = f"POST /progress HTTP/1.1\r\nHost: x\r\nContent-Encoding: {encoding}\r\nContent-Length: {len(body)}\r\n\r\n"
    return ask(port, head.encode() + body)


def ask(port: int, data: bytes, seconds: float = 5.0) -> bytes:
    """Send this; the first line of the answer, empty if the connection was closed without one."""
    with contextlib.suppress(OSError), connect(port, seconds=seconds) as one:
        with contextlib.suppress(OSError):
            one.sendall(data)
        answer = b""
        while b"\r\n" not in answer and (more := one.recv(4096)):
            answer += more
        return answer.partition(b"\r\n")[0]
    return b""


def drip(connections: list[socket.socket], seconds: float, every: float = 1.0) -> None:
    """A byte of a header each, now and then."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for one in connections:
            with contextlib.suppress(OSError):
                one.setblocking(False)
                one.send(b"a")
        time.sleep(every)


def wave(port: int, *, bombs: int = 30, silent: int = 300, slow: int = 200, hold: float = 5.0) -> None:
    """All of it once; ends within seconds."""
    with held(port, silent, addresses=20), held(port, slow, b"GET / HTTP/1.1\r\nX-", addresses=20) as slowly:
        for number in range(bombs):
            bomb(port, ("deflate", "gzip")[number % 2])
        ask(port, b"POST /progress HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 200_000 + b"\r\n\r\n")
        ask(port, b"POST /progress HTTP/1.1\r\nAuthorization: Bearer " + b"a" * 6000 + b".b.c\r\nHost: x\r\n\r\n")
        drip(slowly, hold)
