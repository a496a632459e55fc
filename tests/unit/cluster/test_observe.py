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


# Gangs: Indexed Jobs of several pods ----------------------------------------------------------------------------------


def gang(*conditions: dict[str, Any]) -> dict[str, Any]:
    """A Job of two pods that train together."""
    return job(*conditions, completions=2, parallelism=2, completionMode="Indexed")


def deleted(body: dict[str, Any], at: str = END) -> dict[str, Any]:
    """A pod that was told to end."""
    body["metadata"]["deletionTimestamp"] = at
    return body


RUNNING = {"running": {"startedAt": START}}


@pytest.mark.parametrize(
    ("pods", "state", "reason"),
    [
        ([pod(state=RUNNING), pod(rank=1, state=RUNNING)], "running", None),
        ([pod(state=RUNNING), pod(rank=1, state=ended(0), phase="Succeeded")], "running", None),
        ([pod(state=RUNNING), pod(rank=1, phase="Failed", reason="Evicted")], "running", None),
        (
            [pod(state=RUNNING), pod(rank=1, state={"waiting": {"reason": "ImagePullBackOff"}})],
            "pending",
            "ImagePullBackOff",
        ),
        (
            [
                pod(state=RUNNING),
                pod(rank=1, conditions=({"type": "PodScheduled", "status": "False", "reason": "Unschedulable"},)),
            ],
            "pending",
            "Unschedulable",
        ),
    ],
)
def test_a_gang_runs_when_all_of_its_pods_do(pods: list[Any], state: str, reason: str | None) -> None:
    """Until then it waits, for the reason of the pod that does."""
    seen = observed_job(gang(), pods)
    assert (seen.state, seen.reason) == (state, reason)


SAID = '{"v": 1, "phase": "Failed", "reason": "RunnerFailed", "message": "no data"}'
DONE = '{"v": 1, "phase": "Succeeded", "reason": "Succeeded", "manifestDigest": "' + 64 * "a" + '"}'
FAIL_143 = "Container runner for pod n/p-0 failed with exit code 143 matching FailJob rule at index 1"


@pytest.mark.parametrize(
    ("pods", "text", "cause", "reason", "message"),
    [
        # Rank 1 failed; rank 0 was ended for it, by the Job controller or by its own launcher.
        ([pod(state=ended(143, "stopped")), pod(rank=1, state=ended(1, SAID))], "", "error", "ExitCode1", SAID),
        ([pod(rank=1, state=ended(1, SAID))], FAIL_143, "error", "ExitCode1", SAID),
        ([deleted(pod(state=ended(137))), pod(rank=1, state=ended(1, SAID))], "", "error", "ExitCode1", SAID),
        ([pod(state=ended(143)), pod(rank=1, state=ended(2, "bad"))], "", "invalid", "Invalid", "bad"),
        ([pod(state=ended(143)), pod(rank=1, state=ended(137, reason="OOMKilled"))], "", "oom", "OOMKilled", None),
        # Rank 1 was evicted, by the API or by its node.
        (
            [pod(state=ended(143)), pod(rank=1, state=ended(143), conditions=(DISRUPTED,))],
            "",
            "disrupted",
            "EvictionByEvictionAPI",
            None,
        ),
        ([pod(state=ended(143)), pod(rank=1, phase="Failed", reason="Evicted")], "", "disrupted", "Evicted", None),
        ([pod(state=ended(143, "stopped"))], FAIL_143, "terminated", "Terminated", "stopped"),
        # One that hangs because its peer was deleted is killed in the end; that explains nothing.
        ([deleted(pod(state=ended(137)))], FAIL_143, "terminated", "Terminated", None),
        ([pod(state=ended(143, "a")), pod(rank=1, state=ended(143, "b"))], "", "terminated", "Terminated", "a"),
        # A manifest is a success, whatever became of the others.
        ([pod(state=ended(0, DONE)), pod(rank=1, state=ended(1, SAID))], "", "error", "ExitCode1", DONE),
    ],
)
def test_what_ended_a_gang(pods: list[Any], text: str, cause: str, reason: str, message: str | None) -> None:
    """The pod whose end is not explained by another one's tells the cause, and what is to be read."""
    seen = observed_job(gang(holds("Failed", reason="PodFailurePolicy", message=text)), pods)
    assert (seen.state, seen.cause, seen.reason, seen.message) == ("failed", cause, reason, message)


def test_of_a_gang_rank_0_alone_reports_success() -> None:
    """What another rank left is not read, also where rank 0 left nothing."""
    pods = [pod(state=ended(0, "")), pod(rank=1, state=ended(0, "one"))]
    assert observed_job(gang(holds("Complete")), pods).message is None


def test_a_gang_that_lost_a_node_is_deserted() -> None:
    """The rank on it will not come back and the others wait for it: disrupted, and to be deleted."""
    due = NOW - dt.timedelta(seconds=LOST_SECONDS)
    lost = deleted(pod(rank=1, state=RUNNING, phase="Running"), due.isoformat().replace("+00:00", "Z"))
    pods = [pod(state=RUNNING, phase="Running"), lost]
    before = observed_job(gang(), pods, NOW - dt.timedelta(seconds=1))
    assert (before.state, before.abandoned) == ("running", False)
    seen = observed_job(gang(), pods, NOW)
    assert (seen.state, seen.cause, seen.reason, seen.abandoned) == ("failed", "disrupted", "NodeLost", True)
    assert observed_job(gang(holds("Failed")), pods, NOW).abandoned is False
