"""The state directory: whole versions only, one process at a time, sentences for what goes wrong."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from modelpress.local.cluster import JobRecord
from modelpress.local.errors import LockedError, StateError
from modelpress.local.journal import Journal, write_atomic


def test_objects_come_back_as_they_were_written(tmp_path: Path) -> None:
    """Reading gives what was written last, by name, and None for what never was."""
    journal = Journal.open(tmp_path / "state")
    journal.write("object.json", {"object": {"a": 1}})
    journal.write("object.json", {"object": {"a": 2}})
    journal.write("trials/b.json", {"object": {"n": "b"}})
    journal.write("trials/a.json", {"object": {"n": "a"}})
    assert journal.read("object.json") == {"object": {"a": 2}}
    assert [value["object"]["n"] for value in journal.read_all("trials")] == ["a", "b"]
    journal.remove("trials/a.json")
    journal.remove("trials/a.json")
    assert journal.read("trials/a.json") is None
    journal.close()


def test_a_half_written_draft_is_never_read(tmp_path: Path) -> None:
    """What a killed process left under the draft's name is no object."""
    journal = Journal.open(tmp_path / "state")
    (journal.root / "trials" / ".t-00001.json.tmp").write_text('{"format":1,"obj')
    assert list(journal.read_all("trials")) == []
    journal.close()


def test_writing_atomically_leaves_no_draft(tmp_path: Path) -> None:
    """After the rename only the file itself is there."""
    write_atomic(tmp_path / "a.json", "{}")
    write_atomic(tmp_path / "a.json", "[]")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "[]"


def test_a_second_process_is_refused_with_the_pid_of_the_first(tmp_path: Path) -> None:
    """The lock is per process tree and names its holder; it goes with the process."""
    journal = Journal.open(tmp_path / "state")
    script = (
        "import sys\nfrom pathlib import Path\nfrom modelpress.local.errors import LockedError\n"
        "from modelpress.local.journal import Journal\n"
        "try:\n    Journal.open(Path(sys.argv[1]))\nexcept LockedError as error:\n    print(error)\n"
    )
    command = [sys.executable, "-c", script, str(journal.root)]
    refused = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"process {os.getpid()} is already running this" in refused.stdout
    journal.close()
    allowed = subprocess.run(command, capture_output=True, text=True, check=True)
    assert allowed.stdout == ""


def test_the_same_process_is_refused_too(tmp_path: Path) -> None:
    """Two runs of one process must not share a state directory either."""
    journal = Journal.open(tmp_path / "state")
    with pytest.raises(LockedError):
        Journal.open(tmp_path / "state")
    journal.close()


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 99}', ""])
def test_damage_is_told_with_the_file_and_what_to_do(tmp_path: Path, text: str) -> None:
    """A damaged file, or one of another version, names itself and the folder to remove."""
    journal = Journal.open(tmp_path / "state")
    (journal.root / "object.json").write_text(text)
    with pytest.raises(StateError, match=r"object\.json .*remove"):
        journal.read("object.json")
    journal.close()


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    """A file where a folder must be gives a sentence that names the state folder and --store."""
    (tmp_path / "store").write_text("in the way")
    with pytest.raises(StateError, match=r"cannot keep state in .*; give a writable folder with --store"):
        Journal.open(tmp_path / "store" / ".state" / "x")


def test_a_failed_write_is_told(tmp_path: Path) -> None:
    """A write that the system refuses is a StateError, not a traceback."""
    journal = Journal.open(tmp_path / "state")
    (journal.root / "object.json").mkdir()
    with pytest.raises(StateError, match="cannot keep state"):
        journal.write("object.json", {})
    journal.close()


def test_events_are_lines_of_json(tmp_path: Path) -> None:
    """Each event is one line that any tool can read."""
    journal = Journal.open(tmp_path / "state")
    journal.append_event({"reason": "Running"})
    journal.append_event({"reason": "Succeeded"})
    lines = (journal.root / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["reason"] for line in lines] == ["Running", "Succeeded"]
    journal.close()


@pytest.mark.parametrize("name", ["/tmp/modelpress-outside", "../outside", "runs/../../outside", "lock", "trials/x"])
@pytest.mark.parametrize("text", ["text", None])
def test_a_commit_changes_files_of_a_run_alone(tmp_path: Path, name: str, text: str | None) -> None:
    """A state folder from elsewhere writes and deletes nothing outside of itself."""
    Journal.open(tmp_path / "state").close()
    (tmp_path / "outside").write_text("kept")
    (tmp_path / "state" / "commit.json").write_text(json.dumps({"format": 1, "changes": {name: text}}))
    with pytest.raises(StateError, match=f"commit.json is damaged .*remove the folder {tmp_path / 'state'}"):
        Journal.open(tmp_path / "state")
    assert (tmp_path / "outside").read_text() == "kept"
    assert not Path("/tmp/modelpress-outside").exists()


@pytest.mark.parametrize(
    "content", ["[" * 100_000, "1" * 5000, '{"format": 1}', '{"format": 1, "changes": {"a": 1}}', "\x00"]
)
def test_damage_is_a_sentence(tmp_path: Path, content: str) -> None:
    """Depth, long numbers and missing keys name the folder."""
    Journal.open(tmp_path / "state").close()
    (tmp_path / "state" / "commit.json").write_text(content)
    with pytest.raises(StateError, match="remove "):
        Journal.open(tmp_path / "state")


def test_pipes_and_links_are_damage(tmp_path: Path) -> None:
    """A pipe would hang, a link would lead out of the folder."""
    Journal.open(tmp_path / "state").close()
    os.mkfifo(tmp_path / "state" / "object.json")
    journal = Journal.open(tmp_path / "state")
    with pytest.raises(StateError, match="it is no regular file"):
        journal.read("object.json")
    journal.close()
    (tmp_path / "state" / "trials").rmdir()
    (tmp_path / "state" / "trials").symlink_to(tmp_path)
    with pytest.raises(StateError, match="is a link"):
        Journal.open(tmp_path / "state")


@pytest.mark.parametrize("name", ["lock", "events.jsonl", ".object.json.tmp", "runs/one-1"])
def test_nothing_is_written_through_a_link(tmp_path: Path, name: str) -> None:
    """Whatever file of the folder is a link to another place, what lies there stays as it is."""
    Journal.open(tmp_path / "state").close()
    outside = tmp_path / "outside"
    if name.startswith("runs"):
        outside.mkdir()
        (outside / "request.json").write_text("kept")
    else:
        outside.write_text("kept")
    link = tmp_path / "state" / name
    link.unlink(missing_ok=True)
    link.symlink_to(outside)

    def work() -> None:
        with contextlib.closing(Journal.open(tmp_path / "state")) as journal:
            journal.write("object.json", {"object": {}})
            journal.append_event({"reason": "Running"})
            journal.write_text("runs/one-1/request.json", "{}")

    if name == ".object.json.tmp":
        work()  # what a killed process left there is written anew
    else:
        with pytest.raises(StateError):
            work()
    kept = outside / "request.json" if name.startswith("runs") else outside
    assert kept.read_text() == "kept"


@pytest.mark.parametrize("name", ["lock", "events.jsonl", "commit.json"])
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_no_file_of_the_folder_is_waited_on(tmp_path: Path, name: str, make: Callable[[Path], None]) -> None:
    """Pipes and endless devices end in a sentence."""
    Journal.open(tmp_path / "state").close()
    (tmp_path / "state" / name).unlink(missing_ok=True)
    make(tmp_path / "state" / name)
    with pytest.raises(StateError), contextlib.closing(Journal.open(tmp_path / "state")) as journal:
        journal.append_event({})


@pytest.mark.parametrize(
    "change",
    [
        {"pid": 1}, {"pid": 0}, {"pid": -7}, {"pid": "self"}, {"pid": True}, {"name": "../../x"}, {"uid": "../../../x"},
        {"state": "unknown"}, {"more": 1}, {"attempt": "1"}, {"mark": 3}, {"started_at": 5},
    ],
)  # fmt: skip
def test_records_that_we_never_write(change: dict[str, object]) -> None:
    """A process id that stands for a group, a name that leads elsewhere, and other types are no record."""
    record = JobRecord("one-1", "11111111-aaaa", "CompressionJob", "one", "owner", "trial", 1, pid=4711, mark="boot:1")
    assert JobRecord.from_dict(json.loads(json.dumps(record.to_dict()))) == record
    with pytest.raises((TypeError, ValueError)):
        JobRecord.from_dict(record.to_dict() | change)
