"""Trials of several nodes: an attempt is all of its ranks, and so is its loss."""

from __future__ import annotations

import json

import pytest
from reconcile_objects import UID, at, child, failure, make_job, make_sweep, not_found

from modelpress.api.v1alpha1 import CompressionJob, CompressionJobStatus
from modelpress.api.v1alpha1.runner import MAX_NODES
from modelpress.reconcile import (
    CreateJob,
    DeleteJob,
    JobObserved,
    ObservedJob,
    PatchStatus,
    Plan,
    naming,
    reconcile_job,
)
from modelpress.reconcile.model import SweepObserved
from modelpress.reconcile.sweep_snapshot import sweep_snapshot

GANG = {"runner": {"nodes": 2, "processesPerNode": 4, "gpus": 4}}


def step(job: CompressionJob, second: float, *children: ObservedJob) -> tuple[CompressionJob, Plan]:
    """One reconciliation: the job as it is stored afterwards, by way of JSON, and the plan."""
    plan = reconcile_job(JobObserved(job, None, children), at(second))
    if not plan.actions:
        return job, plan
    assert isinstance(plan.actions[0], PatchStatus)
    status = CompressionJobStatus.model_validate(json.loads(json.dumps(plan.actions[0].status.to_dict())))
    return job.model_copy(update={"status": status}), plan


def running() -> CompressionJob:
    """A job whose first attempt's gang runs."""
    job, plan = step(make_job(**GANG), 0)
    assert [action.request.spec.runner.processes for action in plan.actions if isinstance(action, CreateJob)] == [8]
    return step(job, 2, child())[0]


@pytest.mark.parametrize(
    ("cause", "message", "outcome", "failures", "disruptions"),
    [
        ("terminated", None, "Disrupted", 0, 1),  # a pod was deleted: its ranks got SIGTERM, the others lost them
        ("disrupted", None, "Disrupted", 0, 1),  # a pod was evicted
        ("error", failure(), "Failed", 1, 0),  # a rank raised
        ("oom", None, "Failed", 1, 0),
    ],
)
def test_a_lost_rank_starts_the_whole_gang_again(
    cause: str, message: str | None, outcome: str, failures: int, disruptions: int
) -> None:
    """One attempt is lost, for what its ranks tell; the next Job has all ranks again."""
    job = running()
    lost = child(state="failed", cause=cause, message=message)
    job, plan = step(job, 20, lost)
    if cause == "disrupted":  # it ran, and might have committed: the store is asked
        job, plan = step(job, 30, lost, child("digits-1-collect", "succeeded", purpose="collect", message=not_found()))
    (create,) = [action for action in plan.actions if isinstance(action, CreateJob)]
    assert create.name == "digits-2"
    assert create.request.spec.runner is not None
    assert create.request.spec.runner.nodes == 2
    assert [attempt.outcome for attempt in job.status.attempts] == [outcome, "Running"]
    assert (job.status.failures, job.status.disruptions) == (failures, disruptions)


def test_what_is_left_of_a_deserted_gang_is_deleted_once() -> None:
    """The ranks that wait for one on a lost node would wait on; the next attempt need not wait for them to be gone."""
    job = running()
    abandoned = child(state="failed", cause="disrupted", reason="NodeLost", abandoned=True)
    job, plan = step(job, 20, abandoned)
    assert DeleteJob("digits-1", "uid-digits-1") in plan.actions
    ending = child(state="failed", cause="disrupted", reason="NodeLost", abandoned=True, deleting=True)
    job, plan = step(job, 30, ending, child("digits-1-collect", "succeeded", purpose="collect", message=not_found()))
    assert [action.name for action in plan.actions if isinstance(action, CreateJob)] == ["digits-2"]
    assert not [action for action in plan.actions if isinstance(action, DeleteJob)]
    assert (job.status.failures, job.status.disruptions) == (0, 1)


def test_a_finished_job_leaves_no_deserted_gang() -> None:
    """What was abandoned in the last attempt of all goes, too."""
    job, _ = step(make_job(**GANG, maxDisruptions=0), 0)
    job, _ = step(job, 2, child())
    abandoned = child(state="failed", cause="disrupted", abandoned=True)
    collect = child("digits-1-collect", "succeeded", purpose="collect", message=not_found())
    job, _ = step(job, 20, abandoned, collect)
    assert job.status.phase == "Failed"
    assert step(job, 30, abandoned, collect)[1].actions[-1] == DeleteJob("digits-1", "uid-digits-1")


def test_gpu_seconds_count_every_node() -> None:
    """GPUs of each pod x pods."""
    assert sweep_snapshot(SweepObserved(make_sweep(template=GANG)), at(0)).gpus == 8
    assert sweep_snapshot(SweepObserved(make_sweep(template={"runner": {"gpus": 4}})), at(0)).gpus == 4


def test_names_leave_room_for_the_last_index() -> None:
    """The longest name of a job, its highest attempt and the last rank make a hostname of at most 63 characters."""
    longest = "a" * 52
    attempts = 1 + 100 + 1000  # backoffLimit and maxDisruptions at their highest
    assert len(f"{naming.attempt_name(longest, attempts)}-{MAX_NODES - 1}") <= 63
    assert make_job(longest).metadata.uid == UID
