"""Why Jobs get no pods: asked of the Job controller's Events, seldom, and only where a pod is missing."""

from __future__ import annotations

from typing import Any

import pytest

from modelpress_operator.client import ClusterError, ForbiddenError
from modelpress_operator.failed_create import FailedCreateEvents
from modelpress_operator.memory import MemoryClient
from modelpress_operator.observe import missing_pods, observed_job
from modelpress_operator.resources import EVENTS, RawObject, Resource
from modelpress_operator.testing import event

N = "team-a"
QUOTA = "exceeded quota: none, requested: pods=1, used: pods=0, limited: pods=0"
NOTE = f'Error creating: pods "j-1-x7k2p" is forbidden: {QUOTA}'


def job(uid: str = "u", **more: Any) -> RawObject:
    """A Job that the Job controller took up; without a pod."""
    status = {"startTime": "2026-01-01T00:00:00Z", "ready": 0, "terminating": 0, **more.pop("status", {})}
    return {"metadata": {"name": "j-1", "namespace": N, "uid": uid, **more}, "spec": {}, "status": status}


class Clock:
    """Seconds as a test sets them."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


async def tell(client: MemoryClient, uid: str, note: str, name: str = "e", second: int = 0) -> None:
    """The Job controller writes an Event about the Job of this uid."""
    body = {
        **event(name, N, uid, "FailedCreate"),
        "note": note,
        "deprecatedLastTimestamp": f"2026-01-01T00:00:{second:02}Z",
    }
    await client.create(EVENTS, N, body)


def listings(client: MemoryClient) -> int:
    """How often Events were listed."""
    return client.requests.count(("list", "events", ""))


@pytest.mark.parametrize(
    ("there", "pods", "missing"),
    [
        (job(), [], True),
        (job(), [{"metadata": {}}], False),
        (job(status={"active": 1}), [], False),
        (job(status={"terminating": 1}), [], False),
        (job(status={"failed": 1}), [], False),
        (job(status={"startTime": None}), [], False),
        (job(status={"conditions": [{"type": "Failed", "status": "True"}]}), [], False),
        (job(deletionTimestamp="2026-01-01T00:00:00Z"), [], False),
        ({**job(), "spec": {"suspend": True}}, [], False),
        ({**job(status={"active": 2}), "spec": {"parallelism": 3, "completions": 3}}, [], True),
        ({**job(status={"active": 2, "failed": 1}), "spec": {"parallelism": 3, "completions": 3}}, [], False),
    ],
)
def test_which_jobs_miss_pods(there: RawObject, pods: list[RawObject], missing: bool) -> None:
    """A Job that was taken up and has no pod, neither now nor before; nobody else is asked after."""
    assert missing_pods(there, pods) is missing
    seen = observed_job(there, pods, refused=QUOTA)
    assert (seen.reason == "FailedCreate") is missing


async def test_the_newest_refusal_is_told_without_the_pods_name() -> None:
    """Of several Events the last one counts; pods are called another name at each try, which says nothing."""
    client = MemoryClient()
    await tell(client, "u", NOTE, "new", 40)
    await tell(client, "u", 'Error creating: admission webhook "w" denied the request: no', "old", 10)
    await tell(client, "other", "Error creating: nothing of ours", "other", 50)
    refusals = FailedCreateEvents(client)
    await refusals.look(job())
    assert refusals.why("u") == QUOTA
    await refusals.look(job("other"))
    assert refusals.why("other") == "nothing of ours"
    refusals.forget("u")
    assert refusals.why("u") is None


async def test_it_asks_ever_more_rarely_and_once_for_all_jobs_of_a_namespace() -> None:
    """In vain after 2, 4, 8... seconds, at most a minute apart; one listing serves two seconds."""
    client, clock = MemoryClient(), Clock()
    refusals = FailedCreateEvents(client, clock=clock)
    assert [await refusals.look(job(uid)) for uid in ("a", "b", "c")] == [2.0, 2.0, 2.0]
    assert listings(client) == 1
    waits = []
    for _ in range(7):
        clock.now += await refusals.look(job("a"))
        waits.append(await refusals.look(job("a")))
    assert waits == [4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]
    assert listings(client) == 8
    await tell(client, "a", NOTE)
    assert await refusals.look(job("a")) == 60.0
    assert refusals.why("a") is None  # not yet time to ask
    clock.now += 60
    assert await refusals.look(job("a")) == 60.0
    assert refusals.why("a") == QUOTA


async def test_without_the_right_to_list_events_it_goes_on() -> None:
    """An installation with older roles shows no reason, and is not asked again at once."""
    client = MemoryClient()

    def fault(verb: str, resource: Resource, name: str) -> ClusterError | None:
        return ForbiddenError("no", status=403) if resource is EVENTS else None

    client.fault = fault
    refusals = FailedCreateEvents(client, clock=Clock())
    assert await refusals.look(job()) == 2.0
    assert refusals.why("u") is None
