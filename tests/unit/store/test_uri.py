"""Store URIs: what opens, what is refused, and what a message may repeat."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from modelpress.store import StoreError, StoreRefusedError, StoreUriError, open_store
from modelpress.store.uri import StoreUri, parse_uri


@pytest.mark.parametrize(
    ("uri", "parts"),
    [
        ("s3://models/out", ("s3", "models", "out", "s3://models/out")),
        ("S3://models/a b/c/", ("s3", "models", "a b/c", "s3://models/a b/c")),
        ("s3://models", ("s3", "models", "", "s3://models")),
        ("gs://my_bucket.example/x", ("gs", "my_bucket.example", "x", "gs://my_bucket.example/x")),
        ("az://container/x", ("az", "container", "x", "az://container/x")),
        ("memory://", ("memory", "", "", "memory://")),
        ("memory://name/p", ("memory", "name", "p", "memory://name/p")),
        ("file:///data/a%20b%23", ("file", "", "/data/a b#", "file:///data/a%20b%23")),
        ("file://localhost/data/../x", ("file", "", "/x", "file:///x")),
        ("/data/100%/#1", ("file", "", "/data/100%/#1", "/data/100%/#1")),
    ],
)
def test_parts_of_a_uri(uri: str, parts: tuple[str, str, str, str]) -> None:
    """A URI gives scheme, bucket, prefix and its normal spelling, which gives the same parts again."""
    parsed = parse_uri(uri)
    assert parsed == StoreUri(*parts)
    assert parse_uri(parsed.text) == parsed


def test_a_relative_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store keeps its place when the working directory changes, and ~ is the home directory."""
    monkeypatch.chdir(tmp_path)
    store = open_store("modelpress-runs")
    monkeypatch.chdir("/")
    store.put_bytes("a", b"1")
    assert (tmp_path / "modelpress-runs" / "a").read_bytes() == b"1"
    assert store.uri == str(tmp_path / "modelpress-runs")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_store("~/x").uri == str(tmp_path / "x")


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("", "the store's URI is empty; give s3://bucket/prefix"),
        ("  ", "is empty"),
        ("s4://bucket", "unknown scheme 's4'; did you mean s3://?"),
        ("s3a://bucket", "unknown scheme 's3a'; did you mean s3://?"),
        ("gcs://bucket", "did you mean gs://?"),
        ("azure://container", "did you mean az://?"),
        ("flie:///x", "did you mean file://?"),
        ("memroy://x", "did you mean memory://?"),
        ("ftp://host/x", "unknown scheme 'ftp'; give s3://bucket/prefix"),
        ("https://minio:9000/bucket", "give s3://bucket/prefix, and this address as the store's endpoint"),
        ("s3:/bucket/x", "// is missing after s3:"),
        ("s3://", "no bucket is named; give s3://bucket/prefix"),
        ("s3:///prefix", "no bucket is named"),
        ("s3://my bucket/x", "the bucket name 'my bucket' is not valid"),
        ("s3://b/a/../c", "the prefix has the segment '..'"),
        ("s3://b/a//c", "the prefix has an empty segment"),
        ("gs://b/x#1", "has no ? or #"),
        ("file://data/x", "the path must be absolute; give file:///path (three slashes), or the plain path 'data/x'"),
        ("file:///a?b", "write ? as %3F"),
    ],
)
def test_uris_that_cannot_be_meant(uri: str, says: str) -> None:
    """A URI that cannot be opened is refused before anything is contacted, with what to write instead."""
    with pytest.raises(StoreUriError) as caught:
        open_store(uri)
    assert says in str(caught.value)


@pytest.mark.parametrize("uri", ["s3://key:hunter2@bucket/x", "az://container/x?sv=1&sig=hunter2", "gs://u:hunter2@b"])
def test_credentials_in_a_uri_are_refused_and_not_repeated(uri: str) -> None:
    """A URI is stored and printed in many places, so it never carries credentials; nor does the message."""
    with pytest.raises(StoreUriError) as caught:
        open_store(uri)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("endpoint", "says"),
    [
        ("minio:9000", "is no address; give http://host:port"),
        ("ftp://minio", "is no address"),
        ("http://", "is no address"),
        ("http://host:notaport", "is no address"),
        ("http://key:hunter2@minio:9000", "holds credentials"),
        ("http://minio:9000/?token=hunter2", "holds credentials, ? or #"),
    ],
)
def test_endpoints_that_are_no_addresses(endpoint: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An endpoint is checked like the URI, whether it is given or comes from the environment."""
    with pytest.raises(StoreUriError) as caught:
        open_store("s3://bucket", endpoint=endpoint)
    assert says in str(caught.value)
    assert "hunter2" not in str(caught.value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(StoreUriError, match="AWS_ENDPOINT_URL"):
        open_store("s3://bucket")


@pytest.mark.parametrize("uri", ["memory://x", "/tmp/x", "gs://bucket", "az://container"])
def test_endpoint_and_region_are_for_s3_only(uri: str) -> None:
    """A setting that would have no effect is refused."""
    with pytest.raises(StoreUriError, match="endpoint is for s3:// stores only"):
        open_store(uri, endpoint="http://minio:9000")
    with pytest.raises(StoreUriError, match="region is for s3:// stores only"):
        open_store(uri, region="eu-west-1")


def test_a_timeout_must_be_positive() -> None:
    """No time at all cannot be meant."""
    with pytest.raises(ValueError, match="timeout must be above 0"):
        open_store("memory://x", timeout=0)


def test_azure_without_an_account_names_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Azure needs the account's name to open; the error says where it is taken from."""
    for name in list(os.environ):
        if name.startswith("AZURE_"):
            monkeypatch.delenv(name)
    with pytest.raises(StoreRefusedError, match=r"az://container/x: the store cannot .*AZURE_STORAGE_ACCOUNT_NAME"):
        open_store("az://container/x")


def test_a_ca_bundle_that_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """AWS_CA_BUNDLE is honoured, so a file that is not there is an error."""
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "none.pem"))
    with pytest.raises(StoreError, match=r"^AWS_CA_BUNDLE names .*none\.pem, which cannot be read"):
        open_store("s3://bucket", endpoint="https://minio:9000")


def test_a_folder_by_path_and_by_uri(tmp_path: Path) -> None:
    """A folder's plain path and its file:// URI, with its escapes, are the same store."""
    folder = tmp_path / "a b#c%20"
    open_store(str(folder)).put_bytes("x", b"1")
    store = open_store(folder.as_uri())
    assert store.get_bytes("x") == b"1"
    assert store.uri == f"{tmp_path.as_uri()}/a%20b%23c%2520"
    assert open_store(store.uri).get_bytes("x") == b"1"


def test_memory_is_shared_by_name_and_apart_by_prefix() -> None:
    """All who open memory://name in this process see the same objects, each below its own prefix."""
    open_store("memory://shared-name/a").put_bytes("x", b"1")
    assert open_store("memory://shared-name").list("")[0].path == "a/x"
    assert open_store("memory://shared-name/a").get_bytes("x") == b"1"
    assert open_store("memory://shared-name/b").list("") == []
    assert open_store("memory://another-name").list("") == []


def test_importing_the_store_loads_no_storage_library() -> None:
    """The package stays light: obstore is loaded when a store is opened."""
    code = (
        "import sys, modelpress.store, modelpress.store.manifest, modelpress.store.layout\n"
        "print([name for name in ('obstore', 'torch', 'optuna', 'kubernetes') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_opening_reads_and_makes_nothing(tmp_path: Path) -> None:
    """A folder appears at the first write, and looking into one that is not there is no error."""
    store = open_store(str(tmp_path / "new"))
    assert store.list("") == []
    assert not store.exists("a")
    store.delete("a")
    store.delete_prefix("a")
    assert not (tmp_path / "new").exists()
    store.put_bytes("a", b"1")
    assert (tmp_path / "new" / "a").read_bytes() == b"1"
