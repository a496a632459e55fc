"""CompressionSweep: suspended, gone on with behind its end, expired, and large."""

from __future__ import annotations

import json
from typing import Any

import pytest
from reconcile_objects import HashStrategy, at, conditions, kinds, make_sweep
from simulator import Cluster
from sweep_plans import (
    after,
    created,
    edited,
    going,
    job_names,
    over,
    plan_of,
    prepare,
    prepared,
    publish,
    status_of,
    trial,
)

from modelpress.api.v1alpha1 import CompressionJob, CompressionSweep, CompressionSweepStatus
from modelpress.api.v1alpha1 import reasons as r
from modelpress.reconcile import (
    DeleteJob,
    Plan,
)

# Suspension, continuation, the rest ----------------------------------------------------------------------------------


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
