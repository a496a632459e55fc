"""A real S3 server on loopback, and connections to it that misbehave."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

BUILD = Path(__file__).parents[3] / "tools" / "s3" / "build.sh"
AWS_SETTINGS = [
    "AWS_PROFILE",
    "AWS_SESSION_TOKEN",
    "AWS_ENDPOINT",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_VIRTUAL_HOSTED_STYLE_REQUEST",
    "AWS_CA_BUNDLE",
]
DOMAIN = "s3.test"  # buckets are also served at <bucket>.s3.test


@dataclass(frozen=True)
class S3Server:
    """A running server; a bucket is a folder below `folder`."""

    endpoint: str
    port: int
    folder: Path
    access_key: str
    secret_key: str

    def new_bucket(self) -> str:
        """Make an empty bucket and return its name."""
        name = f"bucket-{secrets.token_hex(6)}"
        (self.folder / name).mkdir()
        return name


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """versitygw on a free port of the loopback address, with random credentials; stopped by its pid."""
    built = subprocess.run([BUILD], stdout=subprocess.PIPE, text=True, check=False)
    if built.returncode == 2:
        pytest.skip("the S3 server cannot be built: Go is missing (tools/s3/build.sh says how to get it)")
    assert built.returncode == 0, "tools/s3/build.sh failed; its messages are above"
    home = tmp_path_factory.mktemp("s3")
    folder, log = home / "buckets", home / "log"
    folder.mkdir()
    command = [built.stdout.strip(), "--quiet", "--virtual-domain", DOMAIN]
    backend = ["posix", str(folder)]
    try:
        os.setxattr(folder, "user.modelpress", b"1")
    except OSError:  # then it keeps its metadata in files
        (home / "sidecar").mkdir()
        backend = ["posix", "--sidecar", str(home / "sidecar"), str(folder)]
    access, secret = secrets.token_hex(10), secrets.token_hex(20)
    environment = {"PATH": os.environ["PATH"], "ROOT_ACCESS_KEY": access, "ROOT_SECRET_KEY": secret}
    for _ in range(5):  # the free port may be taken by another process before the server has it
        port = _free_port()
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, "--port", f"127.0.0.1:{port}", *backend],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=home,
            )
        if _answers(process, port):
            break
    else:
        pytest.fail(f"the S3 server does not start:\n{log.read_text()}")
    try:
        yield S3Server(f"http://127.0.0.1:{port}", port, folder, access, secret)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The S3 server, with its credentials, and no other settings of AWS, in the environment."""
    for name in AWS_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret_key)
    return s3_server


class Link:
    """A TCP connection to a server through a port of its own, which can break.

    After `limit` bytes towards the server every connection is reset and new ones are refused (`limit` None: never).
    """

    def __init__(self, target: int, limit: int | None) -> None:
        self._target = target
        self._limit = limit  # bytes towards the server
        self._reply_limit: int | None = None
        self._passed = {True: 0, False: 0}  # towards the server, and back
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cut_after_reply(self, limit: int) -> None:
        """From now on break after so many bytes from the server."""
        with self._lock:
            self._passed[False], self._reply_limit = 0, limit

    def reset(self) -> None:
        """Break all connections there are; new ones are taken."""
        with self._lock:
            sockets, self._sockets = self._sockets, []
        self._close(sockets)

    def cut(self) -> None:
        """Break all connections there are, and refuse new ones."""
        self._close([self._listener])
        self.reset()

    @staticmethod
    def _close(sockets: list[socket.socket]) -> None:
        for each in sockets:
            # shutdown wakes the thread that waits in accept or recv; close alone does not.
            for action in (lambda s=each: s.shutdown(socket.SHUT_RDWR), each.close):
                with contextlib.suppress(OSError):
                    action()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            with self._lock:
                self._sockets += [near, far]
            for source, sink, forward in ((near, far, True), (far, near, False)):
                threading.Thread(target=self._pump, args=(source, sink, forward), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, forward: bool) -> None:
        try:
            while data := source.recv(65536):
                with self._lock:
                    self._passed[forward] += len(data)
                    limit = self._limit if forward else self._reply_limit
                    broken = limit is not None and self._passed[forward] > limit
                if broken:
                    self.cut()
                    return
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            return


@pytest.fixture
def link(s3: S3Server) -> Iterator[Callable[[int | None], Link]]:
    """Makes links to the server that break after so many bytes."""
    made: list[Link] = []

    def make(limit: int | None) -> Link:
        made.append(Link(s3.port, limit))
        return made[-1]

    yield make
    for each in made:
        each.cut()


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def free_port() -> int:
    """A port of the loopback address that nobody listens on."""
    return _free_port()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    deadline = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return process.poll() is None
    if process.poll() is None:
        process.kill()
    process.wait()
    return False
