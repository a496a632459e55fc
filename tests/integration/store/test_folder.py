"""The artifact store in a folder when things go wrong: killed writers, full disks, folders of others."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelpress.store import ObjectInfo, open_store

MIB = 1024 * 1024


def test_a_writer_killed_half_way_leaves_nothing_visible(tmp_path: Path) -> None:
    """After SIGKILL in mid-write there is no object; the name can be written again, and the rest can be removed."""
    root, source = tmp_path / "store", tmp_path / "source"
    with source.open("wb") as file:
        file.truncate(2048 * MIB)  # sparse; long before it is copied the writer is dead
    code = (
        "import sys; from pathlib import Path; from modelpress.store import open_store\n"
        "open_store(sys.argv[1]).put_file('a/b/model.bin', Path(sys.argv[2]))"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, root, source])
    try:
        while not list(root.glob("a/b/model.bin#*")):
            assert writer.poll() is None, "the writer ended before it could be killed"
    finally:
        writer.kill()
        writer.wait()
    store = open_store(str(root))
    assert [path.name for path in (root / "a/b").iterdir()] == ["model.bin#1"]
    assert not store.exists("a/b/model.bin")
    assert store.list("") == []
    store.put_bytes("a/b/model.bin", b"whole")
    assert store.list("") == [ObjectInfo("a/b/model.bin", 5)]
    assert store.put_if_absent("a/b/model.bin", b"late") is False
    store.delete_prefix("a/b")
    assert list((root / "a").iterdir()) == []


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """A folder that other users can reach; pytest's own ones are closed to them."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


CALLS = """
import os, sys
from pathlib import Path
from modelpress.store import StoreError, open_store
store = open_store(sys.argv[1])
source = Path(sys.argv[2])
calls = dict(
    put_bytes=lambda: store.put_bytes("a/b", b"1" * 4096), put_file=lambda: store.put_file("a/b", source),
    put_if_absent=lambda: store.put_if_absent("a/b", b"1" * 4096), get_bytes=lambda: store.get_bytes("there/x"),
    list=lambda: store.list("there"), exists=lambda: store.exists("there/x"), delete=lambda: store.delete("there/x"),
    delete_prefix=lambda: store.delete_prefix("there"),
    new=lambda: open_store(sys.argv[1] + "/new").put_bytes("a", b"1"),
)
user = int(sys.argv[3])
if user:
    os.setgid(user)
    os.setuid(user)
for name in sys.argv[4:]:
    try:
        print(name, "->", calls[name]())
    except StoreError as error:
        print(name, "->", type(error).__name__, error)
"""


@pytest.mark.parametrize("mode", [0o555, 0o000], ids=["read-only", "closed"])
def test_a_folder_that_may_not_be_used(shared_folder: Path, mode: int) -> None:
    """A folder of somebody else is a refusal that names it and what to check, for every call that needs the right."""
    root, source = shared_folder / "store", shared_folder / "source"
    (root / "there").mkdir(parents=True)
    (root / "there" / "x").write_bytes(b"1")
    source.write_bytes(b"1" * 4096)
    user = 65534 if os.getuid() == 0 else 0  # root may do everything, so it becomes nobody
    for folder in (root / "there", root):
        folder.chmod(mode)
    names = ["put_bytes", "put_file", "put_if_absent", "delete", "delete_prefix", "new"]
    if mode == 0:
        names += ["get_bytes", "list", "exists"]
    try:
        done = subprocess.run(
            [sys.executable, "-c", CALLS, root, source, str(user), *names], capture_output=True, text=True, check=False
        )
    finally:
        for folder in (root, root / "there"):
            folder.chmod(0o755)
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert [line.partition(" -> ")[0] for line in lines] == names
    for line in lines:
        assert " -> StoreRefusedError " in line
        assert f"{root}" in line
        assert "Permission denied); check its owner and mode" in line
    assert (root / "there" / "x").read_bytes() == b"1"


def test_a_full_disk(tmp_path: Path) -> None:
    """A full disk is an error that says so; nothing of the object stays."""
    unshare = shutil.which("unshare")
    flags = "-m" if os.getuid() == 0 else "-rm"
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=4m tmpfs '{disk}'"
    if unshare is None or subprocess.run([unshare, flags, "sh", "-c", mount], capture_output=True).returncode != 0:
        pytest.skip("a small disk can be made only where private mounts are allowed (Linux, user namespaces)")
    (tmp_path / "source").write_bytes(b"1" * (8 * MIB))
    script = f"{mount} && mkdir '{disk}/there' && \"$@\"; find '{disk}' -type f"
    command = [sys.executable, "-c", CALLS, str(disk), str(tmp_path / "source"), "0", "put_file", "put_bytes", "list"]
    done = subprocess.run(
        [unshare, flags, "sh", "-c", script, "sh", *command], capture_output=True, text=True, check=True
    )
    file, small, listed, *rest = done.stdout.splitlines()
    assert file.startswith(
        f"put_file -> StoreError {disk}/a/b: the disk is full (No space left on device); free some space"
    )
    assert small == "put_bytes -> None"
    assert listed == "list -> []"
    assert rest == [f"{disk}/a/b"]
