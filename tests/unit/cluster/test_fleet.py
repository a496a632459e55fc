"""A fleet of finished trials: what the cache and the sweep's view keep of each, and that nothing is missed.

fleet.json holds a finished trial, its Job and its pod, and their sweep, as an API server serves them.
"""

from __future__ import annotations

import datetime as dt
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from modelpress.api.json_numbers import to_json_numbers
from modelpress.api.v1alpha1 import CompressionJob
from modelpress.reconcile import PatchStatus, Plan, SweepObserved, reconcile_sweep
from modelpress.search import strategy_for
from modelpress_operator.cache import Cache
from modelpress_operator.compact import transform
from modelpress_operator.failed_create import FailedCreateEvents
from modelpress_operator.memory import MemoryClient
from modelpress_operator.resources import COMPRESSION_JOBS, COMPRESSION_SWEEPS, JOBS, PODS, RawObject
from modelpress_operator.snapshot import Problems, Snapshots

TEXT = (Path(__file__).parent / "fleet.json").read_text()
NOW = dt.datetime(2027, 1, 1, tzinfo=dt.UTC)
KIB_EACH = 24  # of a trial, its Job, its pod, and the sweep's view of it; 10,000 are then below 240 MiB


def fleet() -> dict[str, RawObject]:
    """`cr`, `job`, `pod` and `sweep`; a copy of one's own."""
    found: dict[str, RawObject] = json.loads(TEXT)
    return found


def trial(number: int, phase: str = "Succeeded", score: float = 0.5, met: str = "True", **spec: Any) -> RawObject:
    """A trial of the sweep that ended so."""
    raw = fleet()["cr"]
    meta, status = raw["metadata"], raw["status"]
    meta |= {"name": f"search-{number:05d}", "uid": f"uid-{number}", "resourceVersion": str(1000 + number)}
    meta["labels"]["modelpress.dev/trial"] = str(number)
    meta["annotations"]["modelpress.dev/parameters"] = json.dumps({"sparsity": 0.1 + number / 20000})
    raw["spec"] |= spec
    status |= {"phase": phase, "activeSeconds": 1.5 * number}
    moment = (NOW + dt.timedelta(seconds=1.37 * number)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    for item in status["conditions"]:
        item |= {"lastTransitionTime": moment, **({"status": met} if item["type"] == "ConstraintsMet" else {})}
    if phase == "Succeeded":
        status["metrics"]["compressed"] = {"default": score, "macs": 1000 * score, "sizeBytes": 7.5 + number}
        status["artifact"]["manifestDigest"] = f"{number:064x}"
    else:
        del status["metrics"], status["artifact"]
    return raw


def children(number: int) -> tuple[RawObject, RawObject]:
    """The Job and the pod of such a trial."""
    job, pod = fleet()["job"], fleet()["pod"]
    moment = (NOW + dt.timedelta(seconds=number)).isoformat(timespec="seconds").replace("+00:00", "Z")
    name = f"search-{number:05d}"
    job["metadata"] |= {"name": f"{name}-1", "uid": f"job-{number}", "creationTimestamp": moment}
    job["metadata"]["ownerReferences"][0] |= {"name": name, "uid": f"uid-{number}"}
    job["status"] |= {"startTime": moment, "completionTime": moment}
    pod["metadata"] |= {"name": f"{name}-1-abcde", "uid": f"pod-{number}"}
    pod["metadata"]["ownerReferences"][0] |= {"name": f"{name}-1", "uid": f"job-{number}"}
    ended = pod["status"]["containerStatuses"][0]["state"]["terminated"]
    ended |= {"message": ended["message"] + " " * (number % 7), "startedAt": moment, "finishedAt": moment}
    return job, pod


def test_a_finished_trial_takes_little_memory() -> None:
    """Measured for 500 that differ as real ones do: in names, times, scores, digests and messages."""
    cache = Cache()
    snapshots = Snapshots(cache, FailedCreateEvents(MemoryClient()))
    sweep = transform(COMPRESSION_SWEEPS, fleet()["sweep"])
    count = 500
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(count):
            cache.put(COMPRESSION_JOBS, trial(number))
            for resource, obj in zip((JOBS, PODS), children(number), strict=True):
                cache.put(resource, obj)
        for raw in cache.all(COMPRESSION_JOBS):
            snapshots.trial(raw, sweep)
        each = (tracemalloc.get_traced_memory()[0] - before) / count / 1024
    finally:
        tracemalloc.stop()
    print(f"{each:.1f} KiB for each finished trial")
    assert each <= KIB_EACH


def test_parts_that_objects_share_are_there_once() -> None:
    """What is equal in two specs is one object; what differs is each one's own, and all is what it was."""
    first, second = (transform(COMPRESSION_JOBS, trial(number)) for number in (1, 2))
    for key in ("benchmark", "model", "store", "target"):
        assert first["spec"][key] is second["spec"][key]
    for number, found in ((1, first), (2, second)):
        raw = trial(number)
        del raw["metadata"]["managedFields"]
        assert found == raw


def test_a_long_spec_is_kept_whole() -> None:
    """Parts that are too long to be looked up are kept as they are, with what is in them."""
    raw = trial(1, model={"entrypoint": "a:b", "args": {"text": "x" * 5000, "list": [1, None, 2.5, "ü"]}})
    assert transform(COMPRESSION_JOBS, raw)["spec"] == raw["spec"]


CONSTRAINED = [{"metric": "default", "max": 0.4}]


@pytest.mark.parametrize(
    "trials",
    [
        [trial(0, score=0.75), trial(1, score=0.5)],
        [trial(0, score=0.75), trial(1, "Failed")],
        [trial(0, "Stopped"), trial(1, "Failed")],
        [trial(0, score=0.75, constraints=CONSTRAINED), trial(1, score=0.25, constraints=CONSTRAINED)],
        [trial(0, met="False", constraints=[{"metric": "latencyMs", "max": 1.0}]), trial(1, score=0.25)],
        [trial(0, score=0.75, metrics={"default": {"goal": "minimize"}}), trial(1, score=0.5)],
    ],
    ids=["succeeded", "failed", "none", "constrained", "unmeasured", "minimized"],
)
@pytest.mark.parametrize("more", [{}, {"status": {}}, {"maxTrials": 5}], ids=["finished", "new", "goes on"])
def test_a_sweep_decides_the_same_on_what_is_kept(trials: list[RawObject], more: dict[str, Any]) -> None:
    """A plan made of the views that are kept equals the one made of whole trials."""
    body = fleet()["sweep"]
    body["spec"] |= {key: value for key, value in more.items() if key != "status"}
    body["status"] = more.get("status", body["status"])
    raw = transform(COMPRESSION_SWEEPS, body)
    cache = Cache()
    cache.put(COMPRESSION_SWEEPS, raw)
    for one in trials:
        cache.put(COMPRESSION_JOBS, one)
    snapshots = Snapshots(cache, FailedCreateEvents(MemoryClient()))
    seen = snapshots.observe_sweep(raw, Problems(), NOW)
    whole = tuple(CompressionJob.model_validate(to_json_numbers(one)) for one in trials)
    assert decided(seen) == decided(SweepObserved(seen.sweep, whole, seen.children))


def decided(observed: SweepObserved) -> Plan:
    """The plan of a search that begins anew, its status as JSON."""
    plan = reconcile_sweep(observed, NOW, strategy_for(observed.sweep.spec))
    return Plan(
        tuple(one.status.to_dict() if isinstance(one, PatchStatus) else one for one in plan.actions),  # type: ignore[misc]
        plan.requeue_after,
    )


def test_a_view_is_the_same_object_until_the_trial_changes() -> None:
    """The search recognises trials by identity; a job that has finished is still read whole when it is looked at."""
    cache, raw = Cache(), transform(COMPRESSION_SWEEPS, fleet()["sweep"])
    cache.put(COMPRESSION_JOBS, trial(0))
    snapshots = Snapshots(cache, FailedCreateEvents(MemoryClient()))
    there = cache.get(COMPRESSION_JOBS, "bench", "search-00000")
    assert there is not None
    view = snapshots.trial(there, raw)
    assert len(snapshots.job(there).status.conditions) == 10
    assert snapshots.trial(there, raw) is view
    newer = trial(0, score=0.125)
    newer["metadata"]["resourceVersion"] = "9999"
    cache.put(COMPRESSION_JOBS, newer)
    there = cache.get(COMPRESSION_JOBS, "bench", "search-00000")
    assert there is not None
    again = snapshots.trial(there, raw)
    assert again is not view
    assert again.status.metrics is not None
    assert again.status.metrics.compressed["default"] == 0.125
