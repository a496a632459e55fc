"""The local controller over the real reconcile core: to the end, on failures, and from every crash on."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from simulation import World, job_dict, parameters, phases, run_once, sweep_dict

from modelpress.local import journal as journal_module
from modelpress.local.controller import LocalController
from modelpress.local.errors import LocalError


class Crash(BaseException):
    """The process is killed here."""


def test_a_job_runs_to_its_end(tmp_path: Path) -> None:
    """One attempt, the runner's numbers in status, the artifact below the store."""
    cluster = run_once(World(tmp_path), job_dict())
    status = cluster.root.status
    assert status.phase == "Succeeded"
    assert status.started == 1
    assert status.metrics.compressed == {"default": 0.95, "macs": 500.0}
    uid8 = cluster.root.metadata.uid[:8]
    assert status.artifact.uri == f"{tmp_path}/modelpress-runs/default/one-{uid8}"


def test_a_sweep_runs_all_trials_within_its_parallelism(tmp_path: Path) -> None:
    """Every trial once, never more than two at a time, the best by the objective."""
    world = World(tmp_path)
    cluster = run_once(world, sweep_dict(trials=5))
    assert set(phases(cluster).values()) == {"Succeeded"}
    assert sorted(parameters(cluster)) == [f"many-{number:05d}" for number in range(5)]
    assert set(world.started.values()) == {1}
    assert world.most_at_once == 2
    lowest = min(parameters(cluster), key=parameters(cluster).__getitem__)  # least pruned, best score
    assert cluster.root.status.best.name == lowest


def test_a_failed_attempt_is_tried_again(tmp_path: Path) -> None:
    """Exit code 1 counts against backoffLimit, and the next attempt may succeed."""
    cluster = run_once(World(tmp_path), job_dict(backoffLimit=2), exits={"one": [1, 1]})
    assert cluster.root.status.phase == "Succeeded"
    assert (cluster.root.status.started, cluster.root.status.failures) == (3, 2)


def test_more_failures_than_allowed_fail_the_job(tmp_path: Path) -> None:
    """The job fails with the number of attempts and the last one's words."""
    cluster = run_once(World(tmp_path), job_dict(backoffLimit=1), exits={"one": [1, 1, 1]})
    assert cluster.root.status.phase == "Failed"
    assert cluster.root.status.started == 2
    failed = next(item for item in cluster.root.status.conditions if item.type == "Failed")
    assert failed.reason == "BackoffLimitExceeded"
    assert "it broke" in failed.message


def test_an_invalid_run_is_never_tried_again(tmp_path: Path) -> None:
    """Exit code 2 ends the job at once."""
    cluster = run_once(World(tmp_path), job_dict(backoffLimit=5), exits={"one": [2]})
    assert (cluster.root.status.phase, cluster.root.status.started) == ("Failed", 1)


def test_a_sweep_goes_on_past_a_failed_trial(tmp_path: Path) -> None:
    """One bad recipe costs one trial, not the sweep."""
    cluster = run_once(World(tmp_path), sweep_dict(trials=3), exits={"many-00001": [2]})
    assert phases(cluster) == {
        "many": "Succeeded",
        "many-00000": "Succeeded",
        "many-00001": "Failed",
        "many-00002": "Succeeded",
    }


def test_too_many_failed_trials_fail_the_sweep(tmp_path: Path) -> None:
    """More failed trials than maxFailedTrials end the search."""
    exits = {f"many-{number:05d}": [2] for number in range(9)}
    cluster = run_once(World(tmp_path), sweep_dict(trials=9, maxFailedTrials=1), exits=exits)
    assert cluster.root.status.phase == "Failed"
    assert cluster.root.status.trials.failed >= 2
    assert cluster.root.status.created < 9


def test_running_a_finished_sweep_again_does_nothing(tmp_path: Path) -> None:
    """A second run of the same file writes nothing and starts nothing."""
    world = World(tmp_path)
    first = run_once(world, sweep_dict())
    before = {path: path.read_bytes() for path in first.journal.root.rglob("*.json")}
    second = run_once(world, sweep_dict())
    assert {path: path.read_bytes() for path in first.journal.root.rglob("*.json")} == before
    assert second.root == first.root
    assert second.trials == first.trials
    assert set(world.started.values()) == {1}


def test_raising_max_trials_goes_on_with_the_same_sweep(tmp_path: Path) -> None:
    """The first trials stay, the new ones get what a longer sweep would have given them."""
    world = World(tmp_path / "a")
    run_once(world, sweep_dict(trials=2))
    grown = run_once(world, sweep_dict(trials=4, parallelism=1))
    whole = run_once(World(tmp_path / "b"), sweep_dict(trials=4))
    assert parameters(grown) == parameters(whole)
    assert set(world.started.values()) == {1}
    assert grown.root.status.phase == "Succeeded"
    assert grown.root.metadata.generation == 2


def test_a_failed_job_starts_over_under_another_uid(tmp_path: Path) -> None:
    """Whoever runs a failed file again wants another try, not the old failure."""
    world = World(tmp_path)
    first = run_once(world, job_dict(), exits={"one": [2]})
    second = run_once(world, job_dict())
    assert (first.root.status.phase, second.root.status.phase) == ("Failed", "Succeeded")
    assert first.root.metadata.uid != second.root.metadata.uid
    third = run_once(world, job_dict())
    assert third.root == second.root


def test_stopping_suspends_and_the_next_run_goes_on(tmp_path: Path) -> None:
    """A clean stop ends the processes without counting an attempt as failed or disrupted, and loses no trial."""
    world = World(tmp_path)

    def stop_soon(controller: LocalController) -> None:
        asyncio.get_running_loop().call_later(9.0, controller.stop)

    stopped = run_once(world, sweep_dict(), meanwhile=stop_soon)
    assert stopped.root.status.phase == "Suspended"
    assert "Suspended" in phases(stopped).values()
    resumed = run_once(world, sweep_dict())
    assert set(phases(resumed).values()) == {"Succeeded"}
    assert parameters(resumed) == parameters(run_once(World(tmp_path / "b"), sweep_dict()))
    assert all(trial.status.failures == trial.status.disruptions == 0 for trial in resumed.trials)


def test_a_moved_store_takes_its_trials_along(tmp_path: Path) -> None:
    """A folder that was moved goes on, with every trial and artifact in its new place."""
    world = World(tmp_path / "a")
    run_once(world, sweep_dict(trials=2))
    (tmp_path / "a").rename(tmp_path / "b")
    world.folder = tmp_path / "b"
    moved = run_once(world, sweep_dict(trials=3))
    home = f"{tmp_path}/b/modelpress-runs"
    assert {trial.spec.store.uri for trial in moved.trials} == {home}
    assert all(trial.status.artifact.uri.startswith(f"{home}/default/many-") for trial in moved.trials)
    assert set(world.started.values()) == {1}


def test_a_sweep_that_nothing_moves_is_told(tmp_path: Path) -> None:
    """A suspended object has nothing to do, so the run ends in a sentence instead of waiting for ever."""
    with pytest.raises(LocalError, match="nothing is left to do, but CompressionJob one is Suspended"):
        run_once(World(tmp_path), job_dict(suspend=True), meanwhile=lambda controller: None)


# Crashes -------------------------------------------------------------------------------------------------------------


def crash_at(count: int, moment: str) -> Callable[[Path, str], None]:
    """A write_atomic that dies at its `count`-th call: before it wrote, halfway through the draft, or after it."""
    calls = 0

    def write(path: Path, text: str) -> None:
        nonlocal calls
        calls += 1
        dies = calls == count
        draft = path.with_name(f".{path.name}.tmp")
        if dies and moment == "before":
            raise Crash
        draft.write_text(text[: len(text) // 2] if dies and moment == "halfway" else text)
        if dies and moment == "halfway":
            raise Crash
        os.replace(draft, path)
        if dies:
            raise Crash

    return write


def crash_and_go_on(world: World, document: dict, count: int, moment: str, patch: pytest.MonkeyPatch):
    """Die at that write, then run again without trouble; None if the run was over before."""
    with patch.context() as context:
        context.setattr(journal_module, "write_atomic", crash_at(count, moment))
        try:
            run_once(world, document)
        except Crash:
            pass
        else:
            return None
    return run_once(world, document)


@pytest.mark.parametrize("moment", ["before", "halfway", "after"])
def test_whatever_write_a_sweep_dies_at_it_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """From every crash point: the same trials and parameters, none lost, and no finished trial runs twice."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    document = sweep_dict(trials=3)  # one waits for its turn
    undisturbed = run_once(World(tmp_path / "whole"), document)
    count = 0
    while True:
        count += 1
        world = World(tmp_path / f"{moment}-{count}")
        cluster = crash_and_go_on(world, document, count, moment, monkeypatch)
        if cluster is None:
            break
        assert phases(cluster) == phases(undisturbed), count
        assert parameters(cluster) == parameters(undisturbed), count
        assert cluster.root.status.best == undisturbed.root.status.best, count
        assert cluster.root.status.trials == undisturbed.root.status.trials, count
        assert world.wasted == [], count
        assert sum(trial.status.failures for trial in cluster.trials) == 0, count
    assert count > 40


def test_dying_twice_is_no_worse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash while the redo log of an earlier crash is carried out loses nothing either."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    document = sweep_dict(trials=3)
    undisturbed = run_once(World(tmp_path / "whole"), document)
    for first in (9, 14, 21, 26):
        for second in (1, 2, 3, 5):
            world = World(tmp_path / f"{first}-{second}")
            with monkeypatch.context() as context:
                for count in (first, second):
                    context.setattr(journal_module, "write_atomic", crash_at(count, "after"))
                    with pytest.raises(Crash):
                        run_once(world, document)
            cluster = run_once(world, document)
            assert phases(cluster) == phases(undisturbed), (first, second)
            assert parameters(cluster) == parameters(undisturbed), (first, second)


def test_a_trial_that_lags_behind_is_stopped(tmp_path: Path) -> None:
    """Scores on the way reach the status; the one trial that is worse than most is stopped, and no failed one."""

    def curve(name: str) -> list[float]:
        return [0.1] * 40 if name.endswith("4") else [0.5 + int(name[-1]) / 100] * 5

    world = World(tmp_path, curve=curve)
    early = {"name": "median", "minTrials": 3}
    cluster = run_once(world, sweep_dict(trials=6, parallelism=1, earlyStopping=early))
    found = phases(cluster)
    assert {name for name, phase in found.items() if phase != "Succeeded"} == {"many-00004"}
    assert found["many-00004"] == "Stopped"
    trials = {trial.metadata.name: trial.status for trial in cluster.trials}
    assert trials["many-00004"].stop.reason == "StoppedEarly"
    assert 1 <= len(trials["many-00004"].intermediate) < 10
    assert [(point.step, point.value) for point in trials["many-00002"].intermediate] == [
        (n, 0.52) for n in range(1, 6)
    ]
    assert (trials["many-00002"].progress.stage, trials["many-00002"].progress.total) == ("finetune", 9)
    counts = cluster.root.status.trials
    assert (counts.succeeded, counts.stopped, counts.failed, counts.lost) == (5, 1, 0, 0)
    ready = next(item for item in cluster.root.status.conditions if item.type == "Ready")
    assert ready.reason == "TrialsFinished"
