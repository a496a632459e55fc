"""Trials of two pods on a real control plane: what the Job controller and the operator make of a lost one."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

from fake_kubelet import Fate, Run
from operator_cluster import Cluster, condition, job
from operator_process import until

GANG = {"nodes": 2}
LONG = Fate(run=60)


def gang(cluster: Cluster, name: str, fates: Callable[[int], Fate]) -> dict[str, Any]:
    """A job of two pods; the fates of its first attempt by rank, the second attempt's pods succeed."""
    here = cluster.namespace
    cluster.kubelet.script = lambda run: (
        fates(run["rank"])
        if (run["namespace"], run["name"], run["attempt"]) == (here, name, 1) and "rank" in run
        else Fate()
    )
    return cluster.create(job(name, runner=GANG))


def runs(cluster: Cluster, name: str) -> list[Run]:
    """The pods of a job's trials, in the order in which they were seen."""
    return [run for run in cluster.kubelet.of(cluster.namespace) if run.request["name"] == name]


def wait_running(cluster: Cluster, name: str) -> list[Run]:
    """Both pods of the first attempt, once they run."""
    until(lambda: [run.phase for run in runs(cluster, name)] == ["Running"] * 2, f"two pods of {name}")
    cluster.wait_for("CompressionJob", name, "Running")
    return sorted(runs(cluster, name), key=lambda run: run.rank)


def services(cluster: Cluster, name: str) -> list[str]:
    """The Services of a job's attempts."""
    return sorted(
        service["metadata"]["name"]
        for service in cluster.list("api/v1/services")
        if service["metadata"]["name"].startswith(f"{name}-")
    )


def policies(cluster: Cluster, name: str) -> list[str]:
    """The NetworkPolicies of a job's attempts."""
    found = cluster.list("apis/networking.k8s.io/v1/networkpolicies")
    return sorted(one["metadata"]["name"] for one in found if one["metadata"]["name"].startswith(f"{name}-"))


def check_second_attempt(cluster: Cluster, name: str, outcome: str, reason: str) -> dict[str, Any]:
    """The second attempt had two pods again and its rank 0's result is the job's; the status of the job."""
    done = cluster.wait_for("CompressionJob", name, "Succeeded", "Failed")
    status: dict[str, Any] = done["status"]
    assert status["phase"] == "Succeeded"
    assert [(one["outcome"], one["reason"]) for one in status["attempts"]] == [
        (outcome, reason),
        ("Succeeded", "Succeeded"),
    ]
    assert condition(done, "Complete")["status"] == "True"
    assert status["metrics"]["compressed"]["macs"] == 500
    again = [run for run in runs(cluster, name) if run.job == f"{name}-2"]
    assert sorted(run.rank for run in again) == [0, 1]
    assert {run.phase for run in again} == {"Succeeded"}
    return status


def test_an_evicted_rank_starts_the_gang_again(shared: Cluster) -> None:
    """The Job fails for the disruption, the other pod is told to end; the next attempt has both, free of charge."""
    evicted = Fate(run=0.5, exit_code=137, message="", disrupted="EvictionByEvictionAPI")
    gang(shared, "evicted", lambda rank: evicted if rank == 1 else LONG)
    status = check_second_attempt(shared, "evicted", "Disrupted", "RunnerDisrupted")
    assert (status["failures"], status["disruptions"]) == (0, 1)
    assert {run.rank: run.phase for run in runs(shared, "evicted") if run.job == "evicted-1"} == {
        0: "Terminated",
        1: "Failed",
    }
    assert services(shared, "evicted") == ["evicted-1", "evicted-2"]


def test_a_deleted_rank_starts_the_gang_again(shared: Cluster) -> None:
    """A deleted pod ends with 143, which fails the Job: no new pod joins ranks that wait for the old one."""
    gang(shared, "deleted", lambda rank: LONG)
    first, second = wait_running(shared, "deleted")
    shared.plane.request("DELETE", f"/api/v1/namespaces/{shared.namespace}/pods/{second.pod}")
    status = check_second_attempt(shared, "deleted", "Disrupted", "RunnerTerminated")
    assert (status["failures"], status["disruptions"]) == (0, 1)
    assert len(runs(shared, "deleted")) == 4
    assert (first.phase, second.phase) == ("Terminated", "Terminated")


def test_a_failed_rank_tells_why(shared: Cluster) -> None:
    """Rank 1's own words count, not those of rank 0, which was ended because of it; the attempt counts as failed."""
    said = json.dumps({"v": 1, "phase": "Failed", "reason": "RunnerFailed", "message": "process 1 of 2: no data"})
    gang(shared, "failed", lambda rank: Fate(run=0.5, exit_code=1, message=said) if rank == 1 else LONG)
    status = check_second_attempt(shared, "failed", "Failed", "RunnerFailed")
    assert status["attempts"][0]["message"] == "process 1 of 2: no data."
    assert (status["failures"], status["disruptions"]) == (1, 0)


def test_a_suspended_gang_leaves_nothing(shared: Cluster) -> None:
    """Both pods end by SIGTERM, Job, Service and NetworkPolicy go; resumed, the next attempt has its own."""
    gang(shared, "paused", lambda rank: LONG)
    pods = wait_running(shared, "paused")
    assert services(shared, "paused") == policies(shared, "paused") == ["paused-1"]
    shared.patch("CompressionJob", "paused", {"spec": {"suspend": True}})
    shared.wait_for("CompressionJob", "paused", "Suspended")
    until(lambda: [run.phase for run in pods] == ["Terminated"] * 2, "both to end by SIGTERM")
    until(lambda: services(shared, "paused") == policies(shared, "paused") == [], "Service and policy to be gone")
    shared.patch("CompressionJob", "paused", {"spec": {"suspend": False}})
    done = shared.wait_for("CompressionJob", "paused", "Succeeded")
    assert [attempt["outcome"] for attempt in done["status"]["attempts"]] == ["Suspended", "Succeeded"]
    assert services(shared, "paused") == policies(shared, "paused") == ["paused-2"]


def test_a_gang_waits_for_its_last_pod(shared: Cluster) -> None:
    """While one pod finds no node the job is Pending, and says so, though the other pod runs already."""
    gate = threading.Event()
    gang(shared, "waiting", lambda rank: Fate(unschedulable=True, gate=gate) if rank == 1 else Fate(gate=gate))
    until(lambda: [run.phase for run in runs(shared, "waiting") if run.rank == 0] == ["Running"], "rank 0 to run")
    shared.wait_condition("CompressionJob", "waiting", "Ready", status="False", reason="Unschedulable")
    assert shared.phase("CompressionJob", "waiting") == "Pending"
    gate.set()
    done = shared.wait_for("CompressionJob", "waiting", "Succeeded")
    assert (done["status"]["started"], done["status"]["disruptions"]) == (1, 0)
