"""The manifest: one spelling, one winner, and no file that was not verified."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from modelpress.store import ArtifactStore, ObjectInfo, StoreError, StoreUnavailableError, manifest, open_store
from modelpress.store.manifest import FileEntry, Manifest, ManifestError, RunMetrics


@pytest.fixture(params=["memory", "folder"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    return open_store(f"memory://{tmp_path.name}" if request.param == "memory" else str(tmp_path / "store"))


def draft(**fields: Any) -> Manifest:
    """A manifest of one file of four bytes."""
    known: dict[str, Any] = {
        "attempt": 1,
        "files": [FileEntry(path="1-abc/model.pt2", sha256=hashlib.sha256(b"data").hexdigest(), bytes=4)],
        "spec_digest": "d",
    }
    return Manifest(**(known | fields))


def test_canonical_bytes_and_digest(store: ArtifactStore) -> None:
    """The bytes that stand are canonical JSON with the documented keys, and the digest is their sha256."""
    metrics = RunMetrics(
        baseline={"default": 0.97, "macs": 100.0}, compressed={"default": 0.96}, stages=[{"b": 1, "a": 2}]
    )
    written = draft(metrics=metrics, code_digest="c", versions={"torch": "2.13"}, required_imports=["é"])
    standing, digest = manifest.commit(store, "p", written)
    data = store.get_bytes("p/manifest.json")
    sha256 = "3a6eb0790f39ac87c94f3856b2dd2c5d110e6811602261a9a923d3bb23adc8b7"
    assert data.decode() == (
        '{"apiVersion":"modelpress.dev/v1alpha1","attempt":1,"codeDigest":"c",'
        '"files":[{"bytes":4,"path":"1-abc/model.pt2","sha256":"' + sha256 + '"}],'
        '"metrics":{"baseline":{"default":0.97,"macs":100.0},"compressed":{"default":0.96},"stages":[{"a":2,"b":1}]},'
        '"requiredImports":["é"],"specDigest":"d","versions":{"torch":"2.13"}}'
    )
    assert digest == hashlib.sha256(data).hexdigest()
    assert standing == written
    assert manifest.read(store, "p") == (written, digest)


names = st.text(alphabet="abcXYZ_.", min_size=1, max_size=8).map(lambda text: f"m{text}x")
metric_values = st.dictionaries(names, st.floats(allow_nan=False, allow_infinity=False), max_size=3)


@given(
    attempt=st.integers(1, 10_000),
    sizes=st.dictionaries(names, st.integers(0, 2**60), max_size=4),
    baseline=metric_values,
    compressed=metric_values,
)
def test_any_manifest_reads_back_as_it_was(
    attempt: int, sizes: dict[str, int], baseline: dict[str, float], compressed: dict[str, float]
) -> None:
    """Encoding loses nothing, whatever the numbers, and does not depend on the order of keys."""
    store = open_store("memory://manifest-round-trip")
    store.delete("t/manifest.json")
    files = [FileEntry(path=f"{attempt}-a/{name}", sha256="0" * 64, bytes=size) for name, size in sizes.items()]
    metrics = RunMetrics(baseline=baseline, compressed=compressed)
    turned = RunMetrics(baseline=dict(reversed(baseline.items())), compressed=compressed)
    written = draft(attempt=attempt, files=files, metrics=metrics)
    assert manifest.encode(written) == manifest.encode(draft(attempt=attempt, files=files, metrics=turned))
    committed = manifest.commit(store, "t", written)
    assert committed[0] == written
    assert manifest.read(store, "t") == committed


def test_the_first_commit_stands(store: ArtifactStore) -> None:
    """A later committer is told what stands, and changes nothing."""
    first, second = draft(attempt=1), draft(attempt=2)
    told = manifest.commit(store, "p", first)
    assert manifest.commit(store, "p", second) == told == (first, manifest.digest_of(manifest.encode(first)))
    assert manifest.commit(store, "p", first) == told


def test_no_manifest_is_none(store: ArtifactStore) -> None:
    """Reading where nothing was committed is no error, at any prefix, the store's own included."""
    assert manifest.read(store, "p") is None
    assert manifest.read(store, "") is None
    manifest.commit(store, "", draft())
    assert manifest.read(store, "") is not None
    assert store.list("") == [ObjectInfo("manifest.json", len(manifest.encode(draft())))]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "this is not JSON"),
        (b"\xff\xfe", "this is not JSON"),
        (manifest.encode(draft())[:-20], "this is not JSON"),
        (b"[]", "it has no apiVersion"),
        (b'{"name": "another tool"}', "it has no apiVersion where modelpress.dev/v1alpha1 is read; move it away"),
        (b'{"apiVersion": "v2"}', "it has apiVersion 'v2'"),
        (b'{"apiVersion": "modelpress.dev/v1alpha1"}', "the manifest is damaged at attempt: Field required"),
        (manifest.encode(draft()).replace(b"1-abc/", b"../../"), "has the segment '..'"),
        (manifest.encode(draft()).replace(b"1-abc/", b"/etc/"), "is absolute"),
        (manifest.encode(draft()).replace(b'"bytes":4', b'"bytes":-4'), "damaged at files.0.bytes"),
        (manifest.encode(draft()).replace(b'"sha256":"3a', b'"sha256":"ZZ'), "damaged at files.0.sha256"),
        (manifest.encode(draft(files=draft().files * 1)).replace(b'"attempt":1', b'"attempt":0'), "damaged at attempt"),
    ],
)
def test_foreign_and_damaged_manifests(store: ArtifactStore, content: bytes, says: str) -> None:
    """What is no manifest of ours is an error with its path, for readers and committers, and is never overwritten."""
    store.put_bytes("p/manifest.json", content)
    for call in (lambda: manifest.read(store, "p"), lambda: manifest.commit(store, "p", draft())):
        with pytest.raises(ManifestError) as caught:
            call()
        assert str(caught.value).startswith(f"{store.uri}/p/manifest.json: ")
        assert says in str(caught.value)
    assert store.get_bytes("p/manifest.json") == content


def test_keys_of_later_versions_are_skipped(store: ArtifactStore) -> None:
    """A manifest with keys that this version does not know reads as if they were not there."""
    value = json.loads(manifest.encode(draft())) | {"signature": "x"}
    value["files"][0]["mode"] = 7
    store.put_bytes("p/manifest.json", json.dumps(value).encode())
    found = manifest.read(store, "p")
    assert found is not None
    assert found[0] == draft()


def test_two_files_of_one_path_are_refused() -> None:
    """A manifest cannot promise two contents for one path."""
    with pytest.raises(ValidationError, match="two files have the same path"):
        draft(files=draft().files * 2)


class Late:
    """A store whose answer to put_if_absent gets lost, after or before the object was written."""

    def __init__(self, store: ArtifactStore, written: bool) -> None:
        self._store, self._written = store, written

    def put_if_absent(self, path: str, data: bytes) -> bool:
        if self._written:
            self._store.put_if_absent(path, data)
        raise StoreUnavailableError("no answer")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def test_a_lost_answer_to_a_commit(store: ArtifactStore) -> None:
    """When the server's answer is lost, what stands decides; if nothing stands, the error is told."""
    with pytest.raises(StoreUnavailableError):
        manifest.commit(Late(store, written=False), "p", draft())
    told = manifest.commit(Late(store, written=True), "p", draft())
    assert told == manifest.read(store, "p")
    assert manifest.commit(Late(store, written=False), "p", draft(attempt=2)) == told


def artifact(store: ArtifactStore, tmp_path: Path, contents: dict[str, bytes], folder: str = "1-abc/") -> Manifest:
    """Files and a committed manifest under p/."""
    files = []
    for name, content in contents.items():
        local = tmp_path / "local"
        local.write_bytes(content)
        store.put_file(f"p/{folder}{name}", local)
        files.append(manifest.entry(f"{folder}{name}", local))
    return manifest.commit(store, "p", draft(files=files))[0]


def test_fetching(store: ArtifactStore, tmp_path: Path) -> None:
    """Files land under their names without the attempt's folder; names choose among them."""
    contents = {"model.pt2": b"program", "extra/a b.txt": b"", "shrink.json": b"[]"}
    found = artifact(store, tmp_path, contents)
    assert found.folder == "1-abc"
    fetched = manifest.fetch(store, "p", found, tmp_path / "all")
    assert fetched == {name: tmp_path / "all" / name for name in contents}
    assert {name: path.read_bytes() for name, path in fetched.items()} == contents
    some = manifest.fetch(store, "p", found, tmp_path / "some", {"model.pt2", "1-abc/shrink.json"})
    assert sorted(some) == ["model.pt2", "shrink.json"]
    assert sorted(path.name for path in (tmp_path / "some").iterdir()) == ["model.pt2", "shrink.json"]
    assert manifest.fetch(store, "p", found, tmp_path / "none", set()) == {}


def test_fetching_files_without_a_common_folder(store: ArtifactStore, tmp_path: Path) -> None:
    """Files that lie beside the manifest, or in several folders, keep their paths."""
    found = artifact(store, tmp_path, {"model.pt2": b"1", "x/shrink.json": b"2"}, folder="")
    assert found.folder == ""
    assert sorted(manifest.fetch(store, "p", found, tmp_path / "to")) == ["model.pt2", "x/shrink.json"]


@pytest.mark.parametrize(
    "content", [b"progrom", b"program and more", b"", None], ids=["other", "longer", "empty", "none"]
)
def test_fetching_a_damaged_file(store: ArtifactStore, tmp_path: Path, content: bytes | None) -> None:
    """A file that was changed or removed since is an error with its path, and is not left in the folder."""
    found = artifact(store, tmp_path, {"a.json": b"{}", "model.pt2": b"program"})
    if content is None:
        store.delete("p/1-abc/model.pt2")
    else:
        store.put_bytes("p/1-abc/model.pt2", content)
    with pytest.raises(ManifestError) as caught:
        manifest.fetch(store, "p", found, tmp_path / "to")
    assert str(caught.value).startswith(f"{store.uri}/p/1-abc/model.pt2: ")
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["a.json"]


def test_fetching_a_name_that_is_not_there(store: ArtifactStore, tmp_path: Path) -> None:
    """An unknown name proposes the nearest one, or lists what there is; nothing is fetched."""
    found = artifact(store, tmp_path, {"model.pt2": b"1", "shrink.json": b"2"})
    with pytest.raises(ManifestError, match=r"no file 'model\.pt'; did you mean 'model\.pt2'"):
        manifest.fetch(store, "p", found, tmp_path / "to", {"model.pt", "shrink.json"})
    with pytest.raises(ManifestError, match=r"no file 'zzz'; it has model\.pt2, shrink\.json"):
        manifest.fetch(store, "p", found, tmp_path / "to", {"zzz"})
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("path", ["../outside", "/etc/outside", "1-abc/../../outside", "a//b", ""])
def test_fetching_never_leaves_the_folder(store: ArtifactStore, tmp_path: Path, path: str) -> None:
    """Even a manifest that went round the checks of its type writes nothing outside the folder."""
    evil = FileEntry.model_construct(path=path, sha256=hashlib.sha256(b"").hexdigest(), bytes=0)
    found = Manifest.model_construct(attempt=1, files=[evil], metrics=RunMetrics(), spec_digest="d")
    with pytest.raises(ManifestError, match="do not use this artifact"):
        manifest.fetch(store, "p", found, tmp_path / "in" / "to")
    assert sorted(item.name for item in tmp_path.rglob("*") if "outside" in item.name) == []


@pytest.mark.parametrize("content", [b"[" * 100_000, b"1" * 300_000, b"\xff", b'{"apiVersion":' * 70])
def test_hostile_manifests_end_in_a_sentence(tmp_path: Path, content: bytes) -> None:
    """Depth and long numbers are no JSON of ours."""
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(ManifestError, match="this is not JSON"):
        manifest.read(open_store(str(tmp_path)), "")


def test_a_huge_manifest_is_not_read(tmp_path: Path) -> None:
    """Its announced size is enough."""
    with (tmp_path / "manifest.json").open("wb") as file:
        file.truncate(2**31)
    with pytest.raises(ManifestError, match="is larger than 16777216 bytes"):
        manifest.read(open_store(str(tmp_path)), "")


def test_a_pipe_is_no_manifest(tmp_path: Path) -> None:
    """Reading one would never end."""
    os.mkfifo(tmp_path / "manifest.json")
    with pytest.raises(StoreError, match="is neither a file nor a folder"):
        manifest.read(open_store(str(tmp_path)), "")


def test_sizes_are_compared_before_the_transfer(tmp_path: Path) -> None:
    """An object of gigabytes where the manifest says four bytes is not fetched."""
    (tmp_path / "1-abc").mkdir()
    with (tmp_path / "1-abc" / "model.pt2").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ManifestError, match=rf"has {2**40} bytes where 4 are known of it; damaged or replaced"):
        manifest.fetch(open_store(str(tmp_path)), "", draft(), tmp_path / "to")


def test_many_files_are_found_at_once() -> None:
    """The folder is worked out once: 20,000 names are looked up in one pass each."""
    files = [FileEntry(path=f"1-a/f{index}", sha256="0" * 64, bytes=1) for index in range(20_000)]
    held = draft(files=files)
    assert all(held.find(f"f{index}") is files[index] for index in range(20_000))
    assert held.find("1-a/f7") is files[7]
    assert held.find("none") is None
