"""The work queue: each key once, in order, the soonest time counts."""

from __future__ import annotations

import asyncio

from modelpress.local.workqueue import WorkQueue


def drain(queue: WorkQueue[str]) -> list[str]:
    """All keys that are ready."""
    keys = []
    while (key := queue.pop()) is not None:
        keys.append(key)
    return keys


async def test_a_key_waits_once_and_in_order() -> None:
    """Adding a key that waits already changes nothing, not even its place."""
    queue: WorkQueue[str] = WorkQueue()
    for key in ("a", "b", "a", "c", "b"):
        queue.add(key)
    assert drain(queue) == ["a", "b", "c"]
    assert drain(queue) == []


async def test_a_key_added_while_it_is_worked_on_comes_again() -> None:
    """A change that comes after the snapshot is looked at."""
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    assert queue.pop() == "a"
    queue.add("a")
    assert drain(queue) == ["a"]


async def test_wake_is_set_exactly_while_something_is_ready() -> None:
    """Adding wakes; finding nothing goes back to sleep."""
    queue: WorkQueue[str] = WorkQueue()
    assert not queue.wake.is_set()
    queue.add("a")
    assert queue.wake.is_set()
    drain(queue)
    assert not queue.wake.is_set()


async def test_the_soonest_time_counts() -> None:
    """A later wish does not put off a sooner one, a sooner one overrides a later."""
    queue: WorkQueue[str] = WorkQueue()
    queue.add_after("a", 3600)
    queue.add_after("a", 0)
    queue.add_after("a", 3600)
    assert queue.waiting == 1
    await asyncio.wait_for(queue.wake.wait(), 5)
    assert drain(queue) == ["a"]
    assert queue.waiting == 0


async def test_looking_now_makes_the_timer_needless() -> None:
    """A key that is looked at sooner is not looked at again when its time comes."""
    queue: WorkQueue[str] = WorkQueue()
    queue.add_after("a", 3600)
    queue.add("a")
    assert queue.waiting == 0
    queue.add_after("a", 0)
    assert queue.waiting == 0
    assert drain(queue) == ["a"]


async def test_closing_forgets_everything() -> None:
    """A closed queue has neither keys nor timers."""
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    queue.add_after("b", 3600)
    queue.close()
    assert queue.waiting == 0
    assert drain(queue) == []
