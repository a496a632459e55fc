"""A git server on loopback: git's own http-backend behind Python's HTTP server, with or without a password."""

from __future__ import annotations

import base64
import os
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

AUTHOR = {
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@example.com",
    "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@example.com",
}


def git(folder: Path, *arguments: str) -> str:
    """What git prints, run in a folder."""
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True, env={**os.environ, **AUTHOR}
    )
    return done.stdout.strip()


@dataclass
class GitServer:
    """Repositories below `folder`, served at `url`; `seen` are the paths asked for."""

    folder: Path
    url: str = ""
    credentials: tuple[str, str] | None = None
    broken: int = 0  # answer so many requests with 500 first
    seen: list[str] = field(default_factory=list)

    def repository(self, name: str, *, any_commit: bool = True) -> Path:
        """An empty repository that is served; `any_commit`: by the hash of any commit, as the great hosts do it."""
        path = self.folder / name
        path.mkdir()
        git(path, "init", "--quiet", "--initial-branch=main")
        git(path, "config", "uploadpack.allowAnySHA1InWant", str(any_commit).lower())
        return path

    def commit(self, path: Path, *, tree: bool = False, **files: str) -> str:
        """Commits Python files (`__` in a name is a '/', `_py` its suffix); the hash, or that of the commit's tree."""
        for name, text in files.items():
            file = path / (name.replace("__", "/").removesuffix("_py") + ".py")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        git(path, "add", "--all")
        git(path, "commit", "--quiet", "--allow-empty", "--message=more")
        return git(path, "rev-parse", "HEAD^{tree}" if tree else "HEAD")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        self._serve(b"")

    def do_POST(self) -> None:
        self._serve(self.rfile.read(int(self.headers.get("Content-Length") or 0)))

    def _serve(self, body: bytes) -> None:
        git_server = self.server.git_server
        git_server.seen.append(self.path)
        path, _, query = self.path.partition("?")
        if git_server.broken > 0:
            git_server.broken -= 1
            self._answer(500, [], b"")
            return
        if git_server.credentials is not None:
            expected = base64.b64encode(":".join(git_server.credentials).encode()).decode()
            if self.headers.get("Authorization") != f"Basic {expected}":
                self._answer(401, [("WWW-Authenticate", 'Basic realm="git"')], b"")
                return
        environment = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(git_server.folder),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REQUEST_METHOD": self.command,
            "CONTENT_TYPE": self.headers.get("Content-Type") or "",
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding") or "",
            "HTTP_GIT_PROTOCOL": self.headers.get("Git-Protocol") or "",
        }
        done = subprocess.run(["git", "http-backend"], input=body, stdout=subprocess.PIPE, env=environment, check=False)
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        headers = [tuple(line.split(": ", 1)) for line in head.decode().splitlines()]
        status = next((int(value.split()[0]) for name, value in headers if name == "Status"), 200)
        self._answer(status, [(name, value) for name, value in headers if name != "Status"], content)

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Tests speak for themselves."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, git_server: GitServer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.git_server = git_server


@pytest.fixture
def git_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GitServer]:
    """A server that runs as long as the test; git sees no settings of whoever runs it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder = tmp_path / "served"
    folder.mkdir()
    made = GitServer(folder)
    server = _Server(made)
    made.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield made
    server.shutdown()
    thread.join()
    server.server_close()
