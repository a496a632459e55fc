"""Files that commands write: what cannot be written is told before, and again where it is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelpress.cli.outputs import check_output, write_output
from modelpress.local.errors import UsageError


def test_what_can_be_written_is_let_through(tmp_path: Path) -> None:
    """A new file, an old one, and none at all; looking writes nothing."""
    (tmp_path / "old").write_text("old")
    for path in (None, tmp_path / "new", tmp_path / "old"):
        check_output("--output", path)
    check_output("--output", tmp_path / "new", new=True)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    write_output("--output", tmp_path / "old", "a\r\nb\n")
    assert (tmp_path / "old").read_bytes() == b"a\r\nb\n"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("none/out", "cannot write {}: No such file or directory; name a writable file"),
        ("file/out", "cannot write {}: Not a directory; name a writable file"),
        ("folder", "cannot write {}: Is a directory; name a writable file"),
    ],
)
def test_what_cannot_be_written_is_told(name: str, said: str, tmp_path: Path) -> None:
    """With the option, the path and the reason, alike before and at the writing."""
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    path = tmp_path / name
    for attempt in (lambda: check_output("--plot", path), lambda: write_output("--plot", path, "")):
        with pytest.raises(UsageError) as info:
            attempt()
        assert str(info.value) == f"--plot: {said.format(path)}"


def test_a_file_that_is_there_is_kept(tmp_path: Path) -> None:
    """Where it must be new."""
    (tmp_path / "old").write_text("old")
    for attempt in (
        lambda: check_output("-o", tmp_path / "old", new=True),
        lambda: write_output("-o", tmp_path / "old", "", new=True),
    ):
        with pytest.raises(UsageError, match=r"^-o: .*old is there already; remove it, or name another file$"):
            attempt()
    assert (tmp_path / "old").read_text() == "old"
