"""The artifact store on a real S3 server: its contract, its errors, and a server that goes away."""

from __future__ import annotations

import functools
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelpress.api.v1alpha1 import Objective
from modelpress.request import PublishRequest, RunRequest, trial_prefix
from modelpress.results.publish import publish
from modelpress.store import (
    ObjectMissingError,
    StoreError,
    StoreRefusedError,
    StoreUnavailableError,
    manifest,
    open_store,
)
from modelpress.store.testing import MIB, ArtifactStoreContract, Opener


@pytest.fixture
def bucket(s3: Any) -> str:
    return s3.new_bucket()


class TestS3(ArtifactStoreContract):
    """A prefix of a bucket."""

    @pytest.fixture
    def opener(self, s3: Any, bucket: str) -> Opener:
        return functools.partial(open_store, f"s3://{bucket}/team a/models", endpoint=s3.endpoint)

    @pytest.fixture
    def refused(self, opener: Opener, monkeypatch: pytest.MonkeyPatch) -> Opener:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret-" + "x" * 20)
        return opener

    @pytest.fixture
    def breaking(self, bucket: str, link: Callable[[int | None], Any]) -> Opener:
        uri = f"s3://{bucket}/team a/models"
        return functools.partial(open_store, uri, endpoint=link(20 * MIB).endpoint, timeout=3)


class TestS3WithoutPrefix(ArtifactStoreContract):
    """A whole bucket, found by the settings that other AWS clients use; refused for an access key nobody has."""

    test_put_if_absent_by_many_processes = None  # as above, and slow
    test_large_files_take_bounded_memory = None

    @pytest.fixture
    def opener(self, s3: Any, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Opener:
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        return functools.partial(open_store, f"s3://{bucket}")

    @pytest.fixture
    def refused(self, opener: Opener, monkeypatch: pytest.MonkeyPatch) -> Opener:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
        return opener

    @pytest.fixture
    def breaking(self, bucket: str, link: Callable[[int | None], Any]) -> Opener:
        return functools.partial(open_store, f"s3://{bucket}", endpoint=link(20 * MIB).endpoint, timeout=3)


def every_call(store: Any, tmp_path: Path) -> list[Callable[[], Any]]:
    """One call of each method of a store."""
    (tmp_path / "f").write_bytes(b"1")
    return [
        lambda: store.put_bytes("a/b", b"1"),
        lambda: store.put_file("a/b", tmp_path / "f"),
        lambda: store.put_if_absent("a/b", b"1"),
        lambda: store.get_bytes("a/b"),
        lambda: store.get_file("a/b", tmp_path / "g"),
        lambda: store.copy("a/b", "a/c"),
        lambda: store.exists("a/b"),
        lambda: store.list("a"),
        lambda: store.delete("a/b"),
        lambda: store.delete_prefix("a"),
    ]


def test_a_missing_bucket_is_named(s3: Any, tmp_path: Path) -> None:
    """No call takes a missing bucket for a missing object: each names the bucket and says to create it."""
    store = open_store("s3://no-such-bucket/p", endpoint=s3.endpoint)
    calls = every_call(store, tmp_path)
    for call in calls:
        with pytest.raises(StoreRefusedError, match="there is no bucket 'no-such-bucket'; create it"):
            call()


def test_a_server_that_is_not_there(s3: Any, free_port: int, tmp_path: Path) -> None:
    """A refused connection is an error that names the endpoint, for every call."""
    store = open_store("s3://bucket/p", endpoint=f"http://127.0.0.1:{free_port}", timeout=0.5)
    for call in every_call(store, tmp_path):
        with pytest.raises(
            StoreUnavailableError, match=f"no answer from http://127.0.0.1:{free_port} .*check that it runs"
        ):
            call()
    assert not (tmp_path / "g").exists()


def test_a_host_that_has_no_address(s3: Any) -> None:
    """A host name that does not resolve is an error that names the endpoint."""
    store = open_store("s3://bucket/p", endpoint="http://no-such-host.invalid:9000", timeout=0.5)
    with pytest.raises(StoreUnavailableError, match=r"no answer from http://no-such-host\.invalid:9000"):
        store.get_bytes("a")


def test_a_server_that_takes_connections_and_never_answers(s3: Any, silent_port: int, tmp_path: Path) -> None:
    """Silence is an error for every call, also for those that carry files."""
    store = open_store("s3://bucket/p", endpoint=f"http://127.0.0.1:{silent_port}", timeout=0.25)
    for call in every_call(store, tmp_path):
        with pytest.raises(StoreUnavailableError, match=f"no answer from http://127.0.0.1:{silent_port}"):
            call()


def test_a_download_that_breaks_off(s3: Any, bucket: str, tmp_path: Path, link: Callable[[int | None], Any]) -> None:
    """When the connection breaks half-way through a download, the local file that was there stays as it was."""
    with (tmp_path / "f").open("wb") as file:
        file.truncate(32 * MIB)
    open_store(f"s3://{bucket}", endpoint=s3.endpoint).put_file("large", tmp_path / "f")
    (tmp_path / "g").write_bytes(b"before")
    through = link(None)
    through.cut_after_reply(8 * MIB)
    with pytest.raises(StoreUnavailableError, match=f"s3://{bucket}/large"):
        open_store(f"s3://{bucket}", endpoint=through.endpoint, timeout=1).get_file("large", tmp_path / "g")
    assert (tmp_path / "g").read_bytes() == b"before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f", "g"]


def test_a_short_interruption_is_ridden_out(s3: Any, bucket: str, link: Callable[[int | None], Any]) -> None:
    """A connection that is reset once is made again, and the call succeeds."""
    through = link(None)
    store = open_store(f"s3://{bucket}", endpoint=through.endpoint)
    store.put_bytes("a", b"1")
    through.reset()
    assert store.get_bytes("a") == b"1"


@pytest.mark.parametrize("call", ["get_bytes('a')", "put_file('a', Path(sys.argv[2]))", "list('')"])
def test_an_interrupt_ends_a_call_that_waits(s3: Any, silent_port: int, tmp_path: Path, call: str) -> None:
    """SIGINT in the midst of a call to a silent server is a KeyboardInterrupt now, not when the call gives up."""
    (tmp_path / "large").write_bytes(b"1" * 2 * MIB)
    code = (
        "import signal, sys; from pathlib import Path; from modelpress.store import open_store\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "store = open_store('s3://bucket', endpoint=sys.argv[1], timeout=3600)\n"
        f"print('calls', flush=True); store.{call}"
    )
    command = [sys.executable, "-c", code, f"http://127.0.0.1:{silent_port}", tmp_path / "large"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "calls\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGINT
    assert errors.splitlines()[-1] == "KeyboardInterrupt"


def test_the_wrong_region(s3: Any, bucket: str) -> None:
    """A bucket of another region is named together with what to set."""
    store = open_store(f"s3://{bucket}", endpoint=s3.endpoint, region="eu-west-1")
    with pytest.raises(StoreRefusedError, match=r'another region .*"eu-west-1" is wrong.*set the store.s region'):
        store.put_bytes("a", b"1")


def test_https_to_a_server_of_plain_http(s3: Any, bucket: str) -> None:
    """A wrong scheme in the endpoint is an error that names the endpoint."""
    endpoint = s3.endpoint.replace("http://", "https://")
    with pytest.raises(StoreUnavailableError, match=re.escape(endpoint)):
        open_store(f"s3://{bucket}", endpoint=endpoint, timeout=0.5).get_bytes("a")


def test_no_credentials_at_all(s3: Any, bucket: str, silent_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without credentials the error names the variables to set; an instance's metadata service is asked before."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    # No request of this test may leave the machine: the metadata service's address goes to a proxy that never answers.
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{silent_port}")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{silent_port}")
    with pytest.raises(StoreRefusedError, match="no credentials were found; set AWS_ACCESS_KEY_ID"):
        open_store(f"s3://{bucket}", endpoint=s3.endpoint, timeout=0.5).get_bytes("a")


def test_a_bucket_in_the_host_name(s3: Any, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An endpoint whose host begins with the bucket's name, or the setting for it, addresses buckets by host."""
    # The made-up host resolves nowhere; the server stands in as the proxy for it, and takes the bucket from the host.
    monkeypatch.setenv("http_proxy", s3.endpoint)
    by_host = open_store(f"s3://{bucket}/p", endpoint=f"http://{bucket}.s3.test")
    by_host.put_bytes("a b", b"1")
    assert (s3.folder / bucket / "p" / "a b").read_bytes() == b"1"
    monkeypatch.setenv("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "true")
    by_setting = open_store(f"s3://{bucket}/p", endpoint="http://s3.test")
    assert by_setting.get_bytes("a b") == b"1"
    assert [info.path for info in by_setting.list("")] == ["a b"]


def test_a_path_through_an_object(s3: Any, bucket: str) -> None:
    """This server keeps objects as files, so a path through an object cannot be written; that is no lost race."""
    store = open_store(f"s3://{bucket}", endpoint=s3.endpoint)
    store.put_bytes("a", b"1")
    with pytest.raises(StoreError, match="a file stands where a folder is needed"):
        store.put_bytes("a/b", b"1")
    with pytest.raises(StoreError, match="a file stands where a folder is needed"):
        store.put_if_absent("a/b", b"1")
    assert store.get_bytes("a") == b"1"


def test_publishing_on_the_server(s3: Any, bucket: str, tmp_path: Path) -> None:
    """A sweep is published in a bucket: the best trial's files are copied there, verify, and follow another best."""
    store = open_store(f"s3://{bucket}/models", endpoint=s3.endpoint)
    request = RunRequest.model_validate(
        {
            "purpose": "publish",
            "namespace": "default",
            "name": "sweep",
            "uid": "01234567",
            "root": "default/sweep-01234567",
            "prefix": "default/sweep-01234567",
            "spec": {"model": {"entrypoint": "a:b"}, "stages": [{"finetune": {"epochs": 1}}]},
        }
    )
    for number in (0, 1):
        local = tmp_path / f"weights-{number}"
        local.write_bytes(bytes([number]) * 9 * MIB)
        prefix = trial_prefix(request.root, number)
        store.put_file(f"{prefix}/1-aaaaaaaa/model.safetensors", local)
        files = [manifest.entry("1-aaaaaaaa/model.safetensors", local)]
        manifest.commit(store, prefix, manifest.Manifest(attempt=1, files=files, spec_digest="d"))
    for best in (0, 1, 1):
        wanted = PublishRequest(objectives=[Objective(metric="default")], best=best)
        result = publish(request.model_copy(update={"publish": wanted}), store)
        found = manifest.read(store, f"{request.root}/best")
        assert found is not None
        assert found[1] == result.manifest_digest
        fetched = manifest.fetch(store, f"{request.root}/best", found[0], tmp_path / "best")
        assert fetched["model.safetensors"].read_bytes() == bytes([best]) * 9 * MIB
        assert len(store.list(f"{request.root}/best")) == 2


def test_a_copy_of_nothing_names_the_source(s3: Any, bucket: str) -> None:
    """The error of a copy names the object that is missing, not the one that was to be made."""
    with pytest.raises(ObjectMissingError, match=f"s3://{bucket}/source does not exist"):
        open_store(f"s3://{bucket}", endpoint=s3.endpoint).copy("source", "target")
