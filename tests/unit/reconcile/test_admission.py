"""Which jobs are a sweep's trials: what it recorded or would have made, whatever others write about themselves."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from reconcile_objects import NOW, UID, HashStrategy, at, child, conditions, make_job, make_sweep, success

from modelpress.api.v1alpha1 import CompressionJob, CompressionJobStatus, CompressionSweep, CompressionSweepStatus
from modelpress.reconcile import (
    AdmitTrial,
    CreateJob,
    CreateTrial,
    JobObserved,
    OwnerState,
    PatchStatus,
    Plan,
    SweepObserved,
    reconcile_job,
    reconcile_sweep,
)
from modelpress.reconcile.requests import store_location
from modelpress.trials import HISTORY_ANNOTATION, PARAMETERS_ANNOTATION, TRIAL_LABEL, number_of, parameters_of

OWNER = {"apiVersion": "modelpress.dev/v1alpha1", "kind": "CompressionSweep", "name": "search", "controller": True}
PREPARED = child("search-prepare", "succeeded", purpose="prepare", message=success(baseline={"default": 0.95}))


def sweep_plan(sweep: CompressionSweep, seconds: float, *trials: CompressionJob, adaptive: bool = False) -> Plan:
    """Reconcile a sweep that is prepared."""
    strategy = HashStrategy(sweep, adaptive=adaptive)
    return reconcile_sweep(SweepObserved(sweep, trials, (PREPARED,)), at(seconds), strategy)


def status_of(plan: Plan) -> CompressionSweepStatus:
    """The status that a plan writes."""
    assert isinstance(plan.actions[0], PatchStatus)
    assert isinstance(plan.actions[0].status, CompressionSweepStatus)
    return plan.actions[0].status


def stored(plan: Plan, *, created: dt.datetime = NOW, record: bool = False) -> list[CompressionJob]:
    """The trials that a plan creates as an API server stores them: with a uid, and without a status."""
    made = []
    for action in plan.actions:
        if isinstance(action, CreateTrial):
            raw = action.job.to_dict()
            raw["metadata"] |= {"uid": f"uid-{raw['metadata']['name']}", "creationTimestamp": created.isoformat()}
            if not record:
                raw["status"] = {}
            made.append(CompressionJob.model_validate(raw))
    return made


def forged(number: int = 0, **more: Any) -> CompressionJob:
    """A job that somebody made to look like a finished trial with the best of scores."""
    job = make_job(f"search-{number:05d}").to_dict()
    job["metadata"] |= {
        "uid": f"forged-{number}",
        "labels": {TRIAL_LABEL: str(number), "modelpress.dev/sweep": "search"},
        "annotations": {PARAMETERS_ANNOTATION: '{"sparsity": 0.5}', HISTORY_ANNOTATION: "finished=;running="},
        "ownerReferences": [OWNER | {"uid": UID}],
    }
    metrics = {"baseline": {"default": 0.9}, "compressed": {"default": 99.0}}
    job["status"] |= {"phase": "Succeeded", "metrics": metrics, **more}
    return CompressionJob.model_validate(job)


def running(*numbers: int) -> CompressionSweep:
    """A sweep that keeps records and has created so many trials."""
    return make_sweep(status={"created": len(numbers), "trialRecords": True, "phase": "Running", "prepareAttempts": 1})


def test_a_sweep_that_begins_keeps_records() -> None:
    """From its first status on; one that began before does not begin now."""
    assert status_of(sweep_plan(make_sweep(), 0)).trial_records
    old = make_sweep(status={"created": 1, "phase": "Running"})
    plan = sweep_plan(old, 100, forged())
    assert not status_of(plan).trial_records
    assert status_of(plan).best is not None, "what an older version ran still counts"


@pytest.mark.parametrize("number", [0, 1, 2, 5, 999])
def test_a_forged_trial_never_enters_a_search(number: int) -> None:
    """Whatever its number: it is no best one, counts as nothing, and no history names it."""
    for sweep in (make_sweep(), running(), running(0, 1)):
        plan = sweep_plan(sweep, 100, forged(number))
        status = status_of(plan)
        assert (status.best, status.front, status.trials.succeeded) == (None, [], 0)
        assert status.created <= 4
        for job in stored(plan, record=True):
            assert (job.metadata.annotations or {})[HISTORY_ANNOTATION].startswith("finished=;")
        assert not [action for action in plan.actions if isinstance(action, AdmitTrial)]


def test_a_name_that_was_taken_before_is_a_conflict() -> None:
    """The sweep says so, and makes no trial in its place."""
    plan = sweep_plan(running(), 100, forged(0))
    assert conditions(status_of(plan).conditions)["Stalled"] == ("True", "NameConflict")
    assert stored(plan) == []


@pytest.mark.parametrize("adaptive", [False, True])
def test_what_a_killed_process_left_is_taken_up(adaptive: bool) -> None:
    """Trials without a status are recognised by what they are, in the order of their histories, and recorded."""
    first = sweep_plan(running(), 100, adaptive=adaptive)
    left = stored(first)
    assert [job.metadata.name for job in left] == ["search-00000", "search-00001"]
    plan = sweep_plan(running(), 101, *left, adaptive=adaptive)
    admitted = [action for action in plan.actions if isinstance(action, AdmitTrial)]
    assert [(one.name, one.uid, one.record.number) for one in admitted] == [
        ("search-00000", "uid-search-00000", 0),
        ("search-00001", "uid-search-00001", 1),
    ]
    assert [dict(one.record.parameters) for one in admitted] == [parameters_of(job) for job in left]
    assert status_of(plan).created == 2
    assert stored(plan) == []


def test_almost_a_trial_is_none() -> None:
    """Another recipe, other parameters, another history than the sweep's own."""
    (job, _) = stored(sweep_plan(running(), 100))
    meta = job.metadata
    notes = dict(meta.annotations or {})
    for changed in (
        job.model_copy(update={"spec": make_job().spec}),
        job.model_copy(update={"spec": job.spec.model_copy(update={"backoff_limit": 0})}),
        *(
            job.model_copy(update={"metadata": meta.model_copy(update={"annotations": notes | more})})
            for more in (
                {PARAMETERS_ANNOTATION: '{"sparsity": 0.5}'},
                {PARAMETERS_ANNOTATION: "9" * 5000},
                {PARAMETERS_ANNOTATION: "[" * 5000},
                {HISTORY_ANNOTATION: "finished=0-99999999999;running="},
                {HISTORY_ANNOTATION: "finished=3;running="},
                {HISTORY_ANNOTATION: "finished=" + "9" * 5000 + ";running="},
            )
        ),
    ):
        plan = sweep_plan(running(), 101, changed)
        assert not [action for action in plan.actions if isinstance(action, AdmitTrial)]
        assert status_of(plan).created == 0


@pytest.mark.parametrize("record", [{"sweep": "another", "number": 0}, {"sweep": UID, "number": 1}])
def test_the_record_of_another_trial_proves_nothing(record: dict[str, Any]) -> None:
    """A real trial of another sweep, or of another number, that was given this owner."""
    status = status_of(sweep_plan(running(0, 1), 100, forged(0, trial={**record, "parameters": {}})))
    assert (status.best, status.trials.succeeded) == (None, 0)


def test_labels_and_annotations_change_nothing() -> None:
    """Of a recorded trial: its number and parameters stay what they were."""
    (job, _) = stored(sweep_plan(running(), 100), record=True)
    for notes in ({PARAMETERS_ANNOTATION: "9" * 5000}, {PARAMETERS_ANNOTATION: "[" * 5000}, {}):
        meta = job.metadata.model_copy(update={"annotations": notes, "labels": {TRIAL_LABEL: "7"}})
        edited = job.model_copy(update={"metadata": meta})
        assert (number_of(edited), parameters_of(edited)) == (0, parameters_of(job))
        assert store_location(edited) == store_location(job)
        assert status_of(sweep_plan(running(0), 101, edited)).trials.pending == 2


def observed(job: CompressionJob, *, records: bool = True) -> JobObserved:
    """A job that its owner reference gives to the sweep."""
    return JobObserved(job, OwnerState(UID, "search", False, (), records))


def test_a_forged_trial_does_not_run() -> None:
    """It waits for a while in which the sweep may take it up, and then says what it is; no runner is started."""
    raw = forged().to_dict()
    raw["metadata"]["creationTimestamp"] = NOW.isoformat()
    job = CompressionJob.model_validate(raw | {"status": {}})
    early, late = reconcile_job(observed(job), at(1)), reconcile_job(observed(job), at(60))
    for plan, stalled in ((early, ("False", "Pending")), (late, ("True", "ForgedTrial"))):
        assert isinstance(plan.actions[0], PatchStatus)
        assert isinstance(plan.actions[0].status, CompressionJobStatus)
        assert conditions(plan.actions[0].status.conditions)["Stalled"] == stalled
        assert not [action for action in plan.actions if isinstance(action, CreateJob)]
    foreign = CompressionJob.model_validate(raw | {"status": {"trial": {"sweep": "x", "number": 0, "parameters": {}}}})
    assert not [one for one in reconcile_job(observed(foreign), at(60)).actions if isinstance(one, CreateJob)]


def test_a_trial_runs() -> None:
    """With its record; and without one where its sweep began under an older version."""
    (job, _) = stored(sweep_plan(running(), 100), record=True)
    plan = reconcile_job(observed(job), at(60))
    (create,) = [action for action in plan.actions if isinstance(action, CreateJob)]
    assert create.request.prefix == "team/search-11111111/trials/00000"
    assert create.request.trial is not None
    assert dict(create.request.trial.parameters) == parameters_of(job)
    old = job.model_copy(update={"status": CompressionJobStatus()})
    plan = reconcile_job(observed(old, records=False), at(60))
    assert [action.name for action in plan.actions if isinstance(action, CreateJob)] == ["search-00000-1"]
