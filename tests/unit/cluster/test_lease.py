"""Leader election: one leader at a time, a quick hand-over, an end when the Lease is lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

import pytest

from modelpress_operator.client import ClusterError, ServerError
from modelpress_operator.lease import Leadership, LeaseLostError
from modelpress_operator.memory import MemoryClient
from modelpress_operator.metrics import Metrics
from modelpress_operator.resources import LEASES, Resource

SECONDS = 1.0


async def until(check: Callable[[], bool]) -> None:
    """Until it is so; replicas poll, so there is nothing else to wait for."""
    async with asyncio.timeout(10):
        while not check():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.fixture
def client() -> MemoryClient:
    """One API server for all replicas of a test."""
    return MemoryClient()


def replica(client: MemoryClient, identity: str) -> Leadership:
    """A candidate."""
    address = f"http://{identity}:8080"
    options = {"namespace": "n", "name": "lease", "identity": identity, "seconds": SECONDS, "address": address}
    return Leadership(client, Metrics(), **options)


@pytest.fixture
def tasks() -> Iterator[list[asyncio.Task[None]]]:
    """Tasks to cancel at the end."""
    started: list[asyncio.Task[None]] = []
    yield started
    for task in started:
        task.cancel()


async def test_one_leads_and_the_other_follows(client: MemoryClient, tasks: list[asyncio.Task[None]]) -> None:
    """The second knows where the first is, and takes over at once when the first gives the Lease up."""
    first, second = replica(client, "first"), replica(client, "second")
    tasks.append(asyncio.create_task(first.run()))
    await first.acquired.wait()
    tasks.append(asyncio.create_task(second.run()))
    await until(lambda: second.leader_address is not None)
    assert (first.held, second.held) == (True, False)
    assert second.leader_address == "http://first:8080"
    first.check()
    with pytest.raises(LeaseLostError):
        second.check()
    tasks[0].cancel()
    await first.release()
    await second.acquired.wait()
    assert (first.held, second.held) == (False, True)
    lease = await client.get(LEASES, "n", "lease")
    assert lease["spec"]["holderIdentity"] == "second"
    assert lease["metadata"]["annotations"] == {"modelpress.dev/address": "http://second:8080"}


async def test_a_silent_leader_is_replaced_only_after_its_time(
    client: MemoryClient, tasks: list[asyncio.Task[None]]
) -> None:
    """By then the old leader has long stopped to write."""
    first, second = replica(client, "first"), replica(client, "second")
    task = asyncio.create_task(first.run())
    await first.acquired.wait()
    task.cancel()
    silent_since = time.monotonic()
    tasks.append(asyncio.create_task(second.run()))
    await second.acquired.wait()
    assert time.monotonic() - silent_since >= SECONDS * 0.9
    assert not first.held


async def test_the_same_identity_goes_on_at_once(client: MemoryClient, tasks: list[asyncio.Task[None]]) -> None:
    """A container that starts again in its pod need not wait for itself."""
    first, again = replica(client, "pod"), replica(client, "pod")
    task = asyncio.create_task(first.run())
    await first.acquired.wait()
    task.cancel()
    tasks.append(asyncio.create_task(again.run()))
    await asyncio.wait_for(again.acquired.wait(), SECONDS / 2)


async def test_a_leader_that_was_replaced_ends(client: MemoryClient) -> None:
    """Somebody else stands in the Lease."""
    first = replica(client, "first")
    task = asyncio.create_task(first.run())
    await first.acquired.wait()
    lease = await client.get(LEASES, "n", "lease")
    version = lease["metadata"]["resourceVersion"]
    await client.patch(LEASES, "n", "lease", {"spec": {"holderIdentity": "thief"}}, version)
    with pytest.raises(LeaseLostError):
        await task
    assert not first.held


async def test_a_leader_that_cannot_renew_ends(client: MemoryClient) -> None:
    """A few failures are survived, silence of the API server is not."""
    first = replica(client, "first")
    failed: list[str] = []

    def flaky(verb: str, resource: Resource, name: str) -> ClusterError | None:
        if len(failed) >= 2:
            return None
        failed.append(verb)
        return ServerError("busy")

    task = asyncio.create_task(first.run())
    await first.acquired.wait()
    client.fault = flaky
    await until(lambda: len(failed) == 2)
    lease = await client.get(LEASES, "n", "lease")
    version = lease["metadata"]["resourceVersion"]
    await until(lambda: client.requests[-1][0] == "patch")
    assert (await client.get(LEASES, "n", "lease"))["metadata"]["resourceVersion"] != version
    assert first.held
    assert not task.done()
    client.fault = lambda verb, resource, name: ServerError("gone")
    with pytest.raises(LeaseLostError):
        await task


async def test_two_candidates_at_once(client: MemoryClient, tasks: list[asyncio.Task[None]]) -> None:
    """Of two that try in the same moment exactly one leads."""
    candidates = [replica(client, f"r{number}") for number in range(4)]
    tasks += [asyncio.create_task(one.run()) for one in candidates]
    await until(lambda: any(one.held for one in candidates))
    await asyncio.sleep(SECONDS / 2)
    assert sum(one.held for one in candidates) == 1
