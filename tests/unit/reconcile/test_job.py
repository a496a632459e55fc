"""CompressionJob: its attempts, how each may end, and what is collected of one that said nothing."""

from __future__ import annotations

from typing import Any

import pytest
from job_plans import after, begun, observe, ran, status_of
from reconcile_objects import DIGEST, at, child, conditions, failure, kinds, make_job, not_found, success

from modelpress.api.v1alpha1 import Attempt, CompressionJob
from modelpress.api.v1alpha1 import reasons as r
from modelpress.reconcile import (
    CreateJob,
    EmitEvent,
    ObservedJob,
    OwnerState,
    Plan,
    reconcile_job,
)


def test_first_attempt_is_recorded_and_then_created() -> None:
    """A new job writes its status first and creates Job <name>-1 with a whole request."""
    job = make_job()
    plan = reconcile_job(observe(job), at(0.1234567))
    assert kinds(plan) == ["PatchStatus", "CreateJob"]
    create = plan.actions[1]
    assert isinstance(create, CreateJob)
    assert (create.name, create.purpose, create.attempt) == ("digits-1", "trial", 1)
    assert create.request.root == create.request.prefix == "team/digits-11111111"
    assert create.request.uid == job.metadata.uid
    assert create.request.trial is None
    status = status_of(plan)
    assert (status.phase, status.started, status.observed_generation) == ("Pending", 1, 1)
    assert status.attempts == [Attempt(number=1, outcome="Running", create_time=at(0.123))]
    assert plan.actions[2] == EmitEvent("Normal", r.PENDING, "Attempt 1 waits for its runner to start.")
    assert conditions(status.conditions) == {
        "Ready": ("False", r.PENDING),
        "Reconciling": ("True", r.PENDING),
        "Stalled": ("False", r.PENDING),
        "Suspended": ("False", r.PENDING),
        "Complete": ("False", r.PENDING),
        "Failed": ("False", r.PENDING),
    }


def test_a_job_without_a_store_gets_the_local_one() -> None:
    """The request always names a store."""
    job = make_job()
    job = job.model_copy(update={"spec": job.spec.model_copy(update={"store": None})})
    create = reconcile_job(observe(job), at(0)).actions[1]
    assert isinstance(create, CreateJob)
    assert create.request.spec.store is not None
    assert create.request.spec.store.uri == "./modelpress-runs"


def test_trial_writes_below_its_sweep() -> None:
    """A trial of a sweep has the sweep's root and its own folder and parameters."""
    job = make_job("search-00007")
    owner = {
        "apiVersion": "modelpress.dev/v1alpha1",
        "kind": "CompressionSweep",
        "name": "search",
        "uid": "abcd-efgh-1",
    }
    meta = type(job.metadata).model_validate(
        {
            **job.metadata.to_dict(),
            "labels": {"modelpress.dev/trial": "7", "modelpress.dev/sweep": "search"},
            "annotations": {"modelpress.dev/parameters": '{"sparsity": 0.25}'},
            "ownerReferences": [{**owner, "controller": True}],
        }
    )
    job = job.model_copy(update={"metadata": meta})
    create = reconcile_job(observe(job, owner=OwnerState("abcd-efgh-1", "search", False)), at(0)).actions[1]
    assert isinstance(create, CreateJob)
    assert create.request.root == "team/search-abcdefgh"
    assert create.request.prefix == "team/search-abcdefgh/trials/00007"
    assert create.request.trial is not None
    assert (create.request.trial.number, create.request.trial.parameters) == (7, {"sparsity": 0.25})


def test_creation_in_flight_is_awaited_and_then_made_again_under_the_same_name() -> None:
    """A Job not seen for ten seconds is created again as the same attempt, behind a fence; not sooner."""
    job = begun()
    assert reconcile_job(observe(job), at(4)) == Plan(requeue_after=6.0)
    plan = reconcile_job(observe(job), at(10))
    assert kinds(plan) == ["PatchStatus", "CreateJob"]
    assert status_of(plan).started == 1
    assert isinstance(plan.actions[1], CreateJob)
    assert plan.actions[1].name == "digits-1"


def test_pending_child_changes_nothing() -> None:
    """A queued Job is what the status says already."""
    job = begun()
    assert reconcile_job(observe(job, child(state="pending")), at(3)).actions == ()


@pytest.mark.parametrize(
    ("said", "detail", "reason", "message"),
    [
        ("ImagePullBackOff", None, r.IMAGE_UNAVAILABLE, "(ImagePullBackOff)."),
        ("InvalidImageName", 'no "a b"', r.IMAGE_UNAVAILABLE, '(InvalidImageName): no "a b".'),
        (
            "CreateContainerConfigError",
            "secret not found.",
            r.POD_NOT_STARTED,
            "(CreateContainerConfigError): secret not found.",
        ),
        ("Unschedulable", "0/3 nodes are available", r.UNSCHEDULABLE, "(Unschedulable): 0/3 nodes are available."),
        ("FailedCreate", "exceeded quota", r.PODS_REFUSED, "(FailedCreate): exceeded quota."),
        ("Queued", "It waits.", r.QUEUED, "(Queued): It waits."),
    ],
)
def test_pending_child_with_a_reason_is_told(said: str, detail: str | None, reason: str, message: str) -> None:
    """What keeps a runner from starting is a reason of ours and the cluster's words; it goes when the runner starts."""
    job = begun()
    plan = reconcile_job(observe(job, child(state="pending", reason=said, detail=detail)), at(3))
    status = status_of(plan)
    assert status.conditions[0].message == f"Attempt 1 waits for its runner to start {message}"
    assert {name: conditions(status.conditions)[name] for name in ("Ready", "Reconciling", "Stalled")} == {
        "Ready": ("False", reason),
        "Reconciling": ("True", reason),
        "Stalled": ("False", reason),
    }
    event = plan.actions[1]
    assert isinstance(event, EmitEvent)
    assert (event.type, event.reason) == ("Normal" if reason == r.QUEUED else "Warning", reason)
    again = reconcile_job(observe(after(job, plan), child()), at(4))
    assert conditions(status_of(again).conditions)["Ready"] == ("True", r.RUNNING)


NOT_HELPFUL = (
    "no new claims to deallocate, preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling."
)


@pytest.mark.parametrize(
    ("said", "never"),
    [
        (f"0/3 nodes are available: 3 Insufficient memory. {NOT_HELPFUL}", True),
        (f"0/3 nodes are available: 1 Insufficient cpu, 3 Insufficient nvidia.com/gpu. {NOT_HELPFUL}", True),
        (
            f"0/3 nodes are available: 2 Insufficient memory, 1 node(s) didn't match Pod's node affinity/selector. "
            f"{NOT_HELPFUL}",
            True,
        ),
        # No node is selected at all; a node is cordoned, or another's pods could make room.
        (f"0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector. {NOT_HELPFUL}", False),
        (f"0/3 nodes are available: 2 Insufficient memory, 1 node(s) were unschedulable. {NOT_HELPFUL}", False),
        (f"0/3 nodes are available: 2 Insufficient memory, 1 node(s) had untolerated taint(s). {NOT_HELPFUL}", False),
        (
            "0/3 nodes are available: 3 Insufficient memory. preemption: 0/3 nodes are available: "
            "1 No preemption victims found for incoming pod, 2 Preemption is not helpful for scheduling.",
            False,
        ),
        (
            "0/3 nodes are available: 3 Insufficient memory. preemption: not eligible due to preemptionPolicy=Never.",
            False,
        ),
        ("0/3 nodes are available: 3 Insufficient memory.", False),
    ],
)
def test_what_no_node_could_hold_is_told(said: str, never: bool) -> None:
    """The scheduler's sentences, as 1.35 writes them: too large for any node is told apart from waiting for room."""
    plan = reconcile_job(observe(begun(), child(state="pending", reason="Unschedulable", detail=said)), at(3))
    ready = status_of(plan).conditions[0]
    assert (ready.type, ready.reason) == ("Ready", r.NO_NODE_FITS if never else r.UNSCHEDULABLE)
    begin = "Attempt 1 asks for more than any node of the cluster has; ask for less, or add a larger node: "
    assert ready.message == (begin if never else "Attempt 1 waits for its runner to start (Unschedulable): ") + said
    assert conditions(status_of(plan).conditions)["Stalled"] == ("False", ready.reason)  # a larger node may come


def test_running_child() -> None:
    """A running runner makes the job Running and Ready."""
    job = ran()
    assert job.status.phase == "Running"
    assert job.status.attempts[0].start_time == at(1)
    found = conditions(job.status.conditions)
    assert found["Ready"] == ("True", r.RUNNING)
    assert found["Reconciling"] == ("False", r.RUNNING)
    assert reconcile_job(observe(job, child()), at(500)) == Plan()


def test_transition_times_change_with_the_status_only() -> None:
    """Ready turned True when the runner ran; Stalled never changed since the beginning."""
    times = {condition.type: condition.last_transition_time for condition in ran().status.conditions}
    assert (times["Ready"], times["Reconciling"], times["Stalled"]) == (at(2), at(2), at(0))


def test_success() -> None:
    """A valid message completes the job: metrics, artifact, digest, conditions."""
    job = ran()
    message = success(constraintsMet=True)
    plan = reconcile_job(observe(job, child(state="succeeded", message=message)), at(11))
    status = status_of(plan)
    assert kinds(plan) == ["PatchStatus"]
    assert (status.phase, status.completion_time, status.active_seconds) == ("Succeeded", at(11), 9.0)
    assert status.metrics is not None
    assert (status.metrics.baseline, status.metrics.compressed) == ({"default": 0.9}, {"default": 0.8})
    assert status.artifact is not None
    assert status.artifact.uri == "s3://models/out/team/digits-11111111"
    assert (status.artifact.manifest_digest, status.code_digest) == (DIGEST, "c0de")
    assert (status.attempts[0].outcome, status.attempts[0].finish_time) == ("Succeeded", at(10))
    assert conditions(status.conditions) == {
        "Ready": ("True", r.SUCCEEDED),
        "Reconciling": ("False", r.SUCCEEDED),
        "Stalled": ("False", r.SUCCEEDED),
        "Suspended": ("False", r.SUCCEEDED),
        "Complete": ("True", r.SUCCEEDED),
        "Failed": ("False", r.SUCCEEDED),
        "ArtifactAvailable": ("True", r.COMMITTED),
        "ConstraintsMet": ("True", r.CONSTRAINTS_SATISFIED),
        "Compressed": ("True", r.SMALLER_OR_FASTER),
        "Portable": ("True", r.EXPORTED),
    }
    done = after(job, plan)
    assert reconcile_job(observe(done, child(state="succeeded", message=message)), at(12)) == Plan()


def test_success_with_everything_missed() -> None:
    """A missed constraint, nothing smaller and no program are conditions, not failures."""
    message = success(
        constraintsMet=False, unmet=["default fell by 0.1."], smaller=False, portable=False, portableReason="a loop"
    )
    status = status_of(reconcile_job(observe(ran(), child(state="succeeded", message=message)), at(11)))
    assert status.phase == "Succeeded"
    found = {c.type: (c.status, c.reason, c.message) for c in status.conditions}
    assert found["ConstraintsMet"] == ("False", r.CONSTRAINT_MISSED, "default fell by 0.1.")
    assert found["Compressed"][:2] == ("False", r.NOTHING_SMALLER)
    assert found["Portable"] == ("False", r.EXPORT_FAILED, "a loop")


@pytest.mark.parametrize("missed", [[], ["default fell by 0.1."]])
def test_an_uncertain_constraint_is_neither_met_nor_missed(missed: list[str]) -> None:
    """Unknown, with the numbers; unless another one is missed for certain."""
    said = "latencyMs lies between 0.8 and 1.2."
    message = success(constraintsMet=False, unmet=missed, uncertain=[said])
    status = status_of(reconcile_job(observe(ran(), child(state="succeeded", message=message)), at(11)))
    assert status.phase == "Succeeded"
    found = {c.type: (c.status, c.reason, c.message) for c in status.conditions}["ConstraintsMet"]
    assert found == (("False", r.CONSTRAINT_MISSED, missed[0]) if missed else ("Unknown", r.LATENCY_UNCERTAIN, said))


def test_success_counts_though_the_job_failed() -> None:
    """A runner that committed and was evicted while it ended has succeeded."""
    evicted = child(state="failed", cause="disrupted", message=success())
    assert status_of(reconcile_job(observe(ran(), evicted), at(11))).phase == "Succeeded"


@pytest.mark.parametrize(
    ("fields", "counter", "reason", "outcome"),
    [
        ({"cause": "error", "message": failure()}, "failures", r.RUNNER_FAILED, "Failed"),
        ({"cause": "error", "message": failure("StoreDown")}, "failures", "StoreDown", "Failed"),
        ({"cause": "error", "message": failure("not a reason")}, "failures", r.RUNNER_FAILED, "Failed"),
        ({"cause": "oom"}, "failures", r.RUNNER_OOM_KILLED, "Failed"),
        ({"cause": "terminated"}, "disruptions", r.RUNNER_TERMINATED, "Disrupted"),
    ],
)
def test_certain_ends_start_the_next_attempt(fields: dict[str, Any], counter: str, reason: str, outcome: str) -> None:
    """An end that says all is counted where it belongs, and attempt 2 is created in the same plan."""
    plan = reconcile_job(observe(ran(), child(state="failed", **fields)), at(11))
    status = status_of(plan)
    assert kinds(plan) == ["PatchStatus", "CreateJob"]
    assert isinstance(plan.actions[1], CreateJob)
    assert (plan.actions[1].name, plan.actions[1].attempt) == ("digits-2", 2)
    counts = {"failures": status.failures, "disruptions": status.disruptions}
    assert counts == {"failures": 0, "disruptions": 0, counter: 1}
    assert (status.attempts[0].outcome, status.attempts[0].reason) == (outcome, reason)
    assert (status.started, status.phase) == (2, "Pending")
    assert conditions(status.conditions)["Ready"] == ("False", r.RETRYING)
    assert [event.type for event in plan.actions if isinstance(event, EmitEvent)] == ["Warning"]


@pytest.mark.parametrize(
    ("most", "memory"), [("8Gi", "8Gi"), ("16Gi", "8Gi"), ("6000Mi", "6000Mi"), ("4Gi", None), (None, None)]
)
def test_out_of_memory_is_answered_with_more_once(most: str | None, memory: str | None) -> None:
    """Twice the limit, at most runner.maxMemory; it is no failure and is told; a second time it is one."""
    resources = {"limits": {"memory": "4Gi", "cpu": "2"}, "requests": {"memory": "1Gi"}}
    runner = {"resources": resources, **({"maxMemory": most} if most else {})}
    job = ran(runner=runner, backoffLimit=1)
    killed = child(state="failed", cause="oom")
    plan = reconcile_job(observe(job, killed), at(11))
    status, create = status_of(plan), plan.actions[1]
    assert isinstance(create, CreateJob)
    assert create.request.spec.runner is not None
    assert create.request.spec.runner.resources is not None
    asked = create.request.spec.runner.resources.to_dict()
    if memory is None:
        assert (status.memory, status.failures, asked) == (None, 1, resources)
        return
    assert (status.memory, status.failures) == (memory, 0)
    assert asked == {"limits": {"memory": memory, "cpu": "2"}, "requests": {"memory": memory}}
    assert f"It gets {memory} of memory in place of 4Gi." in status.conditions[0].message
    again = child("digits-2", "failed", attempt=2, cause="oom", started_at=at(12), finished_at=at(20))
    plan = reconcile_job(observe(after(job, plan), killed, again), at(21))
    status, create = status_of(plan), plan.actions[1]
    assert isinstance(create, CreateJob)
    assert create.request.spec.runner is not None
    assert create.request.spec.runner.resources is not None
    assert (status.memory, status.failures) == (memory, 1)
    assert create.request.spec.runner.resources.to_dict() == asked


def test_a_runner_that_never_ran_is_not_collected() -> None:
    """An attempt evicted before its runner started cannot have a manifest."""
    evicted = child(state="failed", cause="disrupted", started_at=None)
    plan = reconcile_job(observe(begun(), evicted), at(11))
    assert status_of(plan).disruptions == 1
    assert isinstance(plan.actions[1], CreateJob)
    assert plan.actions[1].name == "digits-2"


@pytest.mark.parametrize("message", [failure("InvalidModel", "fc9: no such layer"), None])
def test_invalid_is_never_tried_again(message: str | None) -> None:
    """Exit code 2 fails the job at once, with the runner's words where it left some."""
    plan = reconcile_job(observe(ran(), child(state="failed", cause="invalid", message=message)), at(11))
    status = status_of(plan)
    assert kinds(plan) == ["PatchStatus"]
    found = conditions(status.conditions)
    assert status.phase == "Failed"
    assert found["Failed"] == found["Stalled"] == ("True", r.INVALID_MODEL)
    assert found["ArtifactAvailable"] == ("False", r.INVALID_MODEL)
    assert status.conditions[0].message == ("fc9: no such layer." if message else "The runner ended with exit code 2.")
    assert (status.failures, status.disruptions) == (0, 0)


def test_invalid_is_known_by_its_message_too() -> None:
    """A launcher that turns exit code 2 into 1 does not make an invalid spec worth a retry."""
    failed = child(state="failed", cause="error", message=failure("InvalidSpec", "opNames: nothing like it"))
    status = status_of(reconcile_job(observe(ran(), failed), at(11)))
    assert conditions(status.conditions)["Failed"] == ("True", r.INVALID_SPEC)


def test_backoff_limit() -> None:
    """One failure more than backoffLimit fails the job."""
    failed = child(state="failed", cause="error", message=failure())
    status = status_of(reconcile_job(observe(ran(backoffLimit=0), failed), at(11)))
    assert status.phase == "Failed"
    found = conditions(status.conditions)
    assert found["Failed"] == found["Stalled"] == ("True", r.BACKOFF_LIMIT_EXCEEDED)
    assert "spec.backoffLimit is 0" in status.conditions[0].message
    assert "ValueError: no." in status.conditions[0].message


def test_too_many_disruptions() -> None:
    """Disruptions are free only up to maxDisruptions."""
    ended = child(state="failed", cause="terminated")
    status = status_of(reconcile_job(observe(ran(maxDisruptions=0), ended), at(11)))
    assert conditions(status.conditions)["Failed"] == ("True", r.TOO_MANY_DISRUPTIONS)


# Collecting ----------------------------------------------------------------------------------------------------------


def lost_message(**fields: Any) -> ObservedJob:
    """A runner that ended with exit code 0 and was not heard."""
    return child(**{"state": "succeeded", **fields})


def collecting(ended: ObservedJob, **spec: Any) -> CompressionJob:
    """A job that created its collect Job at second 15."""
    job = ran(**spec)
    plan = reconcile_job(observe(job, ended), at(15))
    assert [action.name for action in plan.actions if isinstance(action, CreateJob)] == ["digits-1-collect"]
    return after(job, plan)


def test_a_late_message_is_awaited_for_five_seconds() -> None:
    """Nothing is written while the message may still come."""
    job = ran()
    plan = reconcile_job(observe(job, lost_message()), at(12))
    assert plan == Plan(requeue_after=3.0)
    plan = reconcile_job(observe(job, lost_message()), at(15))
    create = plan.actions[1]
    assert isinstance(create, CreateJob)
    assert (create.name, create.purpose, create.attempt) == ("digits-1-collect", "collect", 1)
    assert create.request.prefix == "team/digits-11111111"
    status = status_of(plan)
    assert (status.phase, status.started) == ("Running", 1)
    assert conditions(status.conditions)["ArtifactAvailable"] == ("Unknown", r.COLLECTING)


@pytest.mark.parametrize(
    "message", ["no JSON", success(manifestDigest="short"), success(manifestDigest=None), not_found()]
)
def test_what_proves_nothing_is_no_message(message: str) -> None:
    """Texts that are no result of a trial are as good as none."""
    plan = reconcile_job(observe(ran(), lost_message(message=message)), at(15))
    assert isinstance(plan.actions[1], CreateJob)
    assert plan.actions[1].purpose == "collect"


@pytest.mark.parametrize("cause", ["error", "disrupted"])
def test_silent_failures_are_collected(cause: Any) -> None:
    """A runner that failed without a word may have committed before."""
    plan = reconcile_job(observe(ran(), child(state="failed", cause=cause)), at(15))
    assert isinstance(plan.actions[1], CreateJob)
    assert plan.actions[1].purpose == "collect"


def collect(state: str = "succeeded", number: int = 1, **fields: Any) -> ObservedJob:
    """The collect Job of attempt 1."""
    name = "digits-1-collect" + ("" if number == 1 else f"-{number}")
    return child(name, state, purpose="collect", **{"finished_at": at(20), "started_at": at(16), **fields})


def test_collect_finds_the_manifest() -> None:
    """What the store holds is the result."""
    job = collecting(lost_message())
    plan = reconcile_job(observe(job, lost_message(), collect(message=success())), at(21))
    assert (status_of(plan).phase, status_of(plan).active_seconds) == ("Succeeded", 9.0)


@pytest.mark.parametrize(
    ("ended", "outcome", "failures", "disruptions"),
    [
        (lost_message(), "Failed", 1, 0),
        (child(state="failed", cause="error"), "Failed", 1, 0),
        (child(state="failed", cause="disrupted"), "Disrupted", 0, 1),
    ],
)
def test_collect_finds_nothing(ended: ObservedJob, outcome: str, failures: int, disruptions: int) -> None:
    """Without a manifest the attempt ended as it looked, and the next one starts."""
    job = collecting(ended)
    plan = reconcile_job(observe(job, ended, collect(message=not_found())), at(21))
    status = status_of(plan)
    assert (status.attempts[0].outcome, status.failures, status.disruptions) == (outcome, failures, disruptions)
    assert [action.name for action in plan.actions if isinstance(action, CreateJob)] == ["digits-2"]
    assert "ArtifactAvailable" not in conditions(status.conditions)


def test_collect_in_flight_running_and_heard_late() -> None:
    """While the collect Job may still speak, nothing happens; unseen for ten seconds it is created again."""
    job = collecting(lost_message())
    assert reconcile_job(observe(job, lost_message()), at(20)) == Plan(requeue_after=5.0)
    assert kinds(reconcile_job(observe(job, lost_message()), at(26))) == ["PatchStatus", "CreateJob"]
    assert reconcile_job(observe(job, lost_message(), collect("running", finished_at=None)), at(26)).actions == ()
    assert reconcile_job(observe(job, lost_message(), collect(message=None)), at(22)).actions == ()


def test_collect_that_fails_is_tried_three_times() -> None:
    """When nobody can look, the next attempt starts: its runner looks itself. It is no failure."""
    job = collecting(lost_message())
    failed = [collect("failed", number, cause="error") for number in (1, 2, 3)]
    plan = reconcile_job(observe(job, lost_message(), *failed[:1]), at(30))
    assert [action.name for action in plan.actions if isinstance(action, CreateJob)] == ["digits-1-collect-2"]
    plan = reconcile_job(observe(job, lost_message(), *failed), at(30))
    assert [action.name for action in plan.actions if isinstance(action, CreateJob)] == ["digits-2"]
    assert (status_of(plan).failures, status_of(plan).disruptions) == (0, 1)


def test_collect_meets_a_foreign_manifest() -> None:
    """Exit code 2 of the collect Job is as final as the trial's own."""
    foreign = collect("failed", cause="invalid", message=failure("InvalidSpec", "another job's manifest"))
    status = status_of(reconcile_job(observe(collecting(lost_message()), lost_message(), foreign), at(30)))
    assert conditions(status.conditions)["Failed"] == ("True", r.INVALID_SPEC)


def test_a_running_child_that_vanished_is_looked_up_in_the_store() -> None:
    """A Job deleted after it ran may have succeeded; if not, it is a disruption."""
    job = ran()
    plan = reconcile_job(observe(job), at(15))
    assert [action.name for action in plan.actions if isinstance(action, CreateJob)] == ["digits-1-collect"]
    job = after(job, plan)
    assert status_of(reconcile_job(observe(job, collect(message=success())), at(21))).phase == "Succeeded"
    status = status_of(reconcile_job(observe(job, collect(message=not_found())), at(21)))
    assert (status.attempts[0].outcome, status.failures, status.disruptions) == ("Lost", 0, 1)
