"""Code from a ConfigMap and from archives, and which place goes before which."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpress.request import RunRequest
from modelpress.store import open_store
from modelpress_runner.errors import CodeUnavailableError, InvalidSpecError
from modelpress_runner.usercode import fetch
from modelpress_runner.usercode import location as code
from modelpress_runner.usercode.fetch import unpack, with_code


def request(code: dict[str, Any] | None, code_path: str | None = None, **store: Any) -> RunRequest:
    spec: dict[str, Any] = {
        "model": {"entrypoint": "digits:create"},
        "stages": [{"finetune": {"epochs": 1}}],
        "store": {"uri": "s3://out", **store},
    }
    if code is not None:
        spec["code"] = code
    data = {
        "purpose": "trial",
        "namespace": "team-a",
        "name": "a",
        "uid": "1",
        "root": "r",
        "prefix": "r",
        "spec": spec,
    }
    return RunRequest.model_validate(data | ({"codePath": code_path} if code_path else {}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where fetched code goes."""
    path = tmp_path / "fetched"
    path.mkdir()
    return path


def mounted(tmp_path: Path, **files: str) -> Path:
    """A ConfigMap as the kubelet mounts it: files behind links into a folder that one link names."""
    mount = tmp_path / "mounted"
    version = mount / "..2026_01_31"
    version.mkdir(parents=True)
    (mount / "..data").symlink_to(version.name)
    for key, text in files.items():
        path = Path(key.replace("__", "/") + ".py")
        (version / path).parent.mkdir(parents=True, exist_ok=True)
        (version / path).write_text(text)
        top = path.parts[0]
        if not (mount / top).is_symlink():
            (mount / top).symlink_to(Path("..data") / top)
    return mount


def pack(path: Path, **files: str) -> str:
    """A .tar.gz of Python files; its sha256."""
    with tarfile.open(path, "w:gz") as file:
        for key, text in files.items():
            member = tarfile.TarInfo("./" + key.replace("__", "/") + ".py")
            member.size = len(text)
            file.addfile(member, io.BytesIO(text.encode()))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_nothing_to_fetch(folder: Path) -> None:
    """Code in the image, and a local run's folder, stay where they are."""
    for wanted in (request(None), request({"path": "."}, "/here"), request({"path": ".", "git": GIT}, "/here")):
        assert with_code(wanted, folder) == wanted
    beside = request({"path": ".", "configMap": {"name": "digits"}}, "/here")
    assert with_code(beside, folder) == beside
    assert list(folder.iterdir()) == []


GIT = {"url": "https://example.com/a.git", "commit": "0" * 40}


def test_a_config_map_is_copied(folder: Path, tmp_path: Path) -> None:
    """The copy has plain files, also in folders, keeps them when the ConfigMap changes, and has the usual digest."""
    mount = mounted(tmp_path, digits="one = 1\n", pkg__model="two = 2\n")
    wanted = request({"configMap": {"name": "digits"}}, str(mount))
    found = Path(with_code(wanted, folder, mount=str(mount)).code_path or "")
    (mount / "..data" / "digits.py").write_text("changed")
    assert (found / "digits.py").read_text() == "one = 1\n"
    assert (found / "pkg" / "model.py").read_text() == "two = 2\n"
    assert not any(path.is_symlink() for path in found.rglob("*"))
    plain = tmp_path / "plain"
    (plain / "pkg").mkdir(parents=True)
    (plain / "digits.py").write_text("one = 1\n")
    (plain / "pkg" / "model.py").write_text("two = 2\n")
    assert code.digest(str(found), "digits") == code.digest(str(plain), "digits")


@pytest.mark.parametrize("there", ["nothing", "folder", "link"])
def test_a_config_map_that_is_missing(folder: Path, tmp_path: Path, there: str) -> None:
    """The pod starts without it, and the message says which one to create where."""
    mount = tmp_path / "mounted"
    if there == "folder":
        mount.mkdir()
    if there == "link":
        mounted(tmp_path)
    with pytest.raises(
        CodeUnavailableError, match=r"spec\.code\.configMap\.name: there is no ConfigMap digits .*team-a"
    ):
        with_code(request({"configMap": {"name": "digits"}}, str(mount)), folder, mount=str(mount))


def test_a_key_that_is_missing(folder: Path, tmp_path: Path) -> None:
    """Optional mounts leave missing keys out; the runner names them."""
    mount = mounted(tmp_path, digits="")
    items = [{"key": "digits.py", "path": "digits.py"}, {"key": "model.py", "path": "pkg/model.py"}]
    wanted = request({"configMap": {"name": "digits", "items": items}}, str(mount))
    message = r"spec\.code\.configMap\.items\[1\]\.key: the ConfigMap digits has no key model\.py; add it"
    with pytest.raises(CodeUnavailableError, match=message):
        with_code(wanted, folder, mount=str(mount))


@pytest.mark.parametrize("place", ["path", "uri"])
def test_an_archive_is_unpacked(folder: Path, tmp_path: Path, place: str) -> None:
    """A .tar.gz whose digest is right becomes the code folder."""
    archive = tmp_path / "code.tar.gz"
    digest = pack(archive, digits="one = 1\n", pkg__model="")
    uri = str(archive) if place == "path" else archive.as_uri()
    found = Path(with_code(request({"source": {"uri": uri, "sha256": digest}}), folder).code_path or "")
    assert (found / "digits.py").read_text() == "one = 1\n"
    assert (found / "pkg" / "model.py").is_file()
    assert archive.exists()


def test_an_archive_comes_from_a_store(folder: Path, tmp_path: Path) -> None:
    """Any store will do."""
    archive = tmp_path / "code.tar.gz"
    digest = pack(archive, digits="one = 1\n")
    open_store("memory://fetch").put_file("a/code.tar.gz", archive)
    source = {"uri": "memory://fetch/a/code.tar.gz", "sha256": digest}
    found = Path(with_code(request({"source": source}), folder).code_path or "")
    assert (found / "digits.py").exists()


@pytest.mark.parametrize(
    ("uri", "endpoint"),
    [("s3://code/a/b.tar", "http://minio:9000"), ("gs://code/a/b.tar", None), ("file:///a/b.tar", None)],
)
def test_an_s3_archive_is_on_the_server_of_the_store(
    folder: Path, monkeypatch: pytest.MonkeyPatch, uri: str, endpoint: str | None
) -> None:
    """Endpoint and region of spec.store hold for s3:// alone."""
    asked: list[tuple[str, str | None, str | None]] = []

    def note(uri: str, *, endpoint: str | None, region: str | None) -> Any:
        asked.append((uri, endpoint, region))
        raise InvalidSpecError("enough")

    monkeypatch.setattr(fetch, "open_store", note)
    with pytest.raises(InvalidSpecError, match="enough"):
        with_code(
            request({"source": {"uri": uri, "sha256": "0" * 64}}, endpoint="http://minio:9000", region="eu"), folder
        )
    assert asked == [(uri.removesuffix("/b.tar"), endpoint, "eu" if endpoint else None)]


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("memory://fetch/none.tar", "there is no object memory://fetch/none.tar; correct the URI"),
        ("/nowhere/code.tar", "there is no file /nowhere/code.tar; correct the path"),
        ("s3://code.tar", "names no file; give the URI of an archive"),
    ],
)
def test_an_archive_that_is_not_there(folder: Path, uri: str, message: str) -> None:
    """The message says where it was looked for."""
    with pytest.raises(InvalidSpecError, match=rf"spec\.code\.source\.uri: .*{message}"):
        with_code(request({"source": {"uri": uri, "sha256": "0" * 64}}), folder)


def test_another_archive_than_the_digest_says(folder: Path, tmp_path: Path) -> None:
    """Nothing is unpacked of it."""
    archive = tmp_path / "code.tar.gz"
    digest = pack(archive, digits="")
    with pytest.raises(InvalidSpecError, match=rf"spec\.code\.source\.sha256: .* has sha256 {digest}, not 0{{64}}"):
        with_code(request({"source": {"uri": str(archive), "sha256": "0" * 64}}), folder)
    assert list(folder.iterdir()) == []


Change = Callable[[tarfile.TarInfo], None]


def _link(kind: bytes, target: str) -> Change:
    def change(member: tarfile.TarInfo) -> None:
        member.type, member.linkname = kind, target

    return change


def _named(name: str) -> Change:
    return lambda member: setattr(member, "name", name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_named("../evil.py"), "lies outside of the folder"),
        (_named("a/../../evil.py"), "lies outside of the folder"),
        (_named("/tmp/evil.py"), "lies outside of the folder"),
        (_link(tarfile.SYMTYPE, "/etc"), "is a link or a device"),
        (_link(tarfile.SYMTYPE, "inside"), "is a link or a device"),
        (_link(tarfile.LNKTYPE, "../../etc/passwd"), "is a link or a device"),
        (_link(tarfile.CHRTYPE, ""), "is a link or a device"),
        (_link(tarfile.FIFOTYPE, ""), "is a link or a device"),
    ],
)
def test_members_that_lead_elsewhere(tmp_path: Path, change: Change, message: str) -> None:
    """No file is written outside, and no link is made that a later file could be written through."""
    archive, target = tmp_path / "evil.tar", tmp_path / "in" / "code"
    target.mkdir(parents=True)
    with tarfile.open(archive, "w") as file:
        member = tarfile.TarInfo("evil.py")
        change(member)
        file.addfile(member)
    with pytest.raises(InvalidSpecError, match=message):
        unpack(archive, target, "s3://a/evil.tar")
    assert list(target.iterdir()) == []
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["code"]


def test_archives_that_are_none(tmp_path: Path) -> None:
    """Text, half an archive, and a file where a folder must be are told apart from good ones."""
    text, half, clash = (tmp_path / name for name in ("text.tar.gz", "half.tar.gz", "clash.tar"))
    text.write_text("no archive at all")
    pack(half, digits=os.urandom(5000).hex())
    half.write_bytes(half.read_bytes()[:2000])
    with tarfile.open(clash, "w") as file:
        for name in ("a", "a/b.py"):
            file.addfile(tarfile.TarInfo(name))
    for archive in (text, half, clash):
        target = tmp_path / archive.stem
        target.mkdir()
        with pytest.raises(InvalidSpecError, match=r"cannot be unpacked \(.*\); pack it anew with tar czf"):
            unpack(archive, target, "a.tar")


def test_archives_that_grow_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Size and number of files are bounded before they are written."""
    archive = tmp_path / "code.tar.gz"
    pack(archive, a="x" * 600, b="y" * 600)
    monkeypatch.setattr(fetch, "MAX_BYTES", 1000)
    target = tmp_path / "a"
    target.mkdir()
    with pytest.raises(InvalidSpecError, match="has more than 100000 files or 0 MiB unpacked"):
        unpack(archive, target, "a.tar.gz")
    assert [path.name for path in target.iterdir()] == ["a.py"]
    monkeypatch.setattr(fetch, "MAX_BYTES", 10_000)
    monkeypatch.setattr(fetch, "MAX_FILES", 1)
    with pytest.raises(InvalidSpecError, match="has more than 1 files"):
        unpack(archive, target, "a.tar.gz")


@given(st.binary(max_size=2000), st.integers(0, 3000), st.booleans())
def test_any_bytes_are_unpacked_or_refused(tmp_path_factory: Any, noise: bytes, at: int, packed: bool) -> None:
    """Damaged archives raise one kind of error, and write nothing outside of the folder."""
    here = tmp_path_factory.mktemp("fuzz")
    archive, target = here / "a.tar.gz", here / "in" / "code"
    target.mkdir(parents=True)
    data = b""
    if packed:
        with tarfile.open(archive, "w") as file:
            for name in ("a.py", "pkg/b.py"):
                member = tarfile.TarInfo(name)
                member.size = 3
                file.addfile(member, io.BytesIO(b"x=1"))
        data = archive.read_bytes()
    archive.write_bytes(data[:at] + noise + data[at + len(noise) :])
    with contextlib.suppress(InvalidSpecError):
        unpack(archive, target, "a.tar.gz")
    assert [path.name for path in (here / "in").iterdir()] == ["code"]
