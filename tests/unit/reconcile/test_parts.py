"""The small parts: names, conditions, times, and the real search under faults."""

from __future__ import annotations

import datetime as dt
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reconcile_objects import NOW, at, make_sweep
from simulator import Cluster

from modelpress.api.v1alpha1 import Condition
from modelpress.api.v1alpha1 import reasons as r
from modelpress.reconcile import naming
from modelpress.reconcile.conditions import ConditionUpdate, cut, merge, reason_of, seconds, soonest, stamp
from modelpress.search import strategy_for


def test_names() -> None:
    """Names are what the documentation says they are."""
    assert naming.attempt_name("digits-l1", 3) == "digits-l1-3"
    assert naming.collect_name("digits-l1", 3) == "digits-l1-3-collect"
    assert naming.collect_name("digits-l1", 3, 2) == "digits-l1-3-collect-2"
    assert naming.prepare_name("s") == "s-prepare"
    assert naming.publish_name("s", 2) == "s-publish-2"
    assert naming.trial_name("s", 7) == "s-00007"


def test_the_longest_names_fit() -> None:
    """A job of 52 characters keeps its attempts' names whole, with room for an index."""
    job, sweep = "j" * 52, "s" * 46
    assert naming.attempt_name(job, 99_999) == job + "-99999"
    assert len(naming.attempt_name(job, 99_999)) == 58
    assert naming.collect_name(job, 99) == job + "-99-collect"
    assert len(naming.trial_name(sweep, 9_999)) == 52
    assert len(naming.publish_name(sweep, 1_101)) <= 63


@given(st.integers(1, 10**7), st.integers(1, 10**7), st.integers(1, 3))
def test_cut_names_differ(first: int, second: int, round_: int) -> None:
    """Names that are cut are valid, short, and differ where the numbers do."""
    job = "a" + "-b" * 25 + "c"
    names = naming.collect_name(job, first, round_), naming.collect_name(job, second, round_)
    assert all(len(name) <= 63 and name[-1].isalnum() for name in names)
    assert (names[0] == names[1]) == (first == second)


def test_merge_keeps_the_time_of_a_transition() -> None:
    """Reason, message and generation may change without a transition."""
    old = [Condition(type="Ready", status="False", reason="A", message="a", last_transition_time=NOW)]
    kept = merge(old, [ConditionUpdate("Ready", "False", "B", "b")], at(9), 4)[0]
    assert (kept.last_transition_time, kept.reason, kept.message, kept.observed_generation) == (NOW, "B", "b", 4)
    assert merge(old, [ConditionUpdate("Ready", "True", "B")], at(9), 4)[0].last_transition_time == at(9)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("OOM", "OOM"),
        ("a b", r.RUNNER_FAILED),
        ("", r.RUNNER_FAILED),
        (None, r.RUNNER_FAILED),
        ("x" * 65, r.RUNNER_FAILED),
    ],
)
def test_reasons_are_what_the_api_accepts(text: str | None, expected: str) -> None:
    """A runner's free text never makes a status invalid."""
    assert reason_of(text) == expected


def test_times_survive_the_api_server() -> None:
    """Times are cut to milliseconds in UTC; differences are never negative."""
    local = dt.datetime(2026, 3, 1, 13, 0, 0, 123_999, tzinfo=dt.timezone(dt.timedelta(hours=1)))
    assert stamp(local) == dt.datetime(2026, 3, 1, 12, 0, 0, 123_000, tzinfo=dt.UTC)
    assert seconds(at(5), at(2)) == 0.0
    assert soonest(None, 3.0, -1.0) == 0.0
    assert soonest(None, None) is None
    assert len(cut("x" * 5000)) == 1024


@pytest.mark.parametrize(
    ("algorithm", "parallelism"), [("random", 3), ("grid", 3), ("tpe", 1)], ids=["random", "grid", "tpe"]
)
def test_the_real_search_under_faults(algorithm: str, parallelism: int) -> None:
    """Evictions, lost messages, a suspension and a dying operator leave every trial's parameters what they are."""
    births = []
    for faults in (False, True):
        path = "/stages/0/prune/configList/0/sparsity"
        sweep = make_sweep(
            algorithm={"name": algorithm, "seed": 7},
            searchSpace=[{"name": "sparsity", "paths": [path], "float": {"min": 0.1, "max": 0.9, "step": 0.1}}],
            parallelism=parallelism,
            maxTrials=7,
        )
        cluster = Cluster(strategy=strategy_for(sweep.spec))
        cluster.put(sweep)
        if faults:
            disturb(cluster)
        cluster.converge()
        cluster.replay()
        births.append({name: birth.split("|")[0] for name, birth in cluster.births.items()})
    assert len(births[0]) == 7
    assert births[0] == births[1]


def disturb(cluster: Cluster) -> None:
    """Twenty rounds in which every runner is evicted once, every message is lost, and the sweep is suspended."""
    key = ("CompressionSweep", "search")
    for round_ in range(20):
        if round_ in (6, 9):
            cluster.change_spec(key, suspend=round_ == 6)
        for name in list(cluster.objects):
            cluster.reconcile(name, keep=1 if round_ == 2 and name != key else None)
        for name, job in list(cluster.jobs.items()):
            if job.seen.deleting:
                cluster.vanish(name)
            elif job.seen.state == "pending":
                cluster.start(name)
            elif job.seen.state == "running" and job.seen.purpose == "collect":
                cluster.end(name, "done")
            elif job.seen.state == "running":
                cluster.end(name, "evicted" if job.seen.attempt == 1 else "silent")
        cluster.advance(6)


def test_a_grid_of_nine_points_under_an_operator_that_dies_after_each() -> None:
    """A process of its own for every round: nine trials with nine sparsities, each run once, then Complete."""
    path = "/stages/0/prune/configList/0/sparsity"
    sweep = make_sweep(
        algorithm={"name": "grid", "seed": 7},
        searchSpace=[{"name": "sparsity", "paths": [path], "float": {"min": 0.1, "max": 0.9, "step": 0.1}}],
        parallelism=1,
        maxTrials=20,
    )
    cluster = Cluster(strategy=strategy_for(sweep.spec))
    cluster.put(sweep)
    rounds = 0
    while cluster.objects["CompressionSweep", "search"].status.phase != "Succeeded":
        rounds += 1
        assert rounds < 200
        cluster.strategy = strategy_for(sweep.spec)
        cluster.turn()
        cluster.advance(1)
    status = cluster.objects["CompressionSweep", "search"].status
    assert next(item.reason for item in status.conditions if item.type == "Complete") == r.SPACE_EXHAUSTED
    assert (status.trials.succeeded, status.created) == (9, 9)
    points = [json.loads(birth.split("|")[0]) for birth in cluster.births.values()]
    assert sorted(round(point["sparsity"], 1) for point in points) == [n / 10 for n in range(1, 10)]
