"""A runner's process that fetches its code, and takes its run's uid from the pod."""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from modelpress.result import ExitCode, RunResult

TUNE = [{"finetune": {"epochs": 1}}]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def fetched(bench: Any, code: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A request whose code is nowhere on this machine."""
    request = bench.request(spec={"stages": TUNE, "code": code}, runUid="", **more)
    del request["codePath"]
    return request


def test_code_from_an_archive_runs(bench: Any, tmp_path: Path) -> None:
    """The archive is unpacked, imported and removed; files are written under the pod's uid, digests are as usual."""
    archive = tmp_path / "code.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(bench.code, arcname=".")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    code, message, log = bench.run(bench.request(purpose="prepare"))
    assert code == ExitCode.DONE, log
    shutil.rmtree(bench.code)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    places = {"TMPDIR": str(temporary), "MODELPRESS_RUN_UID": "feedbeef-1111-2222-3333-444455556666"}
    request = fetched(bench, {"path": "ignored", "source": {"uri": archive.as_uri(), "sha256": digest}})
    code, trial, log = bench.run(request, **places)
    assert code == ExitCode.DONE, log
    assert RunResult.model_validate(trial).code_digest == message["codeDigest"]
    assert (bench.store / bench.root / "1-feedbeef" / "result.json").exists()
    assert list(temporary.glob("modelpress-*")) == []


def test_what_cannot_be_fetched_may_be_there_next_time(bench: Any) -> None:
    """A server that does not answer is exit code 1, so another attempt follows; the message names the field."""
    url = "http://127.0.0.1:1/a.git"
    code, message, _ = bench.run(fetched(bench, {"git": {"url": url, "commit": COMMIT}}), NO_PROXY="127.0.0.1")
    assert code == ExitCode.FAILED
    assert message["reason"] == "RunnerFailed"
    assert message["message"].startswith(f"spec.code.git: {url} cannot be fetched (")


def test_a_missing_secret_of_the_store_is_named(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod starts without it; what the store says alone would not tell where the credentials should come from."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    store = {"uri": "s3://models/out", "endpoint": "http://127.0.0.1:1", "secretRef": {"name": "s3-keys"}}
    request = bench.request(purpose="collect", spec={"store": store})
    pod = {"MODELPRESS_RUN_UID": "feedbeef-1111", "NO_PROXY": "127.0.0.1", "AZURE_X": "of another store"}
    code, message, _ = bench.run(request, **pod)
    assert code == ExitCode.FAILED
    assert message["message"].startswith("spec.store.secretRef: there is no Secret s3-keys in the pod's namespace, or ")
    assert "s3://models/out" in message["message"]


def test_what_never_will_be_there_is_told_once(bench: Any) -> None:
    """A digest that does not fit is exit code 2."""
    archive = bench.folder / "code.tar"
    archive.write_bytes(b"x")
    source = {"uri": archive.as_uri(), "sha256": "0" * 64}
    code, message, _ = bench.run(fetched(bench, {"source": source}))
    assert (code, message["reason"]) == (ExitCode.INVALID, "InvalidSpec")
    assert message["message"].startswith("spec.code.source.sha256: ")
