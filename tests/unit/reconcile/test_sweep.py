"""CompressionSweep: its dense model is prepared, its trials are created and counted."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from reconcile_objects import UID, HashStrategy, at, conditions, failure, kinds, make_job, make_sweep
from sweep_plans import (
    MISSED,
    after,
    created,
    going,
    job_names,
    plan_of,
    prepare,
    prepared,
    status_of,
    trial,
    without_prepare,
)

from modelpress.api.v1alpha1 import reasons as r
from modelpress.reconcile import (
    CreateJob,
    EmitEvent,
    Plan,
    StopTrial,
)
from modelpress.trials import HISTORY_ANNOTATION, PARAMETERS_ANNOTATION

# Prepare -------------------------------------------------------------------------------------------------------------


def test_prepare_comes_first() -> None:
    """One prepare Job, before any trial."""
    plan = plan_of(make_sweep())
    assert kinds(plan) == ["PatchStatus", "CreateJob"]
    create = plan.actions[1]
    assert isinstance(create, CreateJob)
    assert (create.name, create.purpose, create.attempt) == ("search-prepare", "prepare", 1)
    assert create.request.root == create.request.prefix == "team/search-11111111"
    assert create.request.name == "search"
    status = status_of(plan)
    assert (status.phase, status.prepare_attempts, status.created, status.start_time) == ("Pending", 1, 0, at(0))
    assert conditions(status.conditions)["Ready"] == ("False", r.PREPARING)
    assert status.selector == "modelpress.dev/sweep=search"


def test_prepare_running() -> None:
    """While the dense model is made the sweep runs."""
    plan = plan_of(prepared(), 5, children=(prepare("running"),))
    assert (status_of(plan).phase, kinds(plan)) == ("Running", ["PatchStatus"])
    assert conditions(status_of(plan).conditions)["Ready"] == ("True", r.PREPARING)


def test_prepare_in_flight_and_gone() -> None:
    """Unseen for ten seconds it is made again under its name."""
    assert plan_of(prepared(), 3) == Plan(requeue_after=7.0)
    assert job_names(plan_of(prepared(), 10)) == ["search-prepare"]


def test_prepare_is_skipped_where_the_search_touches_the_model() -> None:
    """Trials start at once when each has its own dense model."""
    plan = plan_of(without_prepare())
    assert kinds(plan) == ["PatchStatus", "CreateTrial", "CreateTrial"]


def test_prepare_gives_the_baseline_and_the_first_trials() -> None:
    """Its message is the sweep's baseline; trials start in the same plan."""
    plan = plan_of(prepared(), 20, children=(prepare(),))
    assert kinds(plan) == ["PatchStatus", "CreateTrial", "CreateTrial"]
    assert status_of(plan).baseline == {"default": 0.95}


@pytest.mark.parametrize(
    ("fields", "failures"), [({"cause": "error", "message": failure()}, 1), ({"cause": "disrupted"}, 0)]
)
def test_prepare_is_retried(fields: dict[str, Any], failures: int) -> None:
    """A failed one is followed by <name>-prepare-2 as long as the template's backoffLimit allows."""
    failed = prepare("failed", **fields)
    plan = plan_of(prepared(template={"backoffLimit": 1}), 20, children=(failed,))
    assert job_names(plan) == ["search-prepare-2"]
    assert status_of(plan).prepare_attempts == 2
    plan = plan_of(prepared(template={"backoffLimit": 0}), 20, children=(failed,))
    assert (status_of(plan).phase == "Failed") == bool(failures)


def test_prepare_failed() -> None:
    """After the last retry the sweep fails and says why."""
    failed = prepare("failed", cause="error", message=failure(message="no such file"))
    status = status_of(plan_of(prepared(template={"backoffLimit": 0}), 20, children=(failed,)))
    found = conditions(status.conditions)
    assert found["Failed"] == found["Stalled"] == ("True", r.PREPARE_FAILED)
    assert found["ArtifactAvailable"] == ("False", r.PREPARE_FAILED)
    assert status.conditions[0].message == "The dense model could not be made: no such file."


def test_prepare_invalid_is_not_retried() -> None:
    """Exit code 2 fails the sweep at once."""
    failed = prepare("failed", cause="invalid", message=failure("InvalidModel", "no module digits"))
    status = status_of(plan_of(prepared(), 20, children=(failed,)))
    assert conditions(status.conditions)["Failed"] == ("True", r.INVALID_MODEL)


def test_prepare_gives_up_after_too_many_disruptions() -> None:
    """Free retries end at maxDisruptions."""
    sweep = prepared(template={"backoffLimit": 0, "maxDisruptions": 1})
    sweep = sweep.model_copy(update={"status": sweep.status.model_copy(update={"prepare_attempts": 2})})
    lost = (prepare("failed", 1, cause="disrupted"), prepare("failed", 2, cause="disrupted"))
    assert status_of(plan_of(sweep, 20, children=lost)).phase == "Failed"


def test_prepare_without_a_message() -> None:
    """Its message is awaited for five seconds; then it is run again, which finds the dense model."""
    silent = prepare(message=None)
    assert plan_of(prepared(), 12, children=(silent,)).requeue_after == 3.0
    assert job_names(plan_of(prepared(), 15, children=(silent,))) == ["search-prepare-2"]


def test_prepare_name_conflict() -> None:
    """A Job of that name with another owner stalls the sweep; one that is going is awaited."""
    foreign = prepare("running", owner_uid="somebody")
    status = status_of(plan := plan_of(make_sweep(), children=(foreign,)))
    assert conditions(status.conditions)["Stalled"] == ("True", r.NAME_CONFLICT)
    assert (kinds(plan), status.prepare_attempts) == (["PatchStatus"], 0)
    met = status_of(plan_of(prepared(), 1, children=(foreign,)))  # what the creation ran into
    assert conditions(met.conditions)["Stalled"] == ("True", r.NAME_CONFLICT)
    plan = plan_of(make_sweep(), children=(replace(foreign, deleting=True),))
    assert conditions(status_of(plan).conditions)["Stalled"][0] == "False"
    assert plan.requeue_after == 10.0


# Trials --------------------------------------------------------------------------------------------------------------


def test_trials_are_counted_before_they_are_created() -> None:
    """The status with `created` precedes the trials, which carry all that replay needs."""
    sweep = prepared()
    strategy = HashStrategy(sweep, adaptive=True)
    plan = plan_of(sweep, 20, children=(prepare(),), strategy=strategy)
    status = status_of(plan)
    assert (status.created, status.confirmed, status.active, status.trials.pending) == (2, 0, 2, 2)
    first, second = created(plan)
    assert [first.metadata.name, second.metadata.name] == ["search-00000", "search-00001"]
    assert first.metadata.labels == {"modelpress.dev/trial": "0", "modelpress.dev/sweep": "search"}
    assert first.metadata.controller_uid() == UID
    assert first.metadata.namespace == "team"
    annotations = [job.metadata.annotations or {} for job in (first, second)]
    assert [a[HISTORY_ANNOTATION] for a in annotations] == ["finished=;running=", "finished=;running=0"]
    assert set(json.loads(annotations[0][PARAMETERS_ANNOTATION])) == {"sparsity"}
    sparsity = json.loads(annotations[1][PARAMETERS_ANNOTATION])["sparsity"]
    stages = second.spec.to_dict()["stages"]
    assert stages[0]["prune"]["configList"][0]["sparsity"] == sparsity
    assert second.status.phase is None


def test_trials_never_inherit_suspension() -> None:
    """A template's suspend is not the trials' own."""
    sweep = without_prepare(template={"suspend": True})
    assert [job.spec.suspend for job in created(plan_of(sweep))] == [False, False]


def test_unseen_trials_hold_the_next_ones_back() -> None:
    """Until the last batch was seen nothing is decided; after ten seconds what is missing is lost, never made again."""
    sweep = going()
    assert plan_of(sweep, 25, trials=(trial(0, "Succeeded"),)).actions != ()
    plan = plan_of(sweep, 25, trials=(trial(0, "Succeeded"),))
    assert (kinds(plan), status_of(plan).trials.lost, status_of(plan).trials.pending) == (["PatchStatus"], 0, 1)
    assert plan.requeue_after == 5.0
    plan = plan_of(sweep, 31, trials=(trial(0, "Succeeded"),))
    assert [job.metadata.name for job in created(plan)] == ["search-00002", "search-00003"]
    assert status_of(plan).trials.lost == 1
    assert (created(plan)[1].metadata.annotations or {})[HISTORY_ANNOTATION] == "finished=0;running=2"


def test_free_places_are_filled() -> None:
    """Parallelism counts what has not finished; suspended and pending trials hold their place."""
    sweep = going(parallelism=2)
    trials = (trial(0, "Suspended"), trial(1, "Failed"))
    plan = plan_of(sweep, 40, trials=trials)
    assert [job.metadata.name for job in created(plan)] == ["search-00002"]
    status = status_of(plan)
    assert (status.trials.suspended, status.trials.failed, status.trials.pending, status.active) == (1, 1, 1, 1)
    assert kinds(plan_of(sweep, 40, trials=(trial(0), trial(1, "Pending")))) == ["PatchStatus"]


def test_foreign_trials_are_not_counted_and_their_names_not_taken() -> None:
    """A CompressionJob of the wanted name with another owner stalls a sweep that has nothing else to do."""
    foreign = make_job("search-00000")
    sweep = without_prepare()
    plan = plan_of(sweep, trials=(foreign,))
    assert kinds(plan) == ["PatchStatus"]
    assert conditions(status_of(plan).conditions)["Stalled"] == ("True", r.NAME_CONFLICT)
    assert status_of(plan).created == 0
    going_away = foreign.model_copy(
        update={"metadata": foreign.metadata.model_copy(update={"deletion_timestamp": at(0)})}
    )
    plan = plan_of(sweep, trials=(going_away,))
    assert conditions(status_of(plan).conditions)["Stalled"][0] == "False"
    assert plan.requeue_after == 10.0


def test_refused_suggestions_are_recorded_and_count_as_failed() -> None:
    """Invalid parameters use up a number, no place, and one failure."""
    sweep = without_prepare(maxTrials=5, maxFailedTrials=2)
    strategy = HashStrategy(sweep, refused=frozenset({0, 2}))
    plan = plan_of(sweep, strategy=strategy)
    assert [job.metadata.name for job in created(plan)] == ["search-00001", "search-00003"]
    status = status_of(plan)
    assert (status.created, status.refused, status.trials.refused, status.trials.lost) == (4, "0,2", 2, 0)
    assert status.refused_message == "Trial 2: stages[0]: no"
    assert EmitEvent("Warning", r.TRIAL_REFUSED, "Trial 2: stages[0]: no") in plan.actions
    again = plan_of(after(sweep, plan), 1, trials=(trial(1), trial(3)), strategy=strategy)
    assert status_of(again).trials.refused == 2
    plan = plan_of(after(sweep, plan), 30, trials=(trial(1, "Failed"), trial(3)), strategy=strategy)
    assert [type(action) for action in plan.actions[1:2]] == [StopTrial]


def test_everything_refused() -> None:
    """A sweep whose parameters are all invalid fails at once and says so."""
    sweep = without_prepare(maxFailedTrials=1)
    status = status_of(plan_of(sweep, strategy=HashStrategy(sweep, refused=frozenset(range(9)))))
    assert (status.phase, status.created) == ("Failed", 2)
    assert conditions(status.conditions)["Failed"] == ("True", r.TOO_MANY_FAILED_TRIALS)
    assert "2 trials failed (2 refused)" in status.conditions[0].message


def test_counts_best_front_digest() -> None:
    """The sweep's status sums its trials up."""
    sweep = going(maxTrials=9, parallelism=5)
    trials = (
        trial(0, "Succeeded", score=0.7, codeDigest="a"),
        trial(1, "Succeeded", score=0.9, codeDigest="a", conditions=MISSED),
        trial(2, "Failed", codeDigest="z"),
        trial(3, "Stopped"),
        trial(4),
    )
    status = status_of(plan_of(sweep, 40, trials=trials))
    counts = status.trials
    assert (counts.succeeded, counts.infeasible, counts.failed, counts.stopped, counts.running) == (2, 1, 1, 1, 1)
    assert status.best is not None
    assert (status.best.number, status.best.metrics, status.front) == (0, {"default": 0.7}, [0])
    assert status.code_digest == "a"
    assert conditions(status.conditions)["CodeChanged"] == ("True", r.CODE_CHANGED)
    status = status_of(plan_of(sweep, 40, trials=trials[:2]))
    assert conditions(status.conditions)["CodeChanged"] == ("False", r.CODE_UNCHANGED)


def test_baseline_of_the_first_trial() -> None:
    """Without a prepare Job the first succeeded trial gives the baseline."""
    sweep = without_prepare()
    sweep = after(sweep, plan_of(sweep))
    status = status_of(plan_of(sweep, 5, trials=(trial(0), trial(1, "Succeeded"))))
    assert status.baseline == {"default": 0.9}


def test_a_created_count_that_was_wiped_is_read_from_the_trials() -> None:
    """No trial is made twice though the status was lost."""
    plan = plan_of(make_sweep(maxTrials=9), trials=(trial(3),))
    assert [job.metadata.name for job in created(plan)] == ["search-00004"]
