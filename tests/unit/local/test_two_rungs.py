"""Sweeps with screening, over the real core, search and journal: who goes on, from where, and what is said of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from simulation import World, job_dict, run_once, sweep_dict

from modelpress.local.cluster import LocalCluster
from modelpress.local.controller import LocalController
from modelpress.search import replay
from modelpress.trials import SHARED_STAGES_ANNOTATION, number_of, parameters_of, screened_of


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def document(trials: int = 5, top: int = 2, **spec: Any) -> dict[str, Any]:
    """A sweep that prunes, and recovers the best."""
    template = {**job_dict()["spec"]}
    template["stages"] = [*template["stages"], {"finetune": {"epochs": 1}}]
    return sweep_dict(trials, screening={"stages": 1, "top": top}, template={"spec": template}, **spec)


def flipped(folder: Path) -> World:
    """A world in which those that lost most come back furthest."""
    return World(folder, recovered=lambda sparsity: 0.9 + sparsity / 20)


def rungs(cluster: LocalCluster) -> dict[int, int | None]:
    """What each trial goes on from."""
    return {number_of(trial): screened_of(trial) for trial in cluster.trials}


def test_the_best_of_the_first_rung_go_on_and_are_ranked_again(tmp_path: Path) -> None:
    """Five run one stage, the two with the best scores run both; the rankings disagree, and the second one counts."""
    cluster = run_once(flipped(tmp_path), document())
    status, trials = cluster.root.status, {number_of(trial): trial for trial in cluster.trials}
    scores = {number: trials[number].status.metrics.compressed["default"] for number in range(5)}
    best, second = sorted(scores, key=scores.__getitem__, reverse=True)[:2]
    assert rungs(cluster) == {0: None, 1: None, 2: None, 3: None, 4: None, 5: best, 6: second}
    assert [len(trials[number].spec.stages) for number in range(7)] == [1, 1, 1, 1, 1, 2, 2]
    assert parameters_of(trials[5]) == parameters_of(trials[best])
    assert {trial.metadata.annotations[SHARED_STAGES_ANNOTATION] for trial in cluster.trials} == {"1"}
    assert status.phase == "Succeeded"
    assert status.best.number == 6
    assert status.front == [6]
    assert [(item.number, item.screened) for item in status.screening.promoted] == [(5, best), (6, second)]
    assert status.screening.recovered == [6, 5]
    assert status.screening.rank_correlation == -1
    ready = next(item for item in status.conditions if item.type == "Ready")
    assert ready.message == "All 5 trials are over. 2 of them went on to the end."
    assert replay(cluster.root.spec, cluster.trials) == []


def test_bounds_on_what_recovery_brings_back_wait_for_it(tmp_path: Path) -> None:
    """A bound on the score is none in the first rung: it is ranked by, and judged behind the whole recipe."""
    constraints = [{"metric": "default", "min": 0.94}, {"metric": "macs", "maxRatio": 0.7}]
    objectives = [{"metric": "macs"}]
    world = flipped(tmp_path)
    cluster = run_once(
        world, document(8, 3, constraints=constraints, objectives=objectives, algorithm={"name": "nsga2"})
    )
    for trial in cluster.trials:
        first = screened_of(trial) is None
        assert [item.metric for item in trial.spec.constraints] == (["macs"] if first else ["default", "macs"])
    assert sum(screened is not None for screened in rungs(cluster).values()) == 3
    assert replay(cluster.root.spec, cluster.trials) == []


def test_a_small_space_and_a_raised_limit(tmp_path: Path) -> None:
    """An exhausted search has a second rung, too; a sweep that is raised recovers those of its best that it has not."""
    space = [
        {
            "name": "sparsity",
            "paths": ["/stages/0/prune/configList/0/sparsity"],
            "categorical": {"values": [0.5, 0.4, 0.2, 0.1]},
        }
    ]
    small = run_once(World(tmp_path / "a"), document(9, 1, searchSpace=space, algorithm={"name": "grid"}))
    assert rungs(small) == {0: None, 1: None, 2: None, 3: None, 4: 3}
    assert small.root.status.exhausted
    world = World(tmp_path / "b")
    grid = {"searchSpace": space, "algorithm": {"name": "grid"}}
    assert rungs(run_once(world, document(2, 1, **grid))) == {0: None, 1: None, 2: 1}
    grown = run_once(world, document(4, 1, **grid))
    assert rungs(grown) == {0: None, 1: None, 2: 1, 3: None, 4: None, 5: 4}
    assert [trial.spec.stages[0].prune.config_list[0].sparsity for trial in grown.trials] == [
        *(0.5, 0.4, 0.4, 0.2, 0.1, 0.1)
    ]
    assert grown.root.status.best.number == 5
    assert [item.number for item in grown.root.status.screening.promoted] == [5, 2]


def test_stopped_at_any_time_it_ends_the_same(tmp_path: Path) -> None:
    """Suspended and resumed after every finished trial, a sweep makes the same trials with the same answers."""
    wanted = document(4, 2, parallelism=1)
    whole = run_once(flipped(tmp_path / "whole"), wanted)
    world = flipped(tmp_path / "broken")
    cluster = None
    for count in range(1, 7):

        def stop(controller: LocalController, count: int = count) -> None:
            def seen(change: Any) -> None:
                done = [trial for trial in controller.cluster.trials if trial.status.phase == "Succeeded"]
                if len(done) >= count:
                    controller.stop()

            controller.cluster.watch(seen)

        cluster = run_once(world, wanted, meanwhile=stop)
    cluster = run_once(world, wanted)
    assert rungs(cluster) == rungs(whole)
    assert [parameters_of(trial) for trial in cluster.trials] == [parameters_of(trial) for trial in whole.trials]
    assert cluster.root.status.screening == whole.root.status.screening
    assert world.wasted == []
