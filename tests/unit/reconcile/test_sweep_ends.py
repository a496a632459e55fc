"""CompressionSweep: every way in which it ends, and what is published."""

from __future__ import annotations

from typing import Any

from reconcile_objects import DIGEST, HashStrategy, at, conditions, failure, kinds, success
from sweep_plans import (
    MISSED,
    after,
    created,
    edited,
    going,
    job_names,
    over,
    plan_of,
    prepare,
    publish,
    status_of,
    trial,
)

from modelpress.api.v1alpha1 import CompressionJob
from modelpress.api.v1alpha1 import reasons as r
from modelpress.reconcile import (
    CreateJob,
    Plan,
    StopTrial,
)


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
