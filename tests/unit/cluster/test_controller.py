"""The loop over the in-memory API server: watches are its changes, Jobs end when a test says so."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from modelpress_operator.cache import Cache
from modelpress_operator.client import ClusterError, ConflictError, InvalidError, ServerError
from modelpress_operator.compact import transform
from modelpress_operator.controller import Controller
from modelpress_operator.events import EventWriter
from modelpress_operator.execute import Executor
from modelpress_operator.lease import Leadership, LeaseLostError
from modelpress_operator.memory import MemoryClient
from modelpress_operator.metrics import Metrics
from modelpress_operator.progress import StatusWrites
from modelpress_operator.progress.message import Message
from modelpress_operator.render import RenderSettings, render_job
from modelpress_operator.resources import (
    COMPRESSION_JOBS,
    COMPRESSION_SWEEPS,
    EVENTS,
    JOBS,
    NETWORK_POLICIES,
    PODS,
    SERVICES,
    Key,
    RawObject,
    Resource,
)

N = "team-a"
DIGEST = "d" * 64
NOW = "2026-01-01T00:00:00Z"


def recipe(**spec: Any) -> dict[str, Any]:
    """A job's spec that halves the channels."""
    prune = {"algorithm": "l1", "configList": [{"opTypes": ["Conv2d"], "sparsity": 0.5}]}
    return {
        "model": {"entrypoint": "digits:create"},
        "stages": [{"prune": prune}],
        "store": {"uri": "s3://models/out"},
        **spec,
    }


class Operator:
    """Everything but the watch: changes of the in-memory server are told to the cache one by one."""

    def __init__(self, client: MemoryClient) -> None:
        self.client = client
        self.cache = Cache()
        self.metrics = Metrics()
        self.leadership = Leadership(client, self.metrics, namespace=N, name="lease", identity="me")
        self.events = EventWriter(client, self.metrics, identity="me")
        self.progress = StatusWrites(client, self.cache, self.leadership.check)
        settings = RenderSettings(image="runner:1")
        self.executor = Executor(
            client,
            self.cache,
            self.leadership,
            self.events,
            self.metrics,
            lambda action, owner: render_job(action, owner, settings),
            lambda: dt.datetime.now(dt.UTC),
            self.progress,
        )
        self.controller = Controller(client, self.cache, self.executor, self.metrics)

    async def watch(self) -> None:
        """What the watch would bring by now."""
        for resource in (COMPRESSION_SWEEPS, COMPRESSION_JOBS, JOBS, PODS):
            found = [transform(resource, obj) for obj in await self.client.list(resource, None)]
            self.cache.replace(resource, None, found, self.client.version)

    async def create(self, resource: Resource, name: str, spec: dict[str, Any]) -> RawObject:
        """A person creates an object."""
        body = {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": {"name": name}, "spec": spec}
        made = await self.client.create(resource, N, body)
        await self.watch()
        return made

    async def get(self, resource: Resource, name: str) -> RawObject:
        """An object as it is stored."""
        return await self.client.get(resource, N, name)

    async def end(self, job: str, result: dict[str, Any]) -> None:
        """The pod of a Job reports this, and the Job is complete."""
        there = await self.get(JOBS, job)
        reference = {"apiVersion": "batch/v1", "kind": "Job", "name": job, "uid": there["metadata"]["uid"]}
        pod = {"metadata": {"name": f"{job}-x", "ownerReferences": [{**reference, "controller": True}]}}
        made = await self.client.create(PODS, N, pod)
        state = {"terminated": {"exitCode": 0, "message": json.dumps(result), "startedAt": NOW, "finishedAt": NOW}}
        status = {"phase": "Succeeded", "containerStatuses": [{"name": "runner", "state": state}]}
        await self.client.patch_status(PODS, N, f"{job}-x", status, made["metadata"]["resourceVersion"])
        complete = {"conditions": [{"type": "Complete", "status": "True", "lastTransitionTime": NOW}]}
        await self.client.patch_status(JOBS, N, job, complete, there["metadata"]["resourceVersion"])
        await self.watch()

    def condition(self, obj: RawObject, type_: str) -> dict[str, Any]:
        """A condition of an object, empty if it has none of that type."""
        return next((one for one in obj.get("status", {}).get("conditions", []) if one["type"] == type_), {})


@pytest.fixture
async def operator() -> AsyncIterator[Operator]:
    """A leader that reconciles."""
    operator = Operator(MemoryClient())
    tasks = [asyncio.create_task(operator.leadership.run()), asyncio.create_task(operator.events.run())]
    await operator.leadership.acquired.wait()
    run = asyncio.create_task(operator.controller.run(4))
    yield operator
    for task in (run, *tasks):
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await run


async def until(check: Callable[[], Any]) -> None:
    """Until it is so; the loop runs by itself, so there is nothing else to wait for."""
    async with asyncio.timeout(20):
        while True:
            value = check()
            if await value if asyncio.iscoroutine(value) else value:
                return
            await asyncio.sleep(0.01)


async def phase(operator: Operator, name: str, wanted: str) -> bool:
    """Whether the job is in that phase."""
    return (await operator.get(COMPRESSION_JOBS, name)).get("status", {}).get("phase") == wanted


RESULT = {"v": 1, "phase": "Succeeded", "reason": "Committed", "manifestDigest": DIGEST, "compressed": {"macs": 500.0}}


async def test_a_job_from_its_creation_to_its_end(operator: Operator) -> None:
    """Status, Job, status: three writes and the events; the Job is the job's own."""
    made = await operator.create(COMPRESSION_JOBS, "j", recipe())
    await until(lambda: ("create", "jobs", "j-1") in operator.client.requests)
    job = await operator.get(JOBS, "j-1")
    assert job["metadata"]["ownerReferences"][0]["uid"] == made["metadata"]["uid"]
    await operator.end("j-1", RESULT)
    await until(lambda: phase(operator, "j", "Succeeded"))
    done = await operator.get(COMPRESSION_JOBS, "j")
    assert done["status"]["artifact"]["manifestDigest"] == DIGEST
    assert done["status"]["metrics"]["compressed"] == {"macs": 500.0}
    await operator.events.flush(5)
    notes = [one["reason"] for one in await operator.client.list(EVENTS, N)]
    assert sorted(notes) == ["Pending", "Succeeded"]
    ours = ("compressionjobs", "jobs")
    writes = [
        request for request in operator.client.requests if request[1] in ours and request[0] in ("create", "patch")
    ]
    assert writes == [
        ("create", "compressionjobs", "j"),
        ("patch", "compressionjobs", "j"),
        ("create", "jobs", "j-1"),
        ("patch", "jobs", "j-1"),
        ("patch", "compressionjobs", "j"),
    ]


@pytest.mark.parametrize(
    ("verb", "error"),
    [("patch", ServerError("boom")), ("patch", ConflictError("stale")), ("create", ServerError("boom"))],
    ids=["status-server", "status-conflict", "create-server"],
)
async def test_a_failed_request_is_made_up_for(operator: Operator, verb: str, error: ClusterError) -> None:
    """Whatever fails once is done later, and once."""
    failed: list[str] = []

    def fault(asked: str, resource: Resource, name: str) -> ClusterError | None:
        if asked == verb and name in ("j", "j-1") and (asked, resource) != ("create", COMPRESSION_JOBS) and not failed:
            failed.append(name)
            return error
        return None

    operator.client.fault = fault
    await operator.create(COMPRESSION_JOBS, "j", recipe())
    await until(lambda: bool(failed))
    await until(lambda: _there(operator, "j-1"))
    assert [one["metadata"]["name"] for one in await operator.client.list(JOBS, N)] == ["j-1"]


async def _there(operator: Operator, job: str) -> bool:
    return any(one["metadata"]["name"] == job for one in await operator.client.list(JOBS, N))


async def test_what_the_server_never_takes_stalls_the_job(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its words are in the condition, and it is not asked again and again."""
    monkeypatch.setattr("modelpress.reconcile.attempts.WATCH_LAG", 0.1)
    operator.client.fault = lambda verb, resource, name: (
        InvalidError("spec.template: no good", status=422) if (verb, resource) == ("create", JOBS) else None
    )
    await operator.create(COMPRESSION_JOBS, "j", recipe())

    async def stalled() -> bool:
        return operator.condition(await operator.get(COMPRESSION_JOBS, "j"), "Stalled").get("status") == "True"

    await until(stalled)
    condition = operator.condition(await operator.get(COMPRESSION_JOBS, "j"), "Stalled")
    assert condition["reason"] == "InvalidSpec"
    assert "spec.template: no good" in condition["message"]
    assert operator.client.requests.count(("create", "jobs", "j-1")) == 1


async def test_an_object_of_another_version_is_told(operator: Operator) -> None:
    """A field that this operator does not know is no reason to crash, nor to act."""
    await operator.create(COMPRESSION_JOBS, "j", recipe(novelty=1))

    async def stalled() -> bool:
        return operator.condition(await operator.get(COMPRESSION_JOBS, "j"), "Stalled").get("status") == "True"

    await until(stalled)
    status = (await operator.get(COMPRESSION_JOBS, "j"))["status"]
    assert "novelty" in operator.condition({"status": status}, "Stalled")["message"]
    assert await operator.client.list(JOBS, N) == []


async def test_without_the_lease_nothing_is_written() -> None:
    """A follower that reconciled all the same would be stopped before its first request."""
    operator = Operator(MemoryClient())
    await operator.create(COMPRESSION_JOBS, "j", recipe())
    run = asyncio.create_task(operator.controller.run(1))
    with pytest.raises(LeaseLostError):
        await asyncio.wait_for(run, 10)
    assert [request for request in operator.client.requests if request[0] == "patch"] == []


def search(trials: int, parallelism: int) -> dict[str, Any]:
    """A random search for a sparsity; the model is searched too, so that there is no prepare Job."""
    return {
        "template": {"spec": recipe(model={"entrypoint": "digits:create", "args": {"width": 8}})},
        "searchSpace": [
            {"name": "width", "paths": ["/model/args/width"], "int": {"min": 8, "max": 64}},
            {"name": "s", "paths": ["/stages/0/prune/configList/0/sparsity"], "float": {"min": 0.1, "max": 0.9}},
        ],
        "objectives": [{"metric": "macs"}],
        "algorithm": {"name": "random"},
        "maxTrials": trials,
        "parallelism": parallelism,
    }


async def test_trials_come_before_the_status_that_counts_them(operator: Operator) -> None:
    """An operator that dies after creating trials loses none: the next one counts them and makes only the others."""
    died = asyncio.Event()

    def fault(verb: str, resource: Resource, name: str) -> ClusterError | None:
        if (verb, resource) == ("create", COMPRESSION_JOBS) and name == "s-00002":
            died.set()
            return ServerError("died here")
        return ServerError("dead") if died.is_set() else None

    operator.client.fault = fault
    await operator.create(COMPRESSION_SWEEPS, "s", search(4, 4))
    await died.wait()
    assert (await _stored(operator, COMPRESSION_SWEEPS, "s")).get("status", {}).get("created", 0) == 0
    first = [one["metadata"]["annotations"] for one in await _all(operator, COMPRESSION_JOBS)]
    assert len(first) == 2
    operator.client.fault = lambda verb, resource, name: None

    async def complete() -> bool:
        return (await operator.get(COMPRESSION_SWEEPS, "s")).get("status", {}).get("created") == 4

    await until(complete)
    trials = await _all(operator, COMPRESSION_JOBS)
    assert [one["metadata"]["name"] for one in trials] == [f"s-0000{number}" for number in range(4)]
    assert [one["metadata"]["annotations"] for one in trials[:2]] == first


async def test_a_short_trial_is_three_writes(operator: Operator) -> None:
    """The trial, its Job, and one status at its end, which knows when it began; the sweep writes one for all."""
    await operator.create(COMPRESSION_SWEEPS, "s", search(2, 2))
    await until(lambda: ("create", "jobs", "s-00001-1") in operator.client.requests)
    await operator.watch()
    job = await operator.get(JOBS, "s-00000-1")
    for name in ("s-00000-1", "s-00001-1"):
        await operator.end(name, {**RESULT, "compressed": {"macs": 1.0}})
    await until(lambda: phase(operator, "s-00001", "Succeeded"))
    await until(lambda: phase(operator, "s-00000", "Succeeded"))
    status = (await operator.get(COMPRESSION_JOBS, "s-00000"))["status"]
    made = job["metadata"]["creationTimestamp"]
    assert dt.datetime.fromisoformat(status["startTime"]) == dt.datetime.fromisoformat(made)
    assert [attempt["outcome"] for attempt in status["attempts"]] == ["Succeeded"]
    mine = [request for request in operator.client.requests if request[2].startswith("s-00000")]
    assert [request for request in mine if request[1] in ("compressionjobs", "jobs") and request[0] != "get"] == [
        ("create", "compressionjobs", "s-00000"),
        ("create", "jobs", "s-00000-1"),
        ("patch", "jobs", "s-00000-1"),  # this test's own
        ("patch", "compressionjobs", "s-00000"),
    ]


async def test_a_trial_that_waits_is_told_after_a_while(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing happens to its Job: then its status says that it waits."""
    monkeypatch.setattr("modelpress_operator.coalesce.FIRST_STATUS_SECONDS", 0.2)
    await operator.create(COMPRESSION_SWEEPS, "s", search(1, 1))
    await until(lambda: ("create", "jobs", "s-00000-1") in operator.client.requests)
    assert "phase" not in (await operator.get(COMPRESSION_JOBS, "s-00000")).get("status", {})
    await until(lambda: phase(operator, "s-00000", "Pending"))
    attempt = (await operator.get(COMPRESSION_JOBS, "s-00000"))["status"]["attempts"][0]
    assert (attempt["number"], attempt["outcome"]) == (1, "Running")


async def test_news_of_many_starts_waits_longer(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    """2 s for the first, .2 s more for each that waits already; the Job's own news and a pod without a node 8 s."""
    queue, waits = operator.controller._queue, list[tuple[str, float]]()
    monkeypatch.setattr(queue, "add_after", lambda key, seconds: waits.append((key.name, round(seconds, 6))))
    await operator.create(COMPRESSION_SWEEPS, "s", search(3, 3))
    await until(lambda: ("create", "jobs", "s-00002-1") in operator.client.requests)
    await operator.watch()
    waits.clear()
    for number in range(3):
        job = await operator.get(JOBS, f"s-0000{number}-1")
        active = await operator.client.patch_status(
            JOBS, N, job["metadata"]["name"], {"active": 1}, job["metadata"]["resourceVersion"]
        )
        operator.cache.put(JOBS, transform(JOBS, active))
        reference = {"apiVersion": "batch/v1", "kind": "Job", "controller": True}
        reference |= {key: job["metadata"][key] for key in ("name", "uid")}
        made = await operator.client.create(
            PODS, N, {"metadata": {"name": f"p{number}", "ownerReferences": [reference]}}
        )
        operator.cache.put(PODS, transform(PODS, made))
        running = {
            "phase": "Running",
            "containerStatuses": [{"name": "runner", "state": {"running": {"startedAt": NOW}}}],
        }
        begun = await operator.client.patch_status(PODS, N, f"p{number}", running, made["metadata"]["resourceVersion"])
        operator.cache.put(PODS, transform(PODS, begun))
    starts = [(f"s-0000{number}", seconds) for number in range(3) for seconds in (8.0, 8.0, 2.0 + 0.2 * number)]
    assert waits == starts
    queue.add(Key(COMPRESSION_JOBS, N, "s-00000"))
    await until(lambda: phase(operator, "s-00000", "Running"))
    waits.clear()
    operator.cache.put(PODS, transform(PODS, {**begun, "metadata": {**begun["metadata"], "resourceVersion": "999999"}}))
    assert waits[0] == ("s-00002", 2.2)  # one other is left


async def test_the_last_status_holds_the_last_scores(operator: Operator) -> None:
    """What a short run said is in the status that its end writes, without a write of its own."""
    await operator.create(COMPRESSION_JOBS, "j", recipe())
    await until(lambda: ("create", "jobs", "j-1") in operator.client.requests)
    points = [{"step": 1, "value": 0.5}, {"step": 2, "value": 0.75}]
    said = Message.model_validate({"stage": "finetune", "step": 2, "total": 2, "points": points})
    operator.progress.accept(Key(COMPRESSION_JOBS, N, "j"), said)
    await operator.end("j-1", RESULT)
    await until(lambda: phase(operator, "j", "Succeeded"))
    status = (await operator.get(COMPRESSION_JOBS, "j"))["status"]
    assert (status["intermediate"], status["progress"]["step"]) == (points, 2)
    assert operator.client.requests.count(("patch", "compressionjobs", "j")) == 2


async def _all(operator: Operator, resource: Resource) -> list[RawObject]:
    fault, operator.client.fault = operator.client.fault, lambda verb, resource, name: None
    try:
        return await operator.client.list(resource, N)
    finally:
        operator.client.fault = fault


async def _stored(operator: Operator, resource: Resource, name: str) -> RawObject:
    return next(one for one in await _all(operator, resource) if one["metadata"]["name"] == name)


async def test_a_gang_has_a_service_and_a_policy_as_long_as_a_job(operator: Operator) -> None:
    """Its ranks find each other, and nobody else reaches them, from the first moment on; suspending takes all away."""
    await operator.create(COMPRESSION_JOBS, "j", recipe(runner={"nodes": 2}))
    await until(lambda: _there(operator, "j-1"))
    await operator.watch()
    service = await operator.get(SERVICES, "j-1")
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": "j-1"}
    there = await operator.get(COMPRESSION_JOBS, "j")
    await operator.client.patch(
        COMPRESSION_JOBS, N, "j", {"spec": {"suspend": True}}, there["metadata"]["resourceVersion"]
    )
    await operator.watch()
    await until(lambda: ("delete", "networkpolicies", "j-1") in operator.client.requests)
    kinds = ("jobs", "services", "networkpolicies")
    ours = [request for request in operator.client.requests if request[1] in kinds]
    assert [request for request in ours if request[0] in ("create", "delete")] == [
        ("create", "services", "j-1"),
        ("create", "networkpolicies", "j-1"),
        ("create", "jobs", "j-1"),
        ("delete", "jobs", "j-1"),
        ("delete", "services", "j-1"),
        ("delete", "networkpolicies", "j-1"),
    ]
    assert await operator.client.list(SERVICES, N) == []
    assert await operator.client.list(NETWORK_POLICIES, N) == []


async def test_a_service_of_somebody_else_is_left_alone(operator: Operator) -> None:
    """A gang that would need its name stalls and says so; the Service stays, and no Job is made."""
    await operator.client.create(SERVICES, N, {"metadata": {"name": "j-1"}, "spec": {"clusterIP": "None"}})
    await operator.create(COMPRESSION_JOBS, "j", recipe(runner={"nodes": 2}))

    async def stalled() -> bool:
        await operator.watch()
        said = operator.condition(await operator.get(COMPRESSION_JOBS, "j"), "Stalled")
        return said.get("status") == "True" and "the Service j-1 belongs to somebody else" in said["message"]

    await until(stalled)
    assert await operator.client.list(JOBS, N) == []
    assert "ownerReferences" not in (await operator.get(SERVICES, "j-1"))["metadata"]


async def test_crashes_in_a_row_are_said_and_forgotten(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    """After five the status names the exception, other objects go on, and one success makes it right again."""
    monkeypatch.setattr("modelpress_operator.controller.BACKOFF", (0.01, 0.02))
    broken, real = [True], operator.controller._snapshots.observe_job

    def observe(raw: RawObject, *arguments: Any) -> Any:
        if broken[0] and raw["metadata"]["name"] == "j":
            raise ZeroDivisionError("secret")
        return real(raw, *arguments)

    monkeypatch.setattr(operator.controller._snapshots, "observe_job", observe)
    await operator.create(COMPRESSION_JOBS, "j", recipe())
    await operator.create(COMPRESSION_JOBS, "k", recipe())

    async def stalled(wanted: tuple[str, str]) -> bool:
        found = operator.condition(await operator.get(COMPRESSION_JOBS, "j"), "Stalled")
        return (found.get("status"), found.get("reason")) == wanted

    await until(lambda: stalled(("True", "OperatorFailed")))
    message = operator.condition(await operator.get(COMPRESSION_JOBS, "j"), "Stalled")["message"]
    assert "5 times in a row: ZeroDivisionError." in message
    assert "secret" not in message
    await until(lambda: ("create", "jobs", "k-1") in operator.client.requests)
    broken[0] = False
    await until(lambda: ("create", "jobs", "j-1") in operator.client.requests)
    await until(lambda: stalled(("False", "Pending")))


@pytest.mark.parametrize("args", [{"a": "x" * 300_000}, "deep"], ids=["large", "deep"])
async def test_what_is_not_read_is_stalled(operator: Operator, args: Any) -> None:
    """With the reason, in any phase but a final one; and nothing is started for it."""
    if args == "deep":
        args = {"a": 1}
        for _ in range(100):
            args = {"a": args}
    await operator.create(COMPRESSION_JOBS, "j", recipe(model={"entrypoint": "a:b", "args": args}))
    reason = "SpecTooLarge" if "x" in str(args) else "InvalidSpec"

    async def stalled() -> bool:
        found = await operator.get(COMPRESSION_JOBS, "j")
        return operator.condition(found, "Stalled").get("reason") == reason

    await until(stalled)
    assert (await operator.get(COMPRESSION_JOBS, "j"))["status"]["phase"] == "Pending"
    assert await operator.client.list(JOBS, None) == []


async def test_a_trial_that_the_watch_tells_of_first_starts_at_once(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its creation is answered when it was looked at already; its Job does not wait until it is told of again."""
    create = operator.client.create

    async def late(resource: Resource, namespace: str, body: RawObject) -> RawObject:
        made = await create(resource, namespace, body)
        if resource is COMPRESSION_JOBS:
            await operator.watch()
            await asyncio.sleep(0.3)  # the trial is looked at meanwhile
        return made

    monkeypatch.setattr(operator.client, "create", late)
    path = "/model/args/width"
    sweep = {
        "template": {"spec": recipe(model={"entrypoint": "digits:create", "args": {"width": 8}})},
        "searchSpace": [{"name": "width", "paths": [path], "int": {"min": 4, "max": 32}}],
        "objectives": [{"metric": "default"}],
        "algorithm": {"name": "random", "seed": 0},
        "parallelism": 1,
        "maxTrials": 1,
    }
    await operator.create(COMPRESSION_SWEEPS, "s", sweep)
    async with asyncio.timeout(4):  # a first status may wait for 8 seconds
        await until(lambda: operator.cache.get(JOBS, N, "s-00000-1") is not None)
