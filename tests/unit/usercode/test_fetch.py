"""Code from a ConfigMap and from archives, and which place goes before which."""

from __future__ import annotations

import contextlib
import gzip
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
    with pytest.raises(InvalidSpecError, match="has more than 1000 files or 0 MiB unpacked"):
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


def header(kind: bytes, size: int, name: str = "x") -> bytes:
    """One header block of a tar."""
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


def pax(records: bytes) -> bytes:
    """A header with extended records."""
    return header(tarfile.XHDTYPE, len(records)) + records + bytes(-len(records) % 512)


def record(keyword: bytes, value: bytes) -> bytes:
    """One extended record, its length before it."""
    length = len(keyword) + len(value) + 3
    length += len(str(length + len(str(length))))
    return b"%d %s=%s\n" % (length, keyword, value)


GIB = 2**30
LONG, XHD, XGL, REG = tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.REGTYPE
HOSTILE: dict[str, tuple[bytes, int, str]] = {
    # what comes first, how many zero bytes then, what is said
    "a long name of 1 GiB": (header(LONG, GIB), 2**20, "headers take more than 256 KiB"),
    "an extended header of 1 GiB": (header(XHD, GIB), 2**20, "headers take more than 256 KiB"),
    "5,000 long names": ((header(LONG, 512) + b"n" + bytes(511)) * 5000, 0, "or 64 pieces"),
    "5,000 extended headers": (pax(record(b"path", b"a")) * 5000, 0, "or 64 pieces"),
    "5,000 global headers": ((header(XGL, 512) + record(b"a", b"b") + bytes(506)) * 5000, 0, "or 64 pieces"),
    "many global keywords": (
        header(XGL, 2048) + b"".join(record(b"k%03d" % index, b"v") for index in range(204)).ljust(2048, b"\0")
        + header(REG, 0), 1024, "more than 64 keywords"),
    "many extended headers": (
        (pax(record(b"a", b"b" * 100_000)) + header(REG, 0)) * 30, 1024, "more in the headers of"),
    "3,000 files in a few KiB": (header(REG, 0) * 3000, 1024, "has more than 10.. files or 32 MiB"),
    "digits for a slow pattern": (pax(b"1" * 200_000) + header(REG, 0), 1024, "a number of 32 digits"),
    "a size below zero": (pax(record(b"size", b"-1536")) + header(REG, 0), 1024, "is negative"),
    "1 GiB to pass over": (header(b"?", GIB), 1024, "files or 32 MiB unpacked"),
    "1 GiB of zeros": (header(REG, GIB), 2**20, "files or 32 MiB unpacked"),
    "holes": (pax(record(b"GNU.sparse.map", b"0,1,0,1") + record(b"GNU.sparse.size", b"9")) + header(REG, 0), 1024,
        "is a file with holes"),
    "2,000 folders in each other": (pax(record(b"path", b"a/" * 2000)) + header(REG, 0), 1024, "deeper than 64"),
    "a name of 200,000 letters": (pax(record(b"path", b"a" * 200_000)) + header(REG, 0), 1024, "cannot be unpacked"),
    "a name with a zero byte": (pax(record(b"path", b"a\0b")) + header(REG, 0), 1024, "cannot be unpacked"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_headers_are_read_between_limits(tmp_path: Path, name: str) -> None:
    """What headers claim and how many there are costs neither memory nor time, and ends in a sentence."""
    start, zeros, message = HOSTILE[name]
    archive, target = tmp_path / "evil.tar.gz", tmp_path / "code"
    target.mkdir()
    with gzip.open(archive, "wb") as file:
        file.write(start + bytes(zeros))
    with pytest.raises(InvalidSpecError, match=message) as caught:
        unpack(archive, target, "s3://a/evil.tar.gz")
    assert len(str(caught.value)) < 1000


def test_what_tools_pack_is_unpacked(tmp_path: Path) -> None:
    """GNU and extended headers of long names, and a global header as git writes it, are honest."""
    long = "pkg/" + "a" * 120 + ".py"
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        archive, target = tmp_path / f"{form}.tar.gz", tmp_path / f"code-{form}"
        target.mkdir()
        headers = {"comment": "0" * 40} if form == tarfile.PAX_FORMAT else None
        with tarfile.open(archive, "w:gz", format=form, pax_headers=headers) as file:
            for name, text in ((long, b"x = 1\n"), ("pkg/empty.py", b""), ("pkg/umlaut-\u00e4.py", b"y = 2\n")):
                member = tarfile.TarInfo(name)
                member.size = len(text)
                member.mtime = 1_700_000_000.25  # type: ignore[assignment]
                file.addfile(member, io.BytesIO(text))
        unpack(archive, target, "code.tar.gz")
        found = {path.relative_to(target).as_posix(): path.read_text() for path in target.rglob("*.py")}
        assert found == {long: "x = 1\n", "pkg/empty.py": "", "pkg/umlaut-\u00e4.py": "y = 2\n"}


def test_folders_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file may bring many folders; they are counted like files."""
    archive, target = tmp_path / "a.tar", tmp_path / "code"
    target.mkdir()
    with tarfile.open(archive, "w") as file:
        file.addfile(tarfile.TarInfo("a/b/c/d/e.py"))
    monkeypatch.setattr(fetch, "MAX_FILES", 4)
    with pytest.raises(InvalidSpecError, match="has more than 4 files"):
        unpack(archive, target, "a.tar")
