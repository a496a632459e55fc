"""CompressionJob: suspended, stopped, out of time, held back, and after its end."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from job_plans import after, begun, observe, ran, status_of
from reconcile_objects import at, child, conditions, kinds, make_job, success

from modelpress.api.v1alpha1 import CompressionJob, Stop
from modelpress.api.v1alpha1 import reasons as r
from modelpress.reconcile import (
    CreateJob,
    DeleteJob,
    OwnerState,
    PatchStatus,
    Plan,
    reconcile_job,
)

# Suspension, stop, deadline ------------------------------------------------------------------------------------------


def suspended(job: CompressionJob, value: bool = True) -> CompressionJob:
    """The job with spec.suspend."""
    meta = job.metadata.model_copy(update={"generation": (job.metadata.generation or 0) + 1})
    return job.model_copy(update={"metadata": meta, "spec": job.spec.model_copy(update={"suspend": value})})


def test_suspended_from_the_start() -> None:
    """Nothing is created."""
    status = status_of(plan := reconcile_job(observe(make_job(suspend=True)), at(0)))
    assert kinds(plan) == ["PatchStatus"]
    assert (status.phase, status.started, status.start_time) == ("Suspended", 0, None)
    assert conditions(status.conditions)["Suspended"] == ("True", r.SUSPENDED_BY_USER)


def test_suspend_and_resume() -> None:
    """The order is written, the Job deleted, nothing counted; resuming starts the next attempt."""
    job = suspended(ran())
    plan = reconcile_job(observe(job, child()), at(20))
    assert plan.actions[1] == DeleteJob("digits-1", "uid-digits-1")
    job = after(job, plan)
    assert (job.status.phase, job.status.attempts[0].outcome, job.status.observed_generation) == (
        "Suspended",
        "Suspended",
        2,
    )
    assert reconcile_job(observe(job, child(deleting=True)), at(21)) == Plan()
    plan = reconcile_job(observe(job), at(30))
    assert kinds(plan) == ["PatchStatus"]
    job = after(job, plan)
    assert (job.status.failures, job.status.disruptions, job.status.active_seconds) == (0, 0, 29.0)
    job = suspended(job, False)
    plan = reconcile_job(observe(job), at(100))
    assert [action.name for action in plan.actions if isinstance(action, CreateJob)] == ["digits-2"]
    status = status_of(plan)
    assert (status.failures, status.disruptions) == (0, 0)
    assert conditions(status.conditions)["Suspended"] == ("False", r.RESUMED)


@pytest.mark.parametrize("deleting", [False, True])
def test_a_runner_that_ended_before_its_job_was_gone_has_run(deleting: bool) -> None:
    """The pod is gone and the Job is not yet: the attempt began, and the next one has the next number."""
    job = suspended(ran())
    job = after(job, reconcile_job(observe(job, child()), at(20)))
    going = child(state="pending", started_at=None, deleting=deleting)
    plan = reconcile_job(observe(job, going), at(21))
    job = after(job, plan) if plan.actions else job
    job = after(job, reconcile_job(observe(job), at(30)))
    assert [(each.number, each.outcome) for each in job.status.attempts] == [(1, "Suspended")]
    assert job.status.active_seconds == 29.0
    plan = reconcile_job(observe(suspended(job, False)), at(40))
    assert [action.name for action in plan.actions if isinstance(action, CreateJob)] == ["digits-2"]


def test_a_job_that_somebody_deletes_has_run() -> None:
    """Its pods end before it is gone: what it did is asked for, and it is not begun as if it had never run."""
    job = ran()
    plan = reconcile_job(observe(job, child(state="pending", started_at=None, deleting=True)), at(21))
    job = after(job, plan) if plan.actions else job
    plan = reconcile_job(observe(job), at(30))
    assert [action.name for action in plan.actions if isinstance(action, CreateJob)] == ["digits-1-collect"]


def test_an_order_to_suspend_stands() -> None:
    """Resumed before the runner ended: its Job goes all the same, then the next attempt starts."""
    job = suspended(ran())
    job = suspended(after(job, reconcile_job(observe(job, child()), at(20))), False)
    plan = reconcile_job(observe(job, child()), at(21))
    assert plan.actions[1] == DeleteJob("digits-1", "uid-digits-1")
    assert conditions(status_of(plan).conditions)["Ready"] == ("False", r.RESUMED)
    plan = reconcile_job(observe(job), at(25))
    assert [action.name for action in plan.actions if isinstance(action, CreateJob)] == ["digits-2"]


def test_an_attempt_that_never_ran_keeps_its_number_over_a_suspension() -> None:
    """One name is one Job: whatever the watch has not told, there can be no second one."""
    job = suspended(begun())
    plan = reconcile_job(observe(job, child(state="pending")), at(2))
    assert kinds(plan) == ["PatchStatus", "DeleteJob"]
    job = after(job, plan)
    assert reconcile_job(observe(job), at(30)).actions == ()
    plan = reconcile_job(observe(suspended(job, False)), at(40))
    assert [action.name for action in plan.actions if isinstance(action, CreateJob)] == ["digits-1"]
    assert status_of(plan).started == 1


@pytest.mark.parametrize("cause", ["terminated", "error", "disrupted", "oom"])
def test_a_runner_that_ends_as_ordered_counts_nowhere(cause: Any) -> None:
    """However a suspended runner ends, it neither failed nor was disrupted."""
    job = suspended(ran())
    job = after(job, reconcile_job(observe(job, child()), at(8)))
    status = status_of(reconcile_job(observe(job, child(state="failed", cause=cause)), at(11)))
    assert (status.phase, status.failures, status.disruptions) == ("Suspended", 0, 0)


def test_a_result_inside_the_grace_period_counts() -> None:
    """A suspended runner that just finished has finished."""
    job = suspended(ran())
    job = after(job, reconcile_job(observe(job, child()), at(8)))
    assert (
        status_of(reconcile_job(observe(job, child(state="succeeded", message=success())), at(11))).phase == "Succeeded"
    )


def test_the_sweep_suspends_its_trials() -> None:
    """The owner's suspension is as good as the job's own, and says whose it is."""
    owner = OwnerState("u", "search", True)
    plan = reconcile_job(observe(ran(), child(), owner=owner), at(20))
    assert kinds(plan) == ["PatchStatus", "DeleteJob"]
    assert "sweep search" in status_of(plan).conditions[3].message


def stopped(job: CompressionJob) -> CompressionJob:
    """The job with a stop from its sweep."""
    stop = Stop(reason="BudgetExhausted", time=at(5))
    return job.model_copy(update={"status": job.status.model_copy(update={"stop": stop})})


def test_stop() -> None:
    """The runner is deleted; when it is gone the trial is Stopped: complete, not failed, without an artifact."""
    job = stopped(ran())
    plan = reconcile_job(observe(job, child()), at(20))
    assert kinds(plan) == ["PatchStatus", "DeleteJob"]
    job = after(job, plan)
    assert (job.status.phase, conditions(job.status.conditions)["Ready"]) == ("Running", ("True", r.STOPPED_BY_SWEEP))
    plan = reconcile_job(observe(job), at(30))
    status = status_of(plan)
    assert (status.phase, status.failures, status.disruptions) == ("Stopped", 0, 0)
    found = conditions(status.conditions)
    assert found["Complete"] == ("True", r.STOPPED_BY_SWEEP)
    assert found["Failed"] == ("False", r.STOPPED_BY_SWEEP)
    assert found["ArtifactAvailable"] == ("False", r.STOPPED_BY_SWEEP)


def test_stop_before_the_start() -> None:
    """A trial that has not started is stopped at once."""
    plan = reconcile_job(observe(stopped(make_job())), at(6))
    assert kinds(plan) == ["PatchStatus"]
    assert status_of(plan).phase == "Stopped"


def test_stop_loses_against_a_result() -> None:
    """A result that was committed is kept."""
    plan = reconcile_job(observe(stopped(ran()), child(state="succeeded", message=success())), at(20))
    assert status_of(plan).phase == "Succeeded"


def test_deadline() -> None:
    """Running time alone counts; when it is used up the runner is deleted and the job fails."""
    job = ran(activeDeadlineSeconds=60)
    assert reconcile_job(observe(job, child()), at(31)) == Plan(requeue_after=30.0)
    plan = reconcile_job(observe(job, child()), at(61))
    assert kinds(plan) == ["PatchStatus", "DeleteJob"]
    job = after(job, plan)
    assert job.status.phase == "Running"
    status = status_of(reconcile_job(observe(job), at(65)))
    assert (status.phase, status.failures, status.active_seconds) == ("Failed", 0, 64.0)
    assert conditions(status.conditions)["Failed"] == ("True", r.DEADLINE_EXCEEDED)


def test_deadline_excludes_pending_and_suspended_time() -> None:
    """Ten seconds run before a suspension of an hour leave fifty."""
    job = suspended(ran(activeDeadlineSeconds=60))
    job = after(job, reconcile_job(observe(job, child()), at(10)))
    job = after(job, reconcile_job(observe(job), at(11)))
    job = suspended(job, False)
    job = after(job, reconcile_job(observe(job), at(3600)))
    second = child("digits-2", attempt=2, started_at=at(4000))
    plan = reconcile_job(observe(job, second), at(4010))
    assert plan.requeue_after == 40.0


def test_a_queue_that_takes_the_runner_away_stops_the_clock() -> None:
    """A Job that is pending again has used the time that it ran; the rest is left to its next start."""
    job = ran(activeDeadlineSeconds=60)
    job = after(job, reconcile_job(observe(job, child(state="pending", started_at=None)), at(21)))
    assert (job.status.phase, job.status.active_seconds) == ("Pending", 20.0)
    plan = reconcile_job(observe(job, child(started_at=at(1000))), at(1001))
    assert plan.requeue_after == 39.0


# Holds ---------------------------------------------------------------------------------------------------------------


def test_problems_stall() -> None:
    """Semantic errors create nothing and are all told."""
    plan = reconcile_job(observe(make_job(), problems=("spec.stages[0]: a; b", "spec.store: c; d")), at(0))
    assert kinds(plan) == ["PatchStatus"]
    found = conditions(status_of(plan).conditions)
    assert found["Stalled"] == ("True", r.INVALID_SPEC)
    assert found["Ready"] == ("False", r.INVALID_SPEC)
    assert status_of(plan).conditions[2].message == "spec.stages[0]: a; b; spec.store: c; d"
    assert status_of(plan).started == 0


def test_problems_found_later_spare_the_running_attempt() -> None:
    """A stricter operator does not kill what runs."""
    assert reconcile_job(observe(ran(), child(), problems=("x",)), at(9)) == Plan()


def test_name_conflict() -> None:
    """A Job of that name with another owner stalls the job until it is gone."""
    foreign = child(owner_uid="somebody")
    plan = reconcile_job(observe(make_job(), foreign), at(0))
    assert kinds(plan) == ["PatchStatus"]
    assert conditions(status_of(plan).conditions)["Stalled"] == ("True", r.NAME_CONFLICT)
    job = after(make_job(), plan)
    assert "CreateJob" in kinds(reconcile_job(observe(job), at(9)))


def test_a_name_conflict_that_the_creation_ran_into_is_told_at_once() -> None:
    """Nobody waits for a Job that cannot have been created; once the name is free the attempt gets it, uncounted."""
    plan = reconcile_job(observe(begun(), child(owner_uid="somebody")), at(1))
    assert conditions(status_of(plan).conditions)["Stalled"] == ("True", r.NAME_CONFLICT)
    plan = reconcile_job(observe(after(begun(), plan)), at(20))
    assert isinstance(plan.actions[1], CreateJob)
    assert (plan.actions[1].name, status_of(plan).started, status_of(plan).failures) == ("digits-1", 1, 0)


def test_a_former_owners_job_that_is_going_is_awaited() -> None:
    """A namesake that is being deleted stalls nothing."""
    plan = reconcile_job(observe(make_job(), child(owner_uid="somebody", deleting=True)), at(0))
    assert kinds(plan) == ["PatchStatus"]
    assert conditions(status_of(plan).conditions)["Stalled"][0] == "False"
    assert plan.requeue_after == 10.0


def test_spec_too_large() -> None:
    """A spec that fits no request stalls the job."""
    job = make_job(model={"entrypoint": "a:b", "args": {"text": "x" * 300_000}})
    plan = reconcile_job(observe(job), at(0))
    assert kinds(plan) == ["PatchStatus"]
    assert conditions(status_of(plan).conditions)["Stalled"] == ("True", r.SPEC_TOO_LARGE)


def test_a_store_uri_that_leaves_no_room_stalls() -> None:
    """An artifact's URI longer than the API allows is refused before anything runs."""
    plan = reconcile_job(observe(make_job(store={"uri": "s3://" + "b" * 2040})), at(0))
    assert conditions(status_of(plan).conditions)["Stalled"] == ("True", r.INVALID_SPEC)


def test_stray_runners_are_deleted_before_the_next_starts() -> None:
    """Two live Jobs of one job cannot stay: the wrong one goes, and the next waits for that."""
    job = ran()
    failed = child(state="failed", cause="oom")
    stray = child("digits-0", attempt=0)
    plan = reconcile_job(observe(job, failed, stray), at(11))
    assert kinds(plan) == ["PatchStatus", "DeleteJob"]
    plan = reconcile_job(observe(after(job, plan), failed), at(20))
    assert [action.name for action in plan.actions if isinstance(action, CreateJob)] == ["digits-2"]


def test_a_status_that_was_wiped_is_read_from_the_children() -> None:
    """The running attempt is taken up, not doubled."""
    plan = reconcile_job(observe(make_job(), child("digits-3", attempt=3)), at(20))
    assert kinds(plan) == ["PatchStatus"]
    assert (status_of(plan).started, status_of(plan).phase) == (3, "Running")


def test_deleted_objects_are_left_alone() -> None:
    """Garbage collection takes the children."""
    job = make_job()
    meta = job.metadata.model_copy(update={"deletion_timestamp": at(1)})
    assert reconcile_job(observe(job.model_copy(update={"metadata": meta}), child()), at(2)) == Plan()


def test_only_the_last_eight_attempts_are_listed() -> None:
    """Status stays small."""
    job = make_job(backoffLimit=20)
    for number in range(1, 12):
        job = after(job, reconcile_job(observe(job, *[]), at(number * 100)))
        ended = child(f"digits-{number}", "failed", attempt=number, cause="oom", finished_at=at(number * 100 + 50))
        job = after(job, reconcile_job(observe(job, ended), at(number * 100 + 60)))
    assert job.status.started == 12
    assert [attempt.number for attempt in job.status.attempts] == [5, 6, 7, 8, 9, 10, 11, 12]


# After the end -------------------------------------------------------------------------------------------------------


def finished(**spec: Any) -> CompressionJob:
    """A job that succeeded at second 11."""
    job = ran(**spec)
    return after(job, reconcile_job(observe(job, child(state="succeeded", message=success())), at(11)))


def test_ttl() -> None:
    """Finished child Jobs go after ttlSecondsAfterFinished, the job itself never."""
    job, done = finished(ttlSecondsAfterFinished=60), child(state="succeeded", message=success())
    assert reconcile_job(observe(job, done), at(31)) == Plan(requeue_after=40.0)
    plan = reconcile_job(observe(job, done), at(71))
    assert plan.actions == (PatchStatus(job.status), DeleteJob("digits-1", "uid-digits-1"))
    assert reconcile_job(observe(job, replace(done, deleting=True)), at(72)) == Plan()
    assert reconcile_job(observe(job), at(80)) == Plan()


def test_ttl_of_zero_deletes_with_the_result() -> None:
    """The result is written first, in the same plan."""
    job = ran(ttlSecondsAfterFinished=0)
    plan = reconcile_job(observe(job, child(state="succeeded", message=success())), at(11))
    assert kinds(plan) == ["PatchStatus", "DeleteJob"]


def test_terminal_phases_are_sticky() -> None:
    """No later sight of a child, no suspension and no stop changes the result; a new generation is noted."""
    job = suspended(finished())
    plan = reconcile_job(observe(job, child(state="failed", cause="oom")), at(50))
    assert kinds(plan) == ["PatchStatus"]
    status = status_of(plan)
    assert (status.phase, status.observed_generation) == ("Succeeded", 2)
    assert {condition.observed_generation for condition in status.conditions} == {2}
    assert reconcile_job(observe(after(job, plan)), at(51)) == Plan()


def test_a_runner_alive_after_the_end_is_deleted() -> None:
    """Nothing of a finished job runs on."""
    plan = reconcile_job(observe(finished(), child("digits-2", attempt=2)), at(50))
    assert kinds(plan) == ["PatchStatus", "DeleteJob"]
