"""The cache: nothing goes back in time, nothing deleted comes back, owners find their children."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from modelpress_operator.cache import Cache
from modelpress_operator.resources import COMPRESSION_JOBS, JOBS, PODS, RawObject, Resource


def thing(name: str, version: int, uid: str = "", owner: str | None = None, **more: Any) -> RawObject:
    """An object of that version; its uid is its name unless told otherwise."""
    meta: RawObject = {"name": name, "namespace": "n", "uid": uid or name, "resourceVersion": str(version)}
    if owner is not None:
        meta["ownerReferences"] = [{"uid": owner, "kind": "CompressionJob", "name": "o", "controller": True}]
    return {"metadata": meta, **more}


def versions(cache: Cache, resource: Resource = JOBS) -> dict[str, str]:
    """Name and version of what the cache holds."""
    return {obj["metadata"]["name"]: obj["metadata"]["resourceVersion"] for obj in cache.all(resource)}


def test_an_older_version_is_no_news() -> None:
    """A watch event from before our own write changes nothing and tells nobody."""
    cache, told = Cache(), []
    cache.listener = lambda resource, before, after, ours: told.append((before, after, ours))
    assert cache.put(JOBS, thing("a", 5), ours=True)
    assert not cache.put(JOBS, thing("a", 4))
    assert not cache.put(JOBS, thing("a", 5))
    assert versions(cache) == {"a": "5"}
    assert len(told) == 1
    assert told[0][2]


def test_versions_are_numbers() -> None:
    """10 is newer than 9."""
    cache = Cache()
    cache.put(JOBS, thing("a", 9))
    assert cache.put(JOBS, thing("a", 10))


def test_what_was_deleted_stays_away() -> None:
    """The late answer to a write does not bring an object back; a new object of that name is another one."""
    cache = Cache()
    cache.put(JOBS, thing("a", 1, uid="first"))
    cache.remove(JOBS, thing("a", 2, uid="first"))
    assert not cache.put(JOBS, thing("a", 3, uid="first"))
    assert cache.put(JOBS, thing("a", 4, uid="second"))
    assert not cache.remove(JOBS, thing("a", 2, uid="first"))
    assert versions(cache) == {"a": "4"}


def test_a_successor_of_the_same_name_is_told_as_a_deletion_first() -> None:
    """Whoever waits for the first to go hears of it."""
    cache, told = Cache(), []
    cache.put(JOBS, thing("a", 1, uid="first", owner="o1"))
    cache.listener = lambda resource, before, after, ours: told.append((before is not None, after is not None))
    cache.put(JOBS, thing("a", 2, uid="second", owner="o2"))
    assert told == [(True, False), (False, True)]
    assert cache.owned("o1", JOBS) == []
    assert len(cache.owned("o2", JOBS)) == 1


def test_a_listing_removes_what_is_gone() -> None:
    """What a listing lacks is gone, unless it is newer than the listing or of another namespace."""
    cache = Cache()
    for obj in (thing("old", 1), thing("kept", 2), thing("new", 9)):
        cache.put(JOBS, obj)
    other = thing("other", 3)
    other["metadata"]["namespace"] = "m"
    cache.put(JOBS, other)
    cache.put(PODS, thing("pod", 1))
    assert not cache.listed(JOBS, "n")
    cache.replace(JOBS, "n", [thing("kept", 2), thing("found", 4)], 5)
    assert versions(cache) == {"kept": "2", "new": "9", "other": "3", "found": "4"}
    assert versions(cache, PODS) == {"pod": "1"}
    assert cache.listed(JOBS, "n")
    assert not cache.listed(JOBS, None)


def test_heavy_parts_are_left_out() -> None:
    """A Job's template, a pod's spec and annotations, and managedFields of everything."""
    cache = Cache()
    job = thing("a", 1, spec={"suspend": True, "template": {"x": "y"}})
    job["metadata"]["managedFields"] = [{}]
    cache.put(JOBS, job)
    kept = cache.get(JOBS, "n", "a")
    assert kept is not None
    assert kept["spec"] == {"suspend": True}
    assert "managedFields" not in kept["metadata"]
    assert (kept["apiVersion"], kept["kind"]) == ("batch/v1", "Job")
    pod = thing("p", 1, spec={"containers": []}, status={"phase": "Running"})
    pod["metadata"]["annotations"] = {"modelpress.dev/spec": "x"}
    cache.put(PODS, pod)
    kept = cache.get(PODS, "n", "p")
    assert kept is not None
    assert "spec" not in kept
    assert "annotations" not in kept["metadata"]
    assert kept["status"] == {"phase": "Running"}


def test_numbered_jobs_are_found_by_their_stem() -> None:
    """Whosever they are: a sweep must see who has the name of its next trial."""
    cache = Cache()
    for name in ("s-00001", "s-00002", "s-1", "s", "t-00001"):
        cache.put(COMPRESSION_JOBS, thing(name, 1))
    assert [obj["metadata"]["name"] for obj in cache.numbered("n", "s")] == ["s-00001", "s-00002"]
    cache.remove(COMPRESSION_JOBS, thing("s-00001", 2))
    assert [obj["metadata"]["name"] for obj in cache.numbered("n", "s")] == ["s-00002"]
    assert cache.numbered("m", "s") == []


def test_namesakes_are_remembered_until_ours_is_there() -> None:
    """Somebody else's object is kept apart from what is watched."""
    cache = Cache()
    cache.note_name_conflict(JOBS, "n", "a", thing("a", 1, uid="foreign"))
    assert cache.get(JOBS, "n", "a") is None
    assert cache.name_conflict(JOBS, "n", "a") is not None
    cache.put(JOBS, thing("a", 2))
    assert cache.name_conflict(JOBS, "n", "a") is None


MOVES = st.lists(
    st.tuples(st.sampled_from(["put", "remove"]), st.sampled_from("ab"), st.integers(1, 3), st.integers(1, 20)),
    max_size=30,
)


@given(MOVES)
def test_any_order_of_news_keeps_the_indexes_true(moves: list[tuple[str, str, int, int]]) -> None:
    """Whatever arrives in whatever order: versions never fall, the dead stay dead, and the index is the content."""
    cache = Cache()
    dead: set[str] = set()
    newest: dict[str, int] = {}
    for move, name, generation, version in moves:
        uid = f"{name}{generation}"
        obj = thing(name, version, uid=uid, owner=f"owner-{uid}")
        if move == "put":
            cache.put(JOBS, obj)
        else:
            cache.remove(JOBS, obj)
            dead.add(uid)
            newest.pop(name, None)
        for there in cache.all(JOBS):
            meta = there["metadata"]
            assert meta["uid"] not in dead
            assert int(meta["resourceVersion"]) >= newest.get(meta["name"], 0)
            newest[meta["name"]] = int(meta["resourceVersion"])
        there = {obj["metadata"]["uid"] for obj in cache.all(JOBS)}
        for letter in "ab":
            for number in (1, 2, 3):
                owned = {obj["metadata"]["uid"] for obj in cache.owned(f"owner-{letter}{number}", JOBS)}
                assert owned == there & {f"{letter}{number}"}
