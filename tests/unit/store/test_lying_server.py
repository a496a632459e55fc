"""Servers that say one thing and send another: nothing aborts, nothing is believed, nothing waits for ever."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modelpress.store import StoreError, StoreUnavailableError, TooLargeError, manifest, objects, open_store

Answer = Callable[[socket.socket], None]
HEAD = (
    'HTTP/1.1 200 OK\r\nETag: "1"\r\nLast-Modified: Fri, 01 Jan 2027 00:00:00 GMT\r\n'
    "Content-Type: application/octet-stream\r\nContent-Length: {}\r\n\r\n"
)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Answer], str]]:
    """A server on loopback that reads a request and then does as it is told; gives its endpoint."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    listener = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()
    threads = []

    def start(answer: Answer) -> str:
        def one(connection: socket.socket) -> None:
            with connection:
                try:
                    while connection.recv(65_536):
                        answer(connection)
                except OSError:
                    pass

        def loop() -> None:
            while not over.is_set():
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                connection.settimeout(20)
                threading.Thread(target=one, args=(connection,), daemon=True).start()

        threads.append(threading.Thread(target=loop, daemon=True))
        threads[-1].start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    over.set()
    listener.close()


def announced(size: int, body: bytes = b"x" * 100) -> Answer:
    """An answer that announces `size` bytes, sends `body`, and ends the connection."""

    def answer(connection: socket.socket) -> None:
        connection.sendall(HEAD.format(size).encode() + body)
        connection.shutdown(socket.SHUT_RDWR)

    return answer


@pytest.mark.parametrize("size", [10**15, 2**63 - 1, 2**40])
def test_a_size_that_is_announced_is_not_set_aside(serve: Callable[[Answer], str], size: int, tmp_path: Path) -> None:
    """Ten to the fifteenth bytes were once asked of the allocator, which ended the process."""
    store = open_store("s3://bucket/a", endpoint=serve(announced(size)), timeout=2)
    with pytest.raises(TooLargeError, match="is larger than 67108864 bytes"):
        store.get_bytes("x")
    with pytest.raises(manifest.ManifestError, match="it is no manifest"):
        manifest.read(store, "")
    with pytest.raises(TooLargeError, match=f"has {size} bytes where 100 are known of it"):
        store.get_file("x", tmp_path / "x", 100)
    with pytest.raises(StoreError):
        store.get_file("x", tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [2**64, 10**30, -1, "x", ""])
def test_sizes_that_are_none(serve: Callable[[Answer], str], size: object) -> None:
    """What is no number of bytes is an error of the server's."""
    store = open_store("s3://bucket/a", endpoint=serve(announced(size)), timeout=2)  # type: ignore[arg-type]
    with pytest.raises(StoreError):
        store.get_bytes("x")


def test_less_than_was_announced_is_no_file(serve: Callable[[Answer], str], tmp_path: Path) -> None:
    """A body that ends early is not taken for the whole."""
    store = open_store("s3://bucket/a", endpoint=serve(announced(1000)), timeout=2)
    with pytest.raises(StoreError):
        store.get_file("x", tmp_path / "x")
    with pytest.raises(StoreError):
        store.get_bytes("x")
    assert list(tmp_path.iterdir()) == []


def test_a_download_that_drips_ends(
    serve: Callable[[Answer], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One byte now and then keeps a connection alive, but is no transfer."""

    def drip(connection: socket.socket) -> None:
        connection.sendall(HEAD.format(10**6).encode())
        for _ in range(200):
            connection.sendall(b"x")
            time.sleep(0.1)

    monkeypatch.setattr(objects, "MIN_RATE", 2**30)
    monkeypatch.setattr(objects, "MIN_SECONDS", 1.0)
    store = open_store("s3://bucket/a", endpoint=serve(drip), timeout=30)
    with pytest.raises(StoreUnavailableError, match="fewer than 1073741824 bytes a second"):
        store.get_bytes("x")
    with pytest.raises(StoreUnavailableError, match="fewer than 1073741824 bytes a second"):
        store.get_file("x", tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
