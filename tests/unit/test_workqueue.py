"""The work queue: each key once, in order, the soonest time counts."""

from __future__ import annotations

import asyncio

from modelpress.workqueue import WorkQueue


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


async def test_two_workers_never_get_one_key() -> None:
    """A key that is taken and added again comes once more, and only after done."""
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    key, waited = await queue.take()
    assert key == "a"
    assert waited >= 0
    queue.add("a")
    queue.add("a")
    queue.add("b")
    assert (await queue.take())[0] == "b"
    assert queue.pop() is None
    assert queue.depth == 1
    queue.done("a")
    assert drain(queue) == ["a"]
    queue.done("b")
    assert drain(queue) == []


async def test_workers_that_wait_each_get_a_key() -> None:
    """Adding two keys wakes two sleeping workers."""
    queue: WorkQueue[str] = WorkQueue()
    workers = [asyncio.create_task(queue.take()) for _ in range(2)]
    await asyncio.sleep(0)
    queue.add("a")
    queue.add("b")
    assert {key for key, _ in await asyncio.gather(*workers)} == {"a", "b"}


async def test_a_timer_may_end_while_the_key_is_taken() -> None:
    """What a worker asked for comes after done, even if its time has come before."""
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    await queue.take()
    queue.add_after("a", 0)
    while queue.waiting:  # noqa: ASYNC110  a timer of the loop: there is nothing to await
        await asyncio.sleep(0)
    queue.done("a")
    assert drain(queue) == ["a"]
