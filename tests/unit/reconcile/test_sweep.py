"""CompressionSweep: every reason and transition."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from reconcile_objects import DIGEST, UID, HashStrategy, at, child, conditions, failure, make_job, make_sweep, success
from simulator import Cluster

from modelpress.api.v1alpha1 import CompressionJob, CompressionSweep, CompressionSweepStatus
from modelpress.api.v1alpha1 import reasons as r
from modelpress.reconcile import (
    CreateJob,
    CreateTrial,
    DeleteJob,
    EmitEvent,
    ObservedJob,
    PatchStatus,
    Plan,
    StopTrial,
    SweepObserved,
    reconcile_sweep,
)
from modelpress.trials import HISTORY_ANNOTATION, PARAMETERS_ANNOTATION

MISSED = [{"type": "ConstraintsMet", "status": "False", "reason": "X", "lastTransitionTime": "2026-03-01T12:00:00Z"}]


def plan_of(
    sweep: CompressionSweep,
    seconds: float = 0,
    *,
    trials: tuple[CompressionJob, ...] = (),
    children: tuple[ObservedJob, ...] = (),
    strategy: HashStrategy | None = None,
    problems: tuple[str, ...] = (),
) -> Plan:
    """Reconcile a snapshot."""
    return reconcile_sweep(
        SweepObserved(sweep, trials, children, problems), at(seconds), strategy or HashStrategy(sweep)
    )


def status_of(plan: Plan) -> CompressionSweepStatus:
    """The status that a plan writes; it is always the first action."""
    assert isinstance(plan.actions[0], PatchStatus)
    status = plan.actions[0].status
    assert isinstance(status, CompressionSweepStatus)
    return status


def after(sweep: CompressionSweep, plan: Plan) -> CompressionSweep:
    """The sweep once the plan's status is stored, by way of JSON."""
    status = CompressionSweepStatus.model_validate(json.loads(json.dumps(status_of(plan).to_dict())))
    return sweep.model_copy(update={"status": status})


def kinds(plan: Plan) -> list[str]:
    """What a plan does, events aside."""
    return [type(action).__name__ for action in plan.actions if not isinstance(action, EmitEvent)]


def created(plan: Plan) -> list[CompressionJob]:
    """The trials that a plan creates."""
    return [action.job for action in plan.actions if isinstance(action, CreateTrial)]


def job_names(plan: Plan) -> list[str]:
    """The Jobs that a plan creates."""
    return [action.name for action in plan.actions if isinstance(action, CreateJob)]


def trial(number: int, phase: str = "Running", *, name: str = "search", **status: Any) -> CompressionJob:
    """A trial as the API server stores it."""
    job = make_job(f"{name}-{number:05d}")
    meta = {
        **job.metadata.to_dict(),
        "uid": f"trial-{number}",
        "labels": {"modelpress.dev/trial": str(number), "modelpress.dev/sweep": name},
        "annotations": {PARAMETERS_ANNOTATION: '{"sparsity": 0.5}', HISTORY_ANNOTATION: "finished=;running="},
        "ownerReferences": [
            {"apiVersion": "modelpress.dev/v1alpha1", "kind": "CompressionSweep", "name": name, "uid": UID}
            | {"controller": True}
        ],
    }
    record = {"trial": {"sweep": UID, "number": number, "parameters": {"sparsity": 0.5}}}
    if phase == "Succeeded":
        score = status.pop("score", 0.5)
        status.setdefault("metrics", {"baseline": {"default": 0.9}, "compressed": {"default": score}})
    return CompressionJob.model_validate(
        {**job.to_dict(), "metadata": meta, "status": {**job.status.to_dict(), "phase": phase, **record, **status}}
    )


def prepared(**spec: Any) -> CompressionSweep:
    """A sweep whose prepare Job was created at second 0."""
    sweep = make_sweep(**spec)
    return after(sweep, plan_of(sweep))


def prepare(state: str = "succeeded", number: int = 1, **fields: Any) -> ObservedJob:
    """The prepare Job."""
    name = "search-prepare" + ("" if number == 1 else f"-{number}")
    given = {"message": success(baseline={"default": 0.95})} if state == "succeeded" else {}
    return child(name, state, purpose="prepare", attempt=number, **{**given, **fields})


def publish(state: str = "succeeded", number: int = 1, **fields: Any) -> ObservedJob:
    """The publish Job."""
    name = "search-publish" + ("" if number == 1 else f"-{number}")
    given = {"message": success()} if state == "succeeded" else {}
    return child(name, state, purpose="publish", attempt=number, **{"finished_at": at(200), **given, **fields})


def going(seconds: float = 20, **spec: Any) -> CompressionSweep:
    """A sweep whose first two trials were decided on at that time."""
    sweep = prepared(**spec)
    return after(sweep, plan_of(sweep, seconds, children=(prepare(),)))


def without_prepare(**spec: Any) -> CompressionSweep:
    """A sweep that searches below /model, so that nothing is shared."""
    space = [{"name": "width", "paths": ["/model/args/width"], "int": {"min": 1, "max": 9}}]
    return make_sweep(searchSpace=space, **spec)


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


# Ends ----------------------------------------------------------------------------------------------------------------


def over(seconds: float = 100, scores: tuple[float, ...] = (0.6, 0.8), **spec: Any) -> tuple[Any, ...]:
    """A sweep of two trials that both succeeded, with its publish Job created."""
    sweep = going(maxTrials=2, **spec)
    trials = tuple(trial(number, "Succeeded", score=score) for number, score in enumerate(scores))
    plan = plan_of(sweep, seconds, trials=trials)
    return after(sweep, plan), trials, plan


def test_publish_after_the_last_trial() -> None:
    """The publish Job gets the best, the front and the objectives; the sweep is not complete yet."""
    sweep, _, plan = over()
    create = plan.actions[1]
    assert isinstance(create, CreateJob)
    assert (create.name, create.purpose) == ("search-publish", "publish")
    assert create.request.publish is not None
    assert (create.request.publish.best, create.request.publish.front) == (1, [1])
    assert [objective.metric for objective in create.request.publish.objectives] == ["default"]
    assert (sweep.status.phase, sweep.status.publish_attempts) == ("Running", 1)
    assert conditions(sweep.status.conditions)["Complete"] == ("False", r.PUBLISHING)


def test_complete_after_publish() -> None:
    """Then the sweep is complete, with the best model's URI."""
    sweep, trials, _ = over()
    plan = plan_of(sweep, 201, trials=trials, children=(prepare(), publish()))
    status = status_of(plan)
    assert kinds(plan) == ["PatchStatus"]
    assert (status.phase, status.completion_time) == ("Succeeded", at(201))
    found = conditions(status.conditions)
    assert found["Complete"] == found["Ready"] == ("True", r.TRIALS_FINISHED)
    assert found["ArtifactAvailable"] == ("True", r.PUBLISHED)
    assert found["ConstraintsMet"] == ("True", r.NO_CONSTRAINTS)
    assert status.artifact is not None
    assert (status.artifact.uri, status.artifact.manifest_digest) == (
        "s3://models/out/team/search-11111111/best",
        DIGEST,
    )
    assert plan_of(after(sweep, plan), 300, trials=trials, children=(prepare(), publish())) == Plan()


def test_failed_publish_is_still_complete() -> None:
    """A publish Job that fails for good costs the artifact, not the result."""
    sweep, trials, _ = over(template={"backoffLimit": 0})
    failed = publish("failed", cause="error", message=failure(message="bucket is gone"))
    status = status_of(plan_of(sweep, 201, trials=trials, children=(failed,)))
    found = conditions(status.conditions)
    assert found["Complete"] == ("True", r.TRIALS_FINISHED)
    assert found["ArtifactAvailable"] == ("False", r.PUBLISH_FAILED)
    assert status.artifact is None


def test_publish_is_retried() -> None:
    """A failed publish Job is followed by the next one."""
    sweep, trials, _ = over()
    failed = publish("failed", cause="error", message=failure())
    plan = plan_of(sweep, 201, trials=trials, children=(failed,))
    assert job_names(plan) == ["search-publish-2"]
    assert status_of(plan).publish_attempts == 2


def test_no_feasible_trial_is_complete_without_a_model() -> None:
    """All missed a constraint: the report is published, ConstraintsMet is False."""
    sweep = going(maxTrials=2)
    trials = tuple(trial(number, "Succeeded", conditions=MISSED) for number in (0, 1))
    plan = plan_of(sweep, 100, trials=trials)
    create = plan.actions[1]
    assert isinstance(create, CreateJob)
    assert create.request.publish is not None
    assert create.request.publish.best is None
    silent = publish(message=success(manifestDigest=None))
    status = status_of(plan_of(after(sweep, plan), 201, trials=trials, children=(silent,)))
    found = conditions(status.conditions)
    assert status.phase == "Succeeded"
    assert found["ConstraintsMet"] == found["ArtifactAvailable"] == ("False", r.CONSTRAINT_MISSED)


def test_a_sweep_without_a_certain_trial_is_uncertain() -> None:
    """One missed a constraint, and of one the latency leaves it open."""
    sweep = going(maxTrials=2)
    unsure = [{**MISSED[0], "status": "Unknown"}]
    trials = tuple(trial(number, "Succeeded", conditions=found) for number, found in enumerate((MISSED, unsure)))
    plan = plan_of(sweep, 100, trials=trials)
    silent = publish(message=success(manifestDigest=None))
    status = status_of(plan_of(after(sweep, plan), 201, trials=trials, children=(silent,)))
    found = conditions(status.conditions)
    assert found["ConstraintsMet"] == ("Unknown", r.LATENCY_UNCERTAIN)


def test_trials_without_the_objective_are_said_to_have_none() -> None:
    """Trials that succeeded and report no objective: nothing is best, and the sentence names what is missing."""
    sweep = going(maxTrials=2)
    document = trial(0, "Succeeded").to_dict()
    document["status"]["metrics"]["compressed"] = {"macs": 1.0}
    trials = (CompressionJob.model_validate(document), trial(1, "Failed"))
    sweep = after(sweep, plan_of(sweep, 100, trials=trials))
    silent = publish(message=success(manifestDigest=None))
    status = status_of(plan_of(sweep, 201, trials=trials, children=(silent,)))
    found = {condition.type: condition for condition in status.conditions}
    assert {found[name].reason for name in ("ConstraintsMet", "ArtifactAvailable")} == {r.OBJECTIVE_MISSING}
    text = "None of 1 trials that succeeded reports every objective (default)."
    assert found["ConstraintsMet"].message == found["ArtifactAvailable"].message == text
    assert (status.best, status.front) == (None, [])


def test_stricter_semantics_keep_best_and_front() -> None:
    """A sweep that a newer operator refuses: Stalled, and what was found stands, then and later."""
    trials = (trial(0, "Succeeded"), trial(1, "Succeeded"), trial(2))
    sweep = going(maxTrials=9)
    sweep = after(sweep, plan_of(sweep, 40, trials=trials))
    found = sweep.status.best, sweep.status.front
    assert found[0] is not None
    assert found[1]

    class Refused(HashStrategy):
        def suggest(self, *_: Any) -> Any:
            raise AssertionError("a refused sweep is not searched")

        def ranking(self, *_: Any) -> Any:
            return None, []

    plan = plan_of(sweep, 50, trials=trials, strategy=Refused(sweep), problems=("spec.x: is not allowed; remove it",))
    status = status_of(plan)
    assert conditions(status.conditions)["Stalled"] == ("True", r.INVALID_SPEC)
    assert (status.best, status.front) == found
    assert (status_of(plan_of(after(sweep, plan), 60, trials=trials)).best) == found[0]


def test_no_trial_succeeded() -> None:
    """Without any result there is nothing to publish."""
    sweep = going(maxTrials=2)
    plan = plan_of(sweep, 100, trials=(trial(0, "Failed"), trial(1, "Failed")))
    assert kinds(plan) == ["PatchStatus"]
    found = conditions(status_of(plan).conditions)
    assert found["Failed"] == ("True", r.NO_RESULT)
    assert found["ArtifactAvailable"] == ("False", r.NO_RESULT)


def test_search_space_exhausted() -> None:
    """A strategy without further combinations ends the sweep when the running ones are done."""
    sweep = going(maxTrials=9)
    strategy = HashStrategy(sweep, exhausted_at=2)
    plan = plan_of(sweep, 40, trials=(trial(0, "Succeeded"), trial(1)), strategy=strategy)
    assert kinds(plan) == ["PatchStatus"]
    assert (status_of(plan).exhausted, status_of(plan).phase) == (True, "Running")
    sweep = after(sweep, plan)
    trials = (trial(0, "Succeeded"), trial(1, "Succeeded"))
    sweep = after(sweep, plan_of(sweep, 50, trials=trials, strategy=strategy))
    status = status_of(plan_of(sweep, 201, trials=trials, children=(publish(),), strategy=strategy))
    assert conditions(status.conditions)["Complete"] == ("True", r.SPACE_EXHAUSTED)


def test_too_many_failed_trials() -> None:
    """Running trials are stopped once; the best is published; then the sweep has failed."""
    sweep = going(maxTrials=9, maxFailedTrials=0, parallelism=3)
    trials = (trial(0, "Succeeded"), trial(1, "Failed"), trial(2))
    plan = plan_of(sweep, 40, trials=trials)
    assert plan.actions[1] == StopTrial("search-00002", "trial-2", r.TOO_MANY_FAILED_TRIALS)
    assert len(created(plan)) == 0
    sweep = after(sweep, plan)
    told = {"stop": {"reason": "x", "time": "2026-03-01T12:00:41Z"}}
    assert plan_of(sweep, 41, trials=(*trials[:2], trial(2, **told))).actions == ()
    trials = (*trials[:2], trial(2, "Stopped", **told))
    plan = plan_of(sweep, 50, trials=trials)
    assert job_names(plan) == ["search-publish"]
    status = status_of(plan_of(after(sweep, plan), 201, trials=trials, children=(publish(),)))
    found = conditions(status.conditions)
    assert (status.phase, found["Failed"]) == ("Failed", ("True", r.TOO_MANY_FAILED_TRIALS))
    assert found["ArtifactAvailable"] == ("True", r.PUBLISHED)
    assert found["Complete"] == ("False", r.TOO_MANY_FAILED_TRIALS)


def test_trials_that_are_far_behind_are_stopped() -> None:
    """Once, if they run, and only where spec.earlyStopping is there; they are neither failed nor a used-up budget."""
    sweep = going(maxTrials=3, parallelism=2, earlyStopping={"name": "median"}, budget={"wallClockSeconds": 60})
    strategy = HashStrategy(sweep)
    strategy.behind = {0, 1, 2}
    told = {"stop": {"reason": r.STOPPED_EARLY, "time": "2026-03-01T12:00:30Z"}}
    trials = (trial(0, "Succeeded"), trial(1), trial(2, "Pending"))
    plan = plan_of(sweep, 40, trials=trials, strategy=strategy)
    assert [action for action in plan.actions if isinstance(action, StopTrial)] == [
        StopTrial("search-00001", "trial-1", r.STOPPED_EARLY)
    ]
    sweep = after(sweep, plan)
    assert "StopTrial" not in kinds(plan_of(sweep, 41, trials=(trials[0], trial(1, **told)), strategy=strategy))
    over = (trial(0, "Succeeded"), trial(1, "Stopped", **told), trial(2, "Succeeded"))
    status = status_of(plan_of(sweep, 61, trials=over, strategy=strategy, children=(publish(),)))
    assert (status.trials.stopped, status.trials.failed) == (1, 0)
    assert conditions(status.conditions)["Ready"][1] != r.BUDGET_EXHAUSTED
    plain = going(maxTrials=3, parallelism=2)
    other = HashStrategy(plain)
    other.behind = {1}
    assert "StopTrial" not in kinds(plan_of(plain, 40, trials=trials, strategy=other))


def test_budget() -> None:
    """The wall-clock budget counts from the start; then nothing starts, running trials stop, the rest is published."""
    sweep = going(maxTrials=9, budget={"wallClockSeconds": 60})
    assert plan_of(sweep, 40, trials=(trial(0), trial(1))).requeue_after == 20.0
    plan = plan_of(sweep, 60, trials=(trial(0, "Succeeded"), trial(1)))
    assert plan.actions[1] == StopTrial("search-00001", "trial-1", r.BUDGET_EXHAUSTED)
    trials = (trial(0, "Succeeded"), trial(1, "Stopped"))
    sweep = after(sweep, plan)
    sweep = after(sweep, plan_of(sweep, 70, trials=trials))
    status = status_of(plan_of(sweep, 201, trials=trials, children=(publish(),)))
    assert conditions(status.conditions)["Complete"] == ("True", r.BUDGET_EXHAUSTED)


GPUS = {"template": {"runner": {"gpus": 2}}}


def since(second: float, **more: Any) -> dict[str, Any]:
    """The status of a trial whose attempt runs since then."""
    return {"attempts": [{"number": 1, "outcome": "Running", "startTime": at(second).isoformat()}], **more}


def test_gpu_budget() -> None:
    """GPUs x running time, of attempts that are over and of those that run; queued time is free."""
    sweep = going(maxTrials=9, budget={"gpuSeconds": 100}, **GPUS)
    waiting = (trial(0, "Pending"), trial(1, "Pending"))
    assert plan_of(sweep, 5_000, trials=waiting).requeue_after is None
    # 2 x 10 s are over, 2 x 10 s run by now, and 60 GPU seconds are left, for 2 x 2 GPUs.
    running = (trial(0, **since(90, activeSeconds=10.0)), trial(1, **since(100)))
    assert plan_of(sweep, 100, trials=running).requeue_after == 15.0
    assert "StopTrial" not in kinds(plan_of(sweep, 114, trials=running))
    plan = plan_of(sweep, 115, trials=running)
    assert [action.name for action in plan.actions if isinstance(action, StopTrial)] == ["search-00000", "search-00001"]
    assert "spec.budget.gpuSeconds is used up." in str(status_of(plan).conditions)


def test_gpu_seconds_are_summed_from_the_trials() -> None:
    """The status changes when an attempt is over, is the same however often it is reconciled, and never falls."""
    sweep = going(maxTrials=9, parallelism=2, **GPUS)
    trials = (trial(0, **since(30, activeSeconds=12.5)), trial(1, **since(30)))
    plan = plan_of(sweep, 50, trials=trials)
    assert status_of(plan).gpu_seconds == 25.0
    sweep = after(sweep, plan)
    assert plan_of(sweep, 60, trials=trials).actions == ()
    status = status_of(plan_of(sweep, 70, trials=(trial(1, "Succeeded", activeSeconds=5.0),)))
    assert status.gpu_seconds == 25.0


def test_without_gpus_there_is_nothing_to_count() -> None:
    """Trials that ask for none use up no budget of GPUs (validation refuses it)."""
    sweep = going(maxTrials=9, budget={"gpuSeconds": 1})
    plan = plan_of(sweep, 9_000, trials=(trial(0, **since(20, activeSeconds=900.0)), trial(1)))
    assert "StopTrial" not in kinds(plan)


def test_raising_the_gpu_budget_continues_a_finished_sweep() -> None:
    """As for the wall clock."""
    sweep = going(maxTrials=9, budget={"gpuSeconds": 100}, **GPUS)
    trials = tuple(trial(number, "Succeeded", activeSeconds=25.0) for number in (0, 1))
    sweep = after(sweep, plan_of(sweep, 60, trials=trials))
    sweep = after(sweep, plan_of(sweep, 80, trials=trials, children=(publish(finished_at=at(79)),)))
    assert conditions(sweep.status.conditions)["Complete"] == ("True", r.BUDGET_EXHAUSTED)
    assert sweep.spec.budget is not None
    more = edited(sweep, budget=sweep.spec.budget.model_copy(update={"gpu_seconds": 101}))
    assert len(created(plan_of(more, 90, trials=trials))) == 2


def test_budget_stops_the_last_trials_too() -> None:
    """Also when maxTrials is reached, what runs is stopped when the budget is used up."""
    sweep = going(maxTrials=2, budget={"wallClockSeconds": 60})
    plan = plan_of(sweep, 40, trials=(trial(0, "Succeeded"), trial(1)))
    assert plan.requeue_after == 20.0
    assert "StopTrial" in kinds(plan_of(sweep, 60, trials=(trial(0, "Succeeded"), trial(1))))


# Suspension, continuation, the rest ----------------------------------------------------------------------------------


def edited(sweep: CompressionSweep, **fields: Any) -> CompressionSweep:
    """The sweep after a user changed its spec."""
    meta = sweep.metadata.model_copy(update={"generation": (sweep.metadata.generation or 0) + 1})
    return sweep.model_copy(update={"metadata": meta, "spec": sweep.spec.model_copy(update=fields)})


def test_suspension() -> None:
    """Nothing starts; the sweep's own Job goes; suspended time is not budget; places are filled on resumption."""
    sweep = edited(prepared(budget={"wallClockSeconds": 100}), suspend=True)
    plan = plan_of(sweep, 10, children=(prepare("running"),))
    assert plan.actions[1] == DeleteJob("search-prepare", "uid-search-prepare")
    sweep = after(sweep, plan)
    assert sweep.status.phase == "Suspended"
    assert plan_of(sweep, 500) == Plan()
    plan = plan_of(edited(sweep, suspend=False), 1010)
    assert job_names(plan) == ["search-prepare"]
    status = status_of(plan)
    assert (status.suspended_seconds, status.prepare_attempts) == (1000.0, 1)
    assert conditions(status.conditions)["Suspended"] == ("False", r.RESUMED)
    sweep = after(sweep, plan)
    sweep = after(sweep, plan_of(edited(sweep, suspend=False), 1020, children=(prepare(finished_at=at(1015)),)))
    assert sweep.status.created == 2
    plan = plan_of(edited(sweep, suspend=False), 1050, trials=(trial(0), trial(1)))
    assert plan.requeue_after == 50.0


def test_suspended_trials_hold_their_places_and_fail_nowhere() -> None:
    """A suspended sweep creates nothing, whatever has finished."""
    sweep = edited(going(maxTrials=9), suspend=True)
    plan = plan_of(sweep, 40, trials=(trial(0, "Suspended"), trial(1, "Failed")))
    assert kinds(plan) == ["PatchStatus"]
    status = status_of(plan)
    assert (status.trials.suspended, status.trials.failed, status.active) == (1, 1, 0)


def test_problems_stall() -> None:
    """Semantic errors create nothing."""
    plan = plan_of(make_sweep(), problems=("spec.searchSpace[0].paths[0]: no such field; name one",))
    assert kinds(plan) == ["PatchStatus"]
    assert conditions(status_of(plan).conditions)["Stalled"] == ("True", r.INVALID_SPEC)
    assert status_of(plan).start_time is None


def ended() -> tuple[CompressionSweep, tuple[CompressionJob, ...]]:
    """A sweep that finished at second 201."""
    sweep, trials, _ = over()
    return after(sweep, plan_of(sweep, 201, trials=trials, children=(publish(),))), trials


def test_raising_max_trials_continues_a_finished_sweep() -> None:
    """Complete turns False, trials go on with the next numbers, and the best is published again."""
    sweep, trials = ended()
    sweep = edited(sweep, max_trials=3)
    plan = plan_of(sweep, 1201, trials=trials, children=(publish(),))
    assert [job.metadata.name for job in created(plan)] == ["search-00002"]
    sweep = after(sweep, plan)
    status = sweep.status
    assert (status.phase, status.completion_time, status.suspended_seconds) == ("Running", None, 1000.0)
    found = conditions(status.conditions)
    assert found["Complete"] == ("False", r.RUNNING)
    assert found["ArtifactAvailable"] == ("True", r.PUBLISHED)
    trials = (*trials, trial(2, "Succeeded", score=0.95))
    plan = plan_of(sweep, 1300, trials=trials, children=(publish(),))
    assert job_names(plan) == ["search-publish-2"]
    again = publish(number=2, finished_at=at(1310))
    status = status_of(plan_of(after(sweep, plan), 1311, trials=trials, children=(publish(), again)))
    assert status.phase == "Succeeded"
    assert status.best is not None
    assert status.best.number == 2


def test_raising_the_budget_continues_a_finished_sweep() -> None:
    """The time between the end and the raise is not budget."""
    sweep = going(maxTrials=9, budget={"wallClockSeconds": 60})
    trials = (trial(0, "Succeeded"), trial(1, "Succeeded"))
    sweep = after(sweep, plan_of(sweep, 60, trials=trials))
    sweep = after(sweep, plan_of(sweep, 80, trials=trials, children=(publish(finished_at=at(79)),)))
    assert sweep.status.phase == "Succeeded"
    assert plan_of(sweep, 10_000, trials=trials) == Plan()
    budget = type(sweep.spec.budget)  # type: ignore[arg-type]
    little = edited(sweep, budget=budget(wallClockSeconds=70))
    assert kinds(plan_of(little, 10_000, trials=trials)) == ["PatchStatus"]
    enough = edited(sweep, budget=budget(wallClockSeconds=180))
    plan = plan_of(enough, 10_000, trials=trials)
    assert len(created(plan)) == 2
    assert plan.requeue_after == 10.0
    plan = plan_of(after(enough, plan), 10_005, trials=(*trials, trial(2), trial(3)))
    assert plan.requeue_after == 95.0


@pytest.mark.parametrize("reason", [r.PREPARE_FAILED, r.TOO_MANY_FAILED_TRIALS, r.SPACE_EXHAUSTED])
def test_other_ends_are_final(reason: str) -> None:
    """What more trials cannot mend is not continued."""
    sweep, trials = ended()
    status = sweep.status
    ready = status.conditions[0].model_copy(update={"reason": reason})
    status = status.model_copy(update={"conditions": [ready, *status.conditions[1:]]})
    sweep = edited(sweep.model_copy(update={"status": status}), max_trials=3)
    assert kinds(plan_of(sweep, 1201, trials=trials)) == ["PatchStatus"]


def test_ttl_and_generation_after_the_end() -> None:
    """Finished Jobs of a finished sweep go after the template's ttl; a later generation is noted."""
    sweep, trials, _ = over(template={"ttlSecondsAfterFinished": 60})
    plan = plan_of(sweep, 201, trials=trials, children=(prepare(), publish()))
    assert plan.requeue_after == 60.0
    sweep = after(sweep, plan)
    plan = plan_of(sweep, 261, trials=trials, children=(prepare(), publish()))
    assert [action.name for action in plan.actions if isinstance(action, DeleteJob)] == [
        "search-prepare",
        "search-publish",
    ]
    plan = plan_of(edited(sweep, parallelism=9), 300, trials=trials)
    assert status_of(plan).observed_generation == 2


def test_deleted_sweeps_are_left_alone() -> None:
    """Garbage collection takes the trials."""
    sweep = make_sweep()
    meta = sweep.metadata.model_copy(update={"deletion_timestamp": at(1)})
    assert plan_of(sweep.model_copy(update={"metadata": meta})) == Plan()


def test_parallelism_one_repeats_an_adaptive_run() -> None:
    """With one trial at a time the adaptive histories, and so the parameters, are those of an undisturbed run."""
    births = []
    for lost in (False, True):
        sweep = make_sweep(parallelism=1, maxTrials=5)
        cluster = Cluster(strategy=HashStrategy(sweep, adaptive=True))
        cluster.put(sweep)
        if lost:  # the operator dies behind its first status, and evictions and lost messages follow
            cluster.reconcile(("CompressionSweep", "search"), keep=1)
            cluster.advance(20)
            for _ in range(12):
                cluster.turn(lambda job: "evicted" if job.seen.attempt == 1 else "silent")
                cluster.advance(6)
        cluster.converge()
        births.append(cluster.births)
    assert births[0] == births[1]


# Size ----------------------------------------------------------------------------------------------------------------


class ManyFront(HashStrategy):
    """Calls every trial part of the front."""

    def ranking(self, trials: Any) -> Any:
        """All of them."""
        best, _ = super().ranking(trials[:1])
        return best, list(range(len(trials)))


def test_ten_thousand_trials() -> None:
    """The status stays under 64 KiB with a long front and every second trial refused."""
    model = trial(0, "Succeeded")
    trials = []
    for number in range(10_000):
        if number % 2:
            continue
        meta = model.metadata.model_copy(
            update={
                "name": f"search-{number:05d}",
                "uid": f"trial-{number}",
                "labels": {"modelpress.dev/trial": str(number), "modelpress.dev/sweep": "search"},
            }
        )
        assert model.status.trial is not None
        record = model.status.trial.model_copy(update={"number": number})
        status = model.status.model_copy(update={"trial": record})
        trials.append(model.model_copy(update={"metadata": meta, "status": status}))
    refused = ",".join(str(number) for number in range(1, 3000, 2))
    sweep = make_sweep(maxTrials=10_000, maxFailedTrials=10_000, parallelism=100)
    status = {"created": 9_900, "trials": {"refused": 4_950}, "refused": refused, "phase": "Running"}
    sweep = sweep.model_copy(update={"status": CompressionSweepStatus.model_validate(status)})
    strategy = ManyFront(sweep, refused=frozenset(range(9_901, 10_000, 2)))
    plan = plan_of(sweep, 100, trials=tuple(trials[:4_950]), strategy=strategy)
    status_json = json.dumps(status_of(plan).to_dict())
    assert len(status_json.encode()) < 64 * 1024
    assert status_of(plan).trials.lost == 0
    assert status_of(plan).trials.refused == 5_000
    assert len(created(plan)) == 50
    assert status_of(plan).refused.endswith("9997,9999")
    CompressionSweepStatus.model_validate(json.loads(status_json))
