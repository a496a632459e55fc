"""The contract of an artifact store, as tests that any implementation can run (needs pytest).

    class TestMyStore(ArtifactStoreContract):
        @pytest.fixture
        def opener(self, tmp_path):
            return functools.partial(MyStore, f"my://{tmp_path}")      # picklable; every call opens the same place

Optional fixtures: `refused` (an opener whose credentials or permissions are refused) and `breaking` (an opener whose
connection breaks for good after some MiB of an upload). Class attributes say what an implementation cannot do. A test
that cannot apply at all is left out by setting its name to None in the subclass.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import re
import resource
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, ClassVar

import pytest

from . import manifest as manifests
from .base import ArtifactStore, ObjectInfo
from .errors import ObjectMissingError, StoreError, StoreRefusedError, StoreUnavailableError
from .layout import MANIFEST

Opener = Callable[[], ArtifactStore]

MIB = 1024 * 1024
LARGE = 96 * MIB
ODD_NAMES = [
    "a b/c d",
    "ü/é.txt",
    "模型/層.bin",
    "a#b",
    "a%20b",
    "%2e%2e/x",
    "100%",
    "a?b&c=d",
    "a*b[c]",
    "~a",
    "a:b",
    "a+b=&,'()@!$;",
    'x<y>|"^`{}',
    ".hidden",
    "...",
    "n" * 240,
]
ILLEGAL_PATHS = ["/a", "a/", "a//b", "..", ".", "a/../b", "./a", "a/.", "a\\b", "a\nb", "a\x00b", "a#1", "s" * 241]
ILLEGAL_PATHS += ["/".join("p" * 500)]


class ArtifactStoreContract:
    """What every ArtifactStore does. Subclass it in a test module and give the fixture `opener`."""

    shared_by_processes: ClassVar[bool] = True  # another process that calls the opener sees the same objects
    bounded_memory: ClassVar[bool] = True  # objects are not held in this process

    @pytest.fixture
    def opener(self) -> Opener:
        raise NotImplementedError("a subclass of ArtifactStoreContract gives the fixture `opener`")

    @pytest.fixture
    def refused(self) -> Opener:
        pytest.skip("this store cannot be refused")

    @pytest.fixture
    def breaking(self) -> Opener:
        pytest.skip("this store has no connection that could break")

    @pytest.fixture
    def store(self, opener: Opener) -> ArtifactStore:
        return opener()

    # One object ------------------------------------------------------------------------------------------------------

    def test_follows_the_protocol(self, store: ArtifactStore) -> None:
        """The store has all methods of the protocol and a URI."""
        assert isinstance(store, ArtifactStore)
        assert store.uri

    @pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 4096], ids=["empty", "one byte", "1 MiB"])
    def test_round_trip_of_bytes(self, store: ArtifactStore, data: bytes) -> None:
        """Bytes come back as they were written, at once, and through a second store of the same URI."""
        store.put_bytes("a/b", data)
        assert store.get_bytes("a/b") == data
        assert store.exists("a/b")
        assert store.list("") == [ObjectInfo("a/b", len(data))]

    def test_a_second_store_of_the_same_uri_sees_the_same_objects(self, opener: Opener) -> None:
        """What one store wrote another one reads."""
        opener().put_bytes("a/b", b"1")
        assert opener().get_bytes("a/b") == b"1"

    def test_round_trip_of_a_file(self, store: ArtifactStore, tmp_path: Path) -> None:
        """A file comes back as it was, into folders that get_file makes, and replaces the local file that was there."""
        source, target = tmp_path / "source", tmp_path / "new" / "folder" / "target"
        source.write_bytes(b"\x00weights\xff" * 1000)
        store.put_file("a/model.bin", source)
        store.get_file("a/model.bin", target)
        assert target.read_bytes() == source.read_bytes()
        source.write_bytes(b"short")
        store.put_file("a/model.bin", source)
        store.get_file("a/model.bin", target)
        assert target.read_bytes() == b"short"
        assert [path.name for path in target.parent.iterdir()] == ["target"]

    def test_an_empty_file(self, store: ArtifactStore, tmp_path: Path) -> None:
        """A file of no bytes is an object of no bytes."""
        (tmp_path / "empty").touch()
        store.put_file("empty", tmp_path / "empty")
        assert store.list("") == [ObjectInfo("empty", 0)]
        store.get_file("empty", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == b""

    def test_writing_again_replaces_the_whole_object(self, store: ArtifactStore) -> None:
        """A shorter object leaves nothing of a longer one before it."""
        store.put_bytes("a", b"a long content")
        store.put_bytes("a", b"short")
        assert store.get_bytes("a") == b"short"

    def test_a_local_file_that_is_missing(self, store: ArtifactStore, tmp_path: Path) -> None:
        """Uploading a file that is not there names the file and leaves no object."""
        with pytest.raises(StoreError, match="no-such-file"):
            store.put_file("a", tmp_path / "no-such-file")
        assert not store.exists("a")

    def test_a_local_folder_that_cannot_be_written(self, store: ArtifactStore, tmp_path: Path) -> None:
        """Downloading to below a file names the local path."""
        (tmp_path / "file").touch()
        store.put_bytes("a", b"1")
        with pytest.raises(StoreError, match="file/below"):
            store.get_file("a", tmp_path / "file" / "below")

    def test_missing_objects(self, store: ArtifactStore, tmp_path: Path) -> None:
        """A missing object has its own error, which names it; downloading it leaves no local file."""
        store.put_bytes("there/a", b"1")
        for path in ("nothing", "there/nothing", "there", "there/a/below", "no/such/folder"):
            assert not store.exists(path)
            with pytest.raises(ObjectMissingError, match=re.escape(path)):
                store.get_bytes(path)
            with pytest.raises(ObjectMissingError, match=re.escape(path)):
                store.get_file(path, tmp_path / "local")
            with pytest.raises(ObjectMissingError, match=re.escape(path)):
                store.copy(path, "copy")
        assert list(tmp_path.glob("local*")) == []
        assert [info.path for info in store.list("")] == ["there/a"]

    @pytest.mark.parametrize("name", ODD_NAMES)
    def test_odd_but_legal_names(self, store: ArtifactStore, name: str) -> None:
        """Names that URLs, shells or file systems treat specially are written, listed, copied and deleted as is."""
        store.put_bytes(f"odd/{name}", name.encode())
        assert store.put_if_absent(f"odd/{name}", b"other") is False
        store.copy(f"odd/{name}", f"copied/{name}")
        assert [info.path for info in store.list("")] == sorted([f"copied/{name}", f"odd/{name}"])
        assert store.get_bytes(f"copied/{name}") == name.encode()
        store.delete(f"odd/{name}")
        assert [info.path for info in store.list("")] == [f"copied/{name}"]

    @pytest.mark.parametrize("path", ["", *ILLEGAL_PATHS], ids=ascii)
    def test_illegal_paths_are_refused(self, store: ArtifactStore, tmp_path: Path, path: str) -> None:
        """Absolute paths, `..`, empty segments and what some store cannot hold are refused by every method."""
        (tmp_path / "f").write_bytes(b"1")
        calls: list[Callable[[], Any]] = [
            lambda: store.put_bytes(path, b"1"),
            lambda: store.put_file(path, tmp_path / "f"),
            lambda: store.put_if_absent(path, b"1"),
            lambda: store.get_bytes(path),
            lambda: store.get_file(path, tmp_path / "g"),
            lambda: store.copy(path, "fine"),
            lambda: store.copy("fine", path),
            lambda: store.exists(path),
            lambda: store.delete(path),
            lambda: store.delete_prefix(path),
        ]
        if path:
            calls.append(lambda: store.list(path))
        for call in calls:
            with pytest.raises(StoreError, match="the path") as caught:
                call()
            assert not isinstance(caught.value, ObjectMissingError)
        assert store.list("") == []

    # Folders ---------------------------------------------------------------------------------------------------------

    def test_listing_takes_whole_segments(self, store: ArtifactStore) -> None:
        """A prefix is a folder: `a/b` lists what is below it, sorted, and neither `a/bc` nor an object `a/b` itself."""
        for path in ("a/b/2", "a/b/1", "a/b/c/3", "a/bc/4", "a/b.txt", "ab/5", "z"):
            store.put_bytes(path, path.encode())
        assert store.list("a/b") == [ObjectInfo("a/b/1", 5), ObjectInfo("a/b/2", 5), ObjectInfo("a/b/c/3", 7)]
        assert [info.path for info in store.list("")] == sorted(
            ["a/b/2", "a/b/1", "a/b/c/3", "a/bc/4", "a/b.txt", "ab/5", "z"]
        )
        assert store.list("z") == []
        assert store.list("a/b/1") == []
        assert store.list("no/such") == []

    def test_more_objects_than_a_page(self, store: ArtifactStore) -> None:
        """Listings and deletions go past the thousand objects that servers answer at once."""
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda number: store.put_bytes(f"many/{number:04d}", b""), range(1050)))
        assert [info.path for info in store.list("many")] == [f"many/{number:04d}" for number in range(1050)]
        store.delete_prefix("many")
        assert store.list("") == []

    def test_deleting_is_idempotent(self, store: ArtifactStore) -> None:
        """Deleting twice is no error; deleting a folder leaves its neighbours and an object of the folder's name."""
        for path in ("a/b/1", "a/b/c/2", "a/bc/3", "x"):
            store.put_bytes(path, b"1")
        store.delete("a/b/1")
        store.delete("a/b/1")
        store.delete("never/there")
        store.delete("a/b")  # a folder is no object
        assert [info.path for info in store.list("")] == ["a/b/c/2", "a/bc/3", "x"]
        store.delete_prefix("a/b")
        store.delete_prefix("a/b")
        store.delete_prefix("never/there")
        store.delete_prefix("x")
        assert [info.path for info in store.list("")] == ["a/bc/3", "x"]

    def test_copying(self, store: ArtifactStore) -> None:
        """A copy has the same bytes, replaces what was there, and stays when its source changes or goes."""
        store.put_bytes("a", b"first")
        store.put_bytes("d/b", b"before")
        store.copy("a", "d/b")
        assert store.get_bytes("d/b") == b"first"
        store.put_bytes("a", b"second")
        assert store.get_bytes("d/b") == b"first"
        store.delete("a")
        assert store.get_bytes("d/b") == b"first"
        store.copy("d/b", "d/b")
        assert store.get_bytes("d/b") == b"first"

    # Many at once ----------------------------------------------------------------------------------------------------

    def test_put_if_absent(self, store: ArtifactStore) -> None:
        """The first writer wins, for as long as the object is there."""
        assert store.put_if_absent("a/m", b"first") is True
        assert store.put_if_absent("a/m", b"second") is False
        assert store.get_bytes("a/m") == b"first"
        store.delete("a/m")
        assert store.put_if_absent("a/m", b"third") is True
        assert store.get_bytes("a/m") == b"third"

    def test_put_if_absent_by_many_threads(self, opener: Opener) -> None:
        """Of sixteen threads that create one object at once exactly one wins, and its bytes stand; ten times over."""
        count, rounds = 16, 10
        barrier = threading.Barrier(count)

        def write(number: int) -> list[bool]:
            store = opener()
            won = []
            for turn in range(rounds):
                barrier.wait(60)
                won.append(store.put_if_absent(f"race/{turn}", f"{number} ".encode() * 1000))
            return won

        with ThreadPoolExecutor(count) as pool:
            results = list(pool.map(write, range(count)))
        for turn in range(rounds):
            winners = [number for number in range(count) if results[number][turn]]
            assert len(winners) == 1
            assert opener().get_bytes(f"race/{turn}") == f"{winners[0]} ".encode() * 1000

    def test_put_if_absent_by_many_processes(self, opener: Opener) -> None:
        """Of four processes that create one object at once exactly one wins, and its bytes stand; ten times over."""
        if not self.shared_by_processes:
            pytest.skip("this store lives in one process")
        context = multiprocessing.get_context("spawn")
        count, rounds = 4, 10
        barrier, queue = context.Barrier(count), context.Queue()
        processes = [
            context.Process(target=_race, args=(opener, number, rounds, barrier, queue), daemon=True)
            for number in range(count)
        ]
        try:
            for process in processes:
                process.start()
            results = dict(queue.get(timeout=120) for _ in processes)
            for process in processes:
                process.join(60)
        finally:
            for process in processes:
                process.kill()
                process.join()
            queue.close()
            queue.join_thread()
        for turn in range(rounds):
            winners = [number for number in range(count) if results[number][turn]]
            assert len(winners) == 1
            assert opener().get_bytes(f"race/{turn}") == str(winners[0]).encode()

    def test_readers_see_whole_objects_only(self, opener: Opener) -> None:
        """While an object is replaced over and over, every read gives one version of it, whole."""
        versions = [bytes([65 + number]) * (200_000 + 50_000 * number) for number in range(4)]
        writer = opener()
        writer.put_bytes("a/current", versions[0])
        done = threading.Event()
        seen: list[bytes] = []

        def look() -> None:
            store = opener()
            while not done.is_set():
                seen.append(store.get_bytes("a/current"))

        with ThreadPoolExecutor(3) as pool:
            readers = [pool.submit(look) for _ in range(3)]
            try:
                for turn in range(60):
                    writer.put_bytes("a/current", versions[turn % 4])
            finally:
                done.set()
            for reader in readers:
                reader.result(60)
        assert set(seen) <= set(versions)
        assert seen

    def test_readers_see_no_half_manifest(self, opener: Opener) -> None:
        """While manifests are committed, a reader finds none or a whole one, and all committers are told the same."""
        drafts = [_manifest(number) for number in range(1, 5)]
        done = threading.Event()
        found: list[manifests.Manifest] = []

        def look() -> None:
            store = opener()
            while not done.is_set():
                for turn in range(5):
                    standing = manifests.read(store, f"t/{turn}")
                    if standing:
                        found.append(standing[0])

        with ThreadPoolExecutor(6) as pool:
            reader = pool.submit(look)
            try:
                for turn in range(5):
                    jobs = [pool.submit(manifests.commit, opener(), f"t/{turn}", draft) for draft in drafts]
                    told = [job.result(60) for job in jobs]
                    assert told.count(told[0]) == len(drafts)
                    assert told[0][0] in drafts
                    assert manifests.read(opener(), f"t/{turn}") == told[0]
            finally:
                done.set()
            reader.result(60)
        assert all(manifest in drafts for manifest in found)
        assert [info.path for info in opener().list("t")] == [f"t/{turn}/{MANIFEST}" for turn in range(5)]

    # Large files -----------------------------------------------------------------------------------------------------

    def test_large_files_take_bounded_memory(self, opener: Opener, tmp_path: Path) -> None:
        """96 MiB go up, are copied and come back bit by bit, in a process that never grows by that much."""
        local = tmp_path / "large"
        block = random.Random(0).randbytes(MIB)
        with local.open("wb") as file:
            for number in range(LARGE // MIB):
                file.write(number.to_bytes(4, "big") + block[4:])
        if not self.shared_by_processes:
            _move_large(opener, local)
            return
        context = multiprocessing.get_context("spawn")
        queue = context.Queue()
        process = context.Process(target=_measure_large, args=(opener, local, queue), daemon=True)
        try:
            process.start()
            growth = queue.get(timeout=300)
            process.join(60)
        finally:
            process.kill()
            process.join()
            queue.close()
            queue.join_thread()
        if self.bounded_memory:
            assert growth < LARGE * 3 // 4
        assert opener().list("") == [ObjectInfo("copy", LARGE), ObjectInfo("large", LARGE)]

    # Trouble ---------------------------------------------------------------------------------------------------------

    def test_refusals_are_named(self, refused: Opener, tmp_path: Path) -> None:
        """Whatever is called, a refusal is a StoreRefusedError that names the store and repeats no secret."""
        store = refused()
        (tmp_path / "f").write_bytes(b"1")
        calls: list[Callable[[], Any]] = [
            lambda: store.put_bytes("a/b", b"1"),
            lambda: store.put_file("a/b", tmp_path / "f"),
            lambda: store.put_if_absent("a/b", b"1"),
            lambda: store.get_bytes("a/b"),
            lambda: store.get_file("a/b", tmp_path / "g"),
            lambda: store.exists("a/b"),
            lambda: store.list("a"),
            lambda: store.list(""),
            lambda: store.delete("a/b"),
            lambda: store.delete_prefix("a"),
        ]
        for call in calls:
            with pytest.raises(StoreRefusedError, match=re.escape(store.uri)) as caught:
                call()
            shown = str(caught.value)
            assert caught.value.__cause__ is None
            assert caught.value.__suppress_context__ or caught.value.__context__ is None
            assert "Signature=" not in shown
            for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AZURE_STORAGE_ACCOUNT_KEY"):
                assert os.environ.get(name) is None or os.environ[name] not in shown
        assert list(tmp_path.glob("g*")) == []

    def test_an_upload_that_breaks_off_leaves_nothing(self, breaking: Opener, opener: Opener, tmp_path: Path) -> None:
        """When the connection breaks half-way through an upload there is an error and no object; the next one works."""
        local = tmp_path / "large"
        with local.open("wb") as file:
            file.truncate(64 * MIB)
        with pytest.raises(StoreUnavailableError, match="a/large"):
            breaking().put_file("a/large", local)
        store = opener()
        assert not store.exists("a/large")
        assert store.list("") == []
        store.put_file("a/large", local)
        assert store.list("") == [ObjectInfo("a/large", 64 * MIB)]


def _race(opener: Opener, number: int, rounds: int, barrier: Barrier, queue: Any) -> None:
    store = opener()
    won = []
    for turn in range(rounds):
        barrier.wait(60)
        won.append(store.put_if_absent(f"race/{turn}", str(number).encode()))
    queue.put((number, won))


def _measure_large(opener: Opener, local: Path, queue: Any) -> None:
    store = opener()
    store.put_bytes("warm", b"1")
    store.delete("warm")
    before = _peak_memory()
    _move_large(lambda: store, local)
    queue.put(_peak_memory() - before)


def _move_large(opener: Opener, local: Path) -> None:
    store = opener()
    store.put_file("large", local)
    store.copy("large", "copy")
    back = local.with_name("back")
    store.get_file("copy", back)
    assert manifests.hash_file(back) == manifests.hash_file(local)


def _peak_memory() -> int:
    """Peak resident memory of this process in bytes. rusage counts what the parent had before exec, so /proc first."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    found = re.search(r"VmHWM:\s*(\d+) kB", status)
    assert found
    return int(found.group(1)) * 1024


def _manifest(attempt: int) -> manifests.Manifest:
    # Different lengths, so that a mixture of two would not parse.
    files = [{"path": f"{attempt}-abc/{n}", "sha256": "0" * 64, "bytes": n} for n in range(50 * attempt)]
    return manifests.Manifest.model_validate(
        {"apiVersion": "modelpress.dev/v1alpha1", "attempt": attempt, "files": files, "specDigest": "d" * attempt}
    )
