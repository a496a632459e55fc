"""hf:// sources, from a server on this machine that answers as the Hub does."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants
from tiny_models import bert, settings

from modelpress_runner.errors import InvalidSpecError, StoreError
from modelpress_runner.huggingface.source import load
from modelpress_runner.inputs.hub import fetch
from modelpress_runner.inputs.uri_resolver import UriResolver

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """The repository org/tiny with a branch main and a tag v1; org/closed is for members only."""

    folder: Path
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[:4] == ["api", "models", "org", "tiny"]:
            revision = parts[5] if len(parts) > 5 else "main"
            if revision not in ("main", "v1", COMMIT):
                self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
                return
            names = sorted(path.name for path in self.folder.iterdir())
            files = [{"rfilename": name, "size": (self.folder / name).stat().st_size} for name in names]
            if "tree" in parts:
                listed = [
                    {"type": "file", "path": each["rfilename"], "size": each["size"], "oid": "0"} for each in files
                ]
                self._answer(200, json.dumps(listed).encode())
                return
            about = {"id": "org/tiny", "sha": COMMIT, "siblings": files, "tags": [], "private": False}
            self._answer(200, json.dumps(about).encode())
        elif parts[:3] == ["org", "tiny", "resolve"]:
            content = (self.folder / parts[-1]).read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()}"'
            self._answer(200, content, {"X-Repo-Commit": COMMIT, "ETag": etag})
        elif "closed" in parts:
            self._answer(403, b"", {"X-Error-Code": "GatedRepo"})
        else:
            self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET  # noqa: N815

    def _answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing on the test's output."""


def point_to(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT and HF_HUB_CACHE say to a process that starts."""
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A running Hub, and an empty cache of the client."""

    class Own(Hub):
        folder = bert(tmp_path / "repository")
        asked: list[str] = []  # noqa: RUF012

    (Own.folder / "pytorch_model.bin").write_bytes(b"pickled")
    (Own.folder / "modeling_evil.py").write_text("raise SystemExit")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Own)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    point_to(f"http://127.0.0.1:{server.server_port}", tmp_path, monkeypatch)
    yield Own
    server.shutdown()
    server.server_close()
    thread.join()


def fetched(uri: str, tmp_path: Path, revision: str | None = None) -> Path:
    """The folder of a source."""
    spec = settings("feature-extraction", source={"uri": uri, "revision": revision})
    return fetch(spec.source, UriResolver(None, tmp_path / "fetched"))


def test_a_repository_is_fetched_without_pickles_and_code(hub: type[Hub], tmp_path: Path) -> None:
    """Configuration, safetensors and tokenizer come; what is never opened does not."""
    folder = fetched("hf://org/tiny", tmp_path, "v1")
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not any(name.endswith((".bin", ".py")) for name in names)
    assert not any("pytorch_model" in path or "evil" in path for path in hub.asked)
    assert load(settings("feature-extraction"), folder).model.config.hidden_size == 16


def test_repositories_and_revisions_that_are_not_there(hub: type[Hub], tmp_path: Path) -> None:
    """One sentence at the field, which no further attempt would change."""
    with pytest.raises(InvalidSpecError, match=r"source\.revision: org/tiny has no revision v2; give a commit"):
        fetched("hf://org/tiny", tmp_path, "v2")
    for name in ("none", "closed"):
        with pytest.raises(InvalidSpecError, match=rf"source\.uri: there is no repository org/{name}, or it"):
            fetched(f"hf://org/{name}", tmp_path)


def test_a_hub_that_does_not_answer_may_be_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network is an error of the store, not of the recipe, and says what to do without one."""
    point_to("http://127.0.0.1:9", tmp_path, monkeypatch)
    with pytest.raises(StoreError, match=r"source\.uri: .*; put the folder into an object store"):
        fetched("hf://org/tiny", tmp_path)
