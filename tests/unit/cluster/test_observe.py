"""What Jobs and pods mean: state, cause, reason, message and times, by tables."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from modelpress_operator.observe import LOST_SECONDS, observed_job, recheck_after

NOW = dt.datetime(2026, 1, 1, 12, 0, 0, tzinfo=dt.UTC)
START, END = "2026-01-01T11:00:00Z", "2026-01-01T11:30:00Z"


def job(*conditions: dict[str, Any], labels: dict[str, str] | None = None, **spec: Any) -> dict[str, Any]:
    """A Job of attempt 2 of job `j`."""
    own = {"modelpress.dev/attempt": "2", "modelpress.dev/purpose": "trial"}
    meta = {"name": "j-2", "namespace": "n", "uid": "job-uid", "labels": own if labels is None else labels}
    meta["ownerReferences"] = [{"uid": "cr-uid", "kind": "CompressionJob", "name": "j", "controller": True}]
    return {"metadata": meta, "spec": spec, "status": {"conditions": list(conditions)}}


def holds(type_: str, **more: Any) -> dict[str, Any]:
    """A condition that holds."""
    return {"type": type_, "status": "True", "lastTransitionTime": END, **more}


def pod(
    *, state: dict[str, Any] | None = None, conditions: tuple[Any, ...] = (), rank: int = 0, **status: Any
) -> dict[str, Any]:
    """A pod whose container `runner` is in that state."""
    containers = [{"name": "sidecar", "state": {"terminated": {"exitCode": 2, "message": "not this one"}}}]
    if state is not None:
        containers.append({"name": "runner", "state": state})
    meta = {"name": f"p-{rank}", "labels": {"batch.kubernetes.io/job-completion-index": str(rank)}}
    return {"metadata": meta, "status": {"containerStatuses": containers, "conditions": list(conditions), **status}}


def ended(code: int, message: str = "", **more: Any) -> dict[str, Any]:
    """A terminated container."""
    return {"terminated": {"exitCode": code, "message": message, "startedAt": START, "finishedAt": END, **more}}


def test_a_job_without_pods_is_pending() -> None:
    """Nothing is known but whose it is."""
    seen = observed_job(job(), [])
    assert (seen.state, seen.cause, seen.reason, seen.started_at) == ("pending", None, None, None)
    assert (seen.name, seen.uid, seen.owner_uid) == ("j-2", "job-uid", "cr-uid")
    assert (seen.purpose, seen.attempt, seen.deleting) == ("trial", 2, False)


@pytest.mark.parametrize(
    ("pods", "spec", "reason"),
    [
        ([], {"suspend": True}, "Queued"),
        ([pod(state={"waiting": {"reason": "ImagePullBackOff", "message": "m"}})], {}, "ImagePullBackOff"),
        ([pod(state={"waiting": {"reason": "ContainerCreating"}})], {}, None),
        (
            [pod(conditions=({"type": "PodScheduled", "status": "False", "reason": "Unschedulable"},))],
            {},
            "Unschedulable",
        ),
        ([pod(initContainerStatuses=[{"state": {"waiting": {"reason": "CrashLoopBackOff"}}}])], {}, "CrashLoopBackOff"),
    ],
)
def test_why_a_runner_does_not_start(pods: list[Any], spec: dict[str, Any], reason: str | None) -> None:
    """In the cluster's own words."""
    seen = observed_job(job(**spec), pods)
    assert (seen.state, seen.reason) == ("pending", reason)


def test_a_runner_runs_until_its_job_has_ended() -> None:
    """A terminated container is not the end: only the Job's condition is final."""
    running = observed_job(job(), [pod(state={"running": {"startedAt": START}})])
    assert running.state == "running"
    assert running.started_at == dt.datetime(2026, 1, 1, 11, 0, tzinfo=dt.UTC)
    over = observed_job(job(holds("FailureTarget")), [pod(state=ended(1))])
    assert (over.state, over.cause) == ("running", None)


def test_success_brings_the_runners_message() -> None:
    """From the container `runner`, with the times of its run."""
    seen = observed_job(job(holds("Complete")), [pod(state=ended(0, "hello"))])
    assert (seen.state, seen.message, seen.cause) == ("succeeded", "hello", None)
    assert seen.started_at == dt.datetime(2026, 1, 1, 11, 0, tzinfo=dt.UTC)
    assert seen.finished_at == dt.datetime(2026, 1, 1, 11, 30, tzinfo=dt.UTC)


def test_of_several_ranks_the_first_speaks() -> None:
    """An Indexed Job's result is rank 0's, whatever order the pods come in."""
    pods = [pod(rank=1, state=ended(0, "one")), pod(rank=0, state=ended(0, "zero"))]
    assert observed_job(job(holds("Complete")), pods).message == "zero"


DISRUPTED = holds("DisruptionTarget", reason="EvictionByEvictionAPI", message="drained")


@pytest.mark.parametrize(
    ("pods", "message", "cause", "reason"),
    [
        ([pod(state=ended(2))], "", "invalid", "Invalid"),
        ([pod(state=ended(143))], "", "terminated", "Terminated"),
        ([pod(state=ended(143), conditions=(DISRUPTED,))], "", "terminated", "Terminated"),
        ([pod(state=ended(2), conditions=(DISRUPTED,))], "", "invalid", "Invalid"),
        ([pod(state=ended(137), conditions=(DISRUPTED,))], "", "disrupted", "EvictionByEvictionAPI"),
        ([pod(reason="Evicted", message="low on memory")], "", "disrupted", "Evicted"),
        ([pod(state=ended(137, reason="OOMKilled"))], "", "oom", "OOMKilled"),
        (
            [pod(state=ended(137, reason="OOMKilled"), conditions=(DISRUPTED,))],
            "",
            "disrupted",
            "EvictionByEvictionAPI",
        ),
        ([pod(state=ended(1, reason="Error"))], "", "error", "ExitCode1"),
        ([pod(state=ended(128, reason="StartError"))], "", "error", "StartError"),
        ([pod(rank=0, state=ended(1)), pod(rank=1, state=ended(2))], "", "invalid", "Invalid"),
        (
            [],
            "Container runner for pod n/p failed with exit code 2 matching FailJob rule at index 0",
            "invalid",
            "Invalid",
        ),
        ([], "Container runner for pod n/p failed with exit code 143 matching FailJob", "terminated", "Terminated"),
        (
            [],
            "Pod n/p has condition DisruptionTarget matching FailJob rule at index 2",
            "disrupted",
            "DisruptionTarget",
        ),
        ([], "Job has reached the specified backoff limit", "error", "BackoffLimitExceeded"),
    ],
)
def test_causes(pods: list[Any], message: str, cause: str, reason: str) -> None:
    """Exit 2, 143, a disruption, memory, anything else, in that order; the Job's condition tells if pods are gone."""
    condition = holds("Failed", reason="BackoffLimitExceeded", message=message)
    seen = observed_job(job(condition), pods)
    assert (seen.state, seen.cause, seen.reason) == ("failed", cause, reason)
    assert seen.finished_at == dt.datetime(2026, 1, 1, 11, 30, tzinfo=dt.UTC)


def test_a_pod_on_a_lost_node_is_given_up_after_a_while() -> None:
    """It should be gone for two minutes and nobody says that it is: disrupted, so that the next attempt may start."""
    lost = pod(state={"running": {"startedAt": START}}, phase="Running")
    due = NOW - dt.timedelta(seconds=LOST_SECONDS)
    lost["metadata"]["deletionTimestamp"] = due.isoformat().replace("+00:00", "Z")
    before = NOW - dt.timedelta(seconds=1)
    assert observed_job(job(), [lost], before).state == "running"
    assert recheck_after([lost], before) == 1.5
    seen = observed_job(job(), [lost], NOW)
    assert (seen.state, seen.cause, seen.reason) == ("failed", "disrupted", "NodeLost")
    assert recheck_after([lost], NOW) is None
    assert observed_job(job(), [lost], NOW, lost_after=LOST_SECONDS + 1).state == "running"
    assert recheck_after([lost], NOW, LOST_SECONDS + 1) == 1.5
    alive = pod(rank=1, state={"running": {"startedAt": START}}, phase="Running")
    assert observed_job(job(), [lost, alive], NOW).state == "running"


def test_a_foreign_job_is_seen_by_name() -> None:
    """Without our labels it is somebody else's, whatever it does."""
    body = job(labels={})
    body["metadata"]["ownerReferences"] = []
    seen = observed_job(body, [])
    assert (seen.owner_uid, seen.purpose, seen.attempt) == (None, "trial", 1)
