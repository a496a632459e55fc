"""What goes wrong on a cluster, and how the status tells: the table of failures.py on a real control plane.

All cases run at one time, each in a namespace of its own, and are judged one by one. Times are those at which a watcher
hears of things: of the cause, and of the status that tells it.
"""

from __future__ import annotations

import json
import urllib.error
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from control_plane import ControlPlane
from failures import CASES, LOST_POD_SECONDS, Case, Scene
from fake_kubelet import FakeKubelet, Fate
from operator_cluster import Cluster, condition, job
from operator_process import OperatorProcess
from recorder import Recorder, Seen
from warm_processes import WarmProcesses

BOUND = 10.0  # seconds from a cause to the status that tells it


@dataclass(frozen=True)
class Story:
    """What a watcher heard of one case."""

    cause: Seen
    told: Seen
    done: dict[str, Any]
    jobs: list[str]


@pytest.fixture(scope="module")
def home(
    control_plane: ControlPlane,
    kubelet: FakeKubelet,
    operators: WarmProcesses,
    tmp_path_factory: pytest.TempPathFactory,
) -> Cluster:
    """The operator's own namespace."""
    return Cluster(control_plane, kubelet, "home", tmp_path_factory.mktemp("home"), operators)


@pytest.fixture(scope="module")
def operator(home: Cluster) -> Iterator[OperatorProcess]:
    """An operator for the whole cluster, which does not wait long for nodes that are gone."""
    with home.operator(cluster_wide=True, MODELPRESS_LOST_POD_SECONDS=str(LOST_POD_SECONDS)) as operator:
        operator.wait_ready()
        yield operator
        assert operator.running
    assert not [line for line in operator.lines() if "error" in line]


@pytest.fixture(scope="module")
def stories(home: Cluster, operator: OperatorProcess) -> Iterator[dict[str, Future[Story]]]:
    """Every case, on its way."""
    with Recorder(home.plane) as recorder, ThreadPoolExecutor(len(CASES)) as threads:
        scenes = {f"f-{case.name}": Scene(case, home.plane, recorder) for case in CASES}
        home.kubelet.script = lambda request: fate(scenes.get(request["namespace"]), request)
        yield {scene.case.name: threads.submit(play, scene) for scene in scenes.values()}
        for scene in scenes.values():
            scene.gate.set()


def fate(scene: Scene | None, request: dict[str, Any]) -> Fate:
    """What becomes of a pod: of a trial as the case says, of any other success."""
    fates = scene.case.fates if scene is not None and request["purpose"] == "trial" else ()
    if scene is None or request["attempt"] > len(fates):
        return Fate()
    chosen = fates[request["attempt"] - 1]
    return Fate(**{**vars(chosen), "gate": scene.gate}) if scene.case.gated else chosen


def play(scene: Scene) -> Story:
    """From the object's creation to its end."""
    case, recorder = scene.case, scene.recorder
    scene.plane.request("POST", "/api/v1/namespaces", {"metadata": {"name": scene.namespace}})
    if case.arrange is not None:
        case.arrange(scene)
    scene.send("POST", scene.own().rpartition("/")[0], case.body())

    def own(seen: Seen) -> bool:
        return scene.here(seen, case.kind) and seen.name == case.name and seen.type != "DELETED"

    if case.act is not None:
        running = recorder.first(
            "a run", lambda s: scene.here(s, "CompressionJob") and s.status.get("phase") == "Running"
        )
        case.act(scene)
        since = running.at
    else:
        since = 0.0
    cause = recorder.first(
        f"{case.name}: the cause", lambda s: s.namespace == scene.namespace and case.cause(s), after=since
    )
    told = recorder.first(f"{case.name}: {case.reason}", lambda s: own(s) and case.told(s), after=since)
    if case.mend is not None:
        case.mend(scene)
    last = recorder.first(f"{case.name} to end", lambda s: own(s) and s.status.get("phase") in ("Succeeded", "Failed"))
    jobs = [item["metadata"]["name"] for item in scene.send("GET", "/apis/batch/v1//jobs")["items"]]
    return Story(cause, told, last.object, sorted(jobs))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_cause_is_told_and_the_object_recovers_where_it_can(stories: dict[str, Future[Story]], case: Case) -> None:
    """Within ten seconds of its cause being visible; what counts as failed, disrupted or neither; how it ends."""
    story = stories[case.name].result(120)
    assert story.told.version > story.cause.version
    seconds = story.told.at - story.cause.at - case.later
    print(f"{case.name}: {case.reason} told after {seconds:.1f} s")
    assert seconds <= BOUND
    status = story.done["status"]
    assert (status["phase"], condition(story.done, "Ready")["reason"]) == (case.ends, case.ending)
    # Whatever kept it waiting or stalled is gone from a status that ends well.
    assert condition(story.done, "Stalled")["status"] == str(case.ends == "Failed")
    if case.kind == "CompressionSweep":
        assert (status["trials"]["lost"], status["trials"]["succeeded"]) == (case.lost, 2 - case.lost)
        return
    assert tuple(attempt["outcome"] for attempt in status["attempts"]) == case.outcomes
    assert (status["failures"], status["disruptions"]) == (case.failures, case.disruptions)
    attempts = [name for name in story.jobs if not name.endswith("-collect")]
    assert len(attempts) <= len(case.outcomes)


def test_a_spec_that_is_edited_while_it_runs(home: Cluster, operator: OperatorProcess) -> None:
    """The API server refuses it with a sentence, and the run goes on."""
    home.kubelet.script = lambda request: Fate(run=2.5)
    home.create(job("edited"))
    home.wait_for("CompressionJob", "edited", "Running")
    with pytest.raises(urllib.error.HTTPError) as refused:
        home.patch("CompressionJob", "edited", {"spec": {"seed": 5}})
    with refused.value as error:
        assert error.code == 422
        assert "seed is immutable; create a new object" in json.loads(error.read())["message"]
    done = home.wait_for("CompressionJob", "edited", "Succeeded")
    assert (done["status"]["started"], done["metadata"]["generation"]) == (1, 1)
