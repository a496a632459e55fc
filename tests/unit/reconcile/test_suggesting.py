"""gp: a Job is asked for the parameters of each trial behind the first ten, one at a time; all state is recorded."""

from __future__ import annotations

import pytest
from reconcile_objects import conditions, make_sweep
from simulator import Cluster

from modelpress.api.v1alpha1 import CompressionJob, CompressionSweep
from modelpress.api.v1alpha1 import reasons as r
from modelpress.search import replay, strategy_for

KEY = ("CompressionSweep", "search")
PATH = "/stages/0/prune/configList/0/sparsity"
SPACE = [{"name": "sparsity", "paths": [PATH], "float": {"min": 0.1, "max": 0.9, "step": 0.05}}]


def search(parallelism: int = 1, trials: int = 13, **spec: object) -> Cluster:
    """A cluster with a sweep by gp."""
    sweep = make_sweep(
        algorithm={"name": "gp", "seed": 5}, searchSpace=SPACE, parallelism=parallelism, maxTrials=trials, **spec
    )
    cluster = Cluster(strategy=strategy_for(sweep.spec))
    cluster.put(sweep)
    return cluster


def trials_of(cluster: Cluster) -> dict[str, CompressionJob]:
    """The trials by name."""
    return {key[1]: obj for key, obj in cluster.objects.items() if isinstance(obj, CompressionJob)}


def sweep_of(cluster: Cluster) -> CompressionSweep:
    """The sweep."""
    sweep = cluster.objects[KEY]
    assert isinstance(sweep, CompressionSweep)
    return sweep


def until_asked(cluster: Cluster, number: int = 10) -> str:
    """Run the sweep until it asks for a trial's parameters; the Job's name."""
    name = f"search-suggest-{number}"
    for _ in range(80):
        for key in list(cluster.objects):
            cluster.reconcile(key)
        if name in cluster.jobs:
            return name
        for job in list(cluster.jobs):
            if cluster.jobs[job].seen.state == "pending":
                cluster.start(job)
            elif cluster.jobs[job].seen.state == "running":
                cluster.end(job, "done")
        cluster.advance(1)
    raise AssertionError("it does not ask")


def test_faults_change_no_parameters() -> None:
    """Plans cut short behind every first action, lost messages and evicted Jobs leave the search what it is."""
    births = []
    for faults in (False, True):
        cluster = search()
        for round_ in range(60 if faults else 0):
            for key in list(cluster.objects):
                cluster.reconcile(key, keep=2 if key == KEY and round_ % 2 else None)
            for name, job in list(cluster.jobs.items()):
                if job.seen.deleting:
                    cluster.vanish(name)
                elif job.seen.state == "pending":
                    cluster.start(name)
                elif job.seen.state == "running":
                    lost = job.seen.purpose == "suggest" and job.seen.attempt == 1
                    cluster.end(name, "evicted" if lost else "done")
            cluster.advance(6)
        cluster.converge()
        trials = trials_of(cluster)
        births.append({name: birth.split("|")[0] for name, birth in cluster.births.items()})
        assert replay(sweep_of(cluster).spec, list(trials.values())) == []
        assert sweep_of(cluster).status.phase == "Succeeded"
        assert not [name for name in cluster.jobs if "suggest" in name]  # a Job that was answered goes
    assert len(births[0]) == 13
    assert births[0] == births[1]
    assert len(set(births[0].values())) == 13


def test_others_run_while_one_is_asked_for() -> None:
    """Four at a time: one question is open, three trials run, the status says so; no recipe comes twice."""
    cluster = search(parallelism=4, trials=15)
    name = until_asked(cluster, 12)  # twelve were drawn at random before ten of them were complete
    assert [job for job in cluster.jobs if "suggest" in job] == [name]
    request = cluster.jobs[name].request
    assert request.suggest is not None
    assert len([told for told in request.suggest.observations if told[1] == "complete"]) >= 10
    cluster.settle(KEY)
    status = sweep_of(cluster).status
    ready = next(item for item in status.conditions if item.type == r.READY)
    assert (status.phase, ready.reason) == ("Running", r.SUGGESTION_PENDING)
    assert "asked for trial 12's parameters" in ready.message
    cluster.converge()
    trials = trials_of(cluster)
    assert len({str(trial.spec) for trial in trials.values()}) == len(trials) == 15
    assert replay(sweep_of(cluster).spec, list(trials.values())) == []


def test_a_trial_without_a_record_is_known_by_its_answer() -> None:
    """The operator dies between a trial's creation and its first status: the answer proves that it is one."""
    cluster = search()
    name = until_asked(cluster)
    cluster.start(name)
    cluster.end(name, "done")
    plan = cluster.plan(sweep_of(cluster))
    trial = next(action.job for action in plan.actions if hasattr(action, "job"))
    cluster.put(trial.model_copy(update={"status": type(trial.status)()}))
    cluster.births[trial.metadata.name] = cluster._birth(trial)
    cluster.converge()
    assert sweep_of(cluster).status.phase == "Succeeded"
    assert len(trials_of(cluster)) == 13


@pytest.mark.parametrize("how", ["invalid", "error"])
def test_a_search_that_cannot_be_asked_ends_with_what_it_has(how: str) -> None:
    """An old image refuses the question at once, other failures count against backoffLimit; the best is published."""
    cluster = search(template={"backoffLimit": 1})
    name = until_asked(cluster)
    for _ in range(2):
        if name in cluster.jobs:
            cluster.start(name)
            cluster.end(name, how)
        cluster.advance(20)  # a message may be late
        cluster.reconcile(KEY)
        name = "search-suggest-10-2"
    cluster.converge()
    status = sweep_of(cluster).status
    assert status.phase == "Failed"
    assert conditions(status.conditions)["Failed"] == ("True", r.SUGGESTION_FAILED)
    assert status.best is not None
    assert status.artifact is not None
    assert ("search-suggest-10-2" in cluster.jobs) == (how == "error")
