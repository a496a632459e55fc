"""The operator as a process on a real control plane: a fake kubelet plays the pods, everything else is real."""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from typing import Any

import pytest
from control_plane import ControlPlane
from fake_kubelet import Connection, Fate, Run
from operator_cluster import API, PLURAL, WRITES, Cluster, condition, job, parameters, sweep
from operator_process import OperatorProcess, until

from modelpress.result import RunResult


@pytest.fixture(scope="module")
def undisturbed(control_plane: ControlPlane) -> list[str]:
    """The parameters of the first 30 trials of the random sweep, as the search gives them without any operator."""
    from modelpress.api.load import load_dict
    from modelpress.api.v1alpha1 import CompressionSweep
    from modelpress.search import strategy_for
    from modelpress.trials import History

    loaded = load_dict(sweep("search", 30))
    assert isinstance(loaded, CompressionSweep)
    strategy = strategy_for(loaded.spec)
    return [json.dumps(dict(strategy.suggest(n, History(), {}).parameters), sort_keys=True) for n in range(30)]


def test_a_job_completes(cluster: Cluster) -> None:
    """A cluster-wide operator makes one Job and one pod of a job, and its status says what the pod reported."""
    with cluster.operator(cluster_wide=True, warm=False) as operator:
        operator.wait_ready()
        made = cluster.create(job("half"))
        done = cluster.wait_for("CompressionJob", "half", "Succeeded")
        root = f"{cluster.namespace}/half-{made['metadata']['uid'][:8]}"
        assert done["status"]["artifact"]["uri"] == f"s3://models/out/{root}"
        assert done["status"]["artifact"]["manifestDigest"] == cluster.kubelet.store[root]["manifestDigest"]
        assert done["status"]["metrics"]["compressed"] == {"default": 0.95, "macs": 500, "sizeBytes": 2000}
        assert condition(done, "Complete")["status"] == "True"
        assert condition(done, "ConstraintsMet")["reason"] == "NoConstraints"
        assert [run.job for run in cluster.kubelet.of(cluster.namespace)] == ["half-1"]
        until(lambda: len(cluster.list("apis/events.k8s.io/v1/events")) >= 3, "the events")
        ours = [e for e in cluster.list("apis/events.k8s.io/v1/events") if e["regarding"]["kind"] == "CompressionJob"]
        assert {event["reportingController"] for event in ours} == {"modelpress.dev/operator"}
        assert "Succeeded" in {event["reason"] for event in ours}
        assert operator.get("/healthz") == (200, "ok\n")
        assert operator.metric("modelpress_leader") == 1
        assert operator.metric("modelpress_jobs", phase="Succeeded") == 1
        assert operator.metric("modelpress_job_duration_seconds_count", result="Succeeded") == 1
        assert operator.metric("modelpress_api_requests_total", verb="create", resource="jobs", code="201") == 1
        assert operator.metric("modelpress_watch_last_activity_timestamp_seconds", resource="pods") > time.time() - 60
        assert operator.stop() == 0
    assert {"ts", "level", "logger", "msg"} <= set(next(operator.lines()))
    about = next(line for line in operator.lines() if "CreateJob" in line["msg"])
    keys = ("controller", "namespace", "name", "uid", "generation")
    assert [about[key] for key in keys] == [
        "compressionjob",
        cluster.namespace,
        "half",
        made["metadata"]["uid"],
        1,
    ]


def test_a_sweep_of_a_newer_image_has_its_best_and_front(cluster: Cluster) -> None:
    """Pods of a runner one release ahead: 20 further metrics, unknown keys, and the objectives that requests name."""
    further = [f"recall_at_{index:02d}_of_the_validation_split" for index in range(20)]

    def newer(request: dict[str, Any]) -> Fate:
        if request["purpose"] != "trial":
            return Fate(run=0.1)
        result = cluster.kubelet.commit(request)
        compressed = result["compressed"] | {"speedup": result["baseline"]["macs"] / result["compressed"]["macs"]}
        more = dict.fromkeys(further, 0.12345678901234567)
        sides = {"baseline": result["baseline"] | more, "compressed": compressed | more}
        text = RunResult.model_validate(result | sides).to_message(request["keepMetrics"])
        assert len(text) <= 1024
        message = json.loads(text) | {"peakMemory": {"trainBytes": 5}, "uncertain": ["speedup"]}
        return Fate(run=0.1, message=json.dumps(message))

    cluster.kubelet.script = newer
    document = sweep("ahead", 4)
    document["spec"]["objectives"] = [{"metric": "default"}, {"metric": "speedup"}]
    with cluster.operator() as operator:
        operator.wait_ready()
        cluster.create(document)
        done = cluster.wait_for("CompressionSweep", "ahead", "Succeeded", seconds=90)
        trials = cluster.trials()
    assert [
        run.request["keepMetrics"] for run in cluster.kubelet.of(cluster.namespace) if run.request.get("trial")
    ] == [["default", "speedup"]] * 4
    scores = [trial["status"]["metrics"]["compressed"] for trial in trials]
    assert all({"default", "speedup"} <= set(score) for score in scores)
    best = max(range(4), key=lambda number: scores[number]["default"])
    assert done["status"]["best"]["number"] == best
    assert done["status"]["front"] == [0, 1, 2, 3]  # the better the score, the slower


@pytest.mark.parametrize("run", [0.1, 4.0], ids=["short", "long"])
def test_a_sweep_completes_within_its_budget_of_writes(cluster: Cluster, undisturbed: list[str], run: float) -> None:
    """30 trials, a few at a time: at most five writes each, no reading but of watches, none at all after a restart."""
    cluster.kubelet.script = lambda request: Fate(run=run if request["purpose"] == "trial" else 0.1)
    with cluster.operator() as operator:
        operator.wait_ready()
        before, began = cluster.audit_size(), time.monotonic()
        cluster.create(sweep("search", 30, parallelism=4 if run < 1 else 10))
        done = cluster.wait_for("CompressionSweep", "search", "Succeeded", seconds=90)
        trials, seconds = cluster.trials(), time.monotonic() - began
        asked = cluster.requests(before)
    assert parameters(trials) == undisturbed
    assert done["status"]["trials"] == {
        **dict.fromkeys(("pending", "running", "suspended", "infeasible", "failed", "stopped", "lost", "refused"), 0),
        "succeeded": 30,
    }
    scores = {trial["status"]["metrics"]["compressed"]["default"]: trial["metadata"]["name"] for trial in trials}
    assert done["status"]["best"]["name"] == scores[max(scores)]
    assert Counter(
        run.request["purpose"] for run in cluster.kubelet.runs.values() if run.namespace == cluster.namespace
    ) == {
        "prepare": 1,
        "trial": 30,
        "publish": 1,
    }
    writes, reads = counted(asked)
    print(f"writes of 30 trials that run {run} s: {writes}; {sum(writes.values()) / 30:.2f} per trial, all counted")
    assert not reads
    assert writes["create", "jobs", None] == 32
    assert writes["create", "compressionjobs", None] == 30
    # A trial's status tells that it runs, where it runs for longer than a moment, and how it ended; on a slow machine
    # also that it waits for its pod, which an Event tells too. The sweep's is written at its beginning, around its two
    # Jobs, at most once for each trial that ends, and for its counters, as progress, at most every thirty seconds.
    waited = sum(
        event["reason"] == "Pending" and event["regarding"]["name"].startswith("search-0")
        for event in cluster.list("apis/events.k8s.io/v1/events")
    )
    own, counters = 2 + 8, 1 + int(seconds / 30)
    assert writes["patch", "compressionjobs", "status"] - waited <= 60
    assert writes["patch", "compressionsweeps", "status"] <= 30 + 8 + counters
    assert (sum(writes.values()) - own - counters - waited) / 30 <= 5

    before = cluster.audit_size()
    with cluster.operator() as operator:
        operator.wait_ready()
        until(lambda: operator.metric("modelpress_reconcile_total", result="unchanged") >= 31, "a look at all objects")
        assert operator.metric("modelpress_reconcile_total", result="acted") == 0
        assert operator.stop() == 0
    assert [event["requestURI"] for event in cluster.requests(before) if event["verb"] in WRITES] == []


def counted(asked: list[dict[str, Any]]) -> tuple[Counter[Any], list[Any]]:
    """Writes by (verb, resource, subresource), Events apart; reads of objects other than watches."""
    about = [(one["verb"], one["objectRef"]) for one in asked if "objectRef" in one]
    verbs = Counter((verb, what["resource"], what.get("subresource")) for verb, what in about)
    writes = Counter({key: count for key, count in verbs.items() if key[0] in WRITES and key[1] != "events"})
    return writes, [key for key in verbs if key[0] in ("get", "list")]


def test_a_restart_over_two_hundred_finished_objects_writes_nothing(cluster: Cluster) -> None:
    """Jobs that succeeded and that failed, sweeps with their trials: all are looked at, none is written."""
    cluster.kubelet.script = lambda run: Fate(exit_code=2) if run["name"] == "bad" else Fate()
    with cluster.operator() as operator:
        operator.wait_ready()
        for body in (job("good"), job("bad"), sweep("search", 2)):
            cluster.create(body)
        done = [cluster.wait_for("CompressionJob", "good", "Succeeded")]
        done.append(cluster.wait_for("CompressionJob", "bad", "Failed"))
        finished = cluster.wait_for("CompressionSweep", "search", "Succeeded")
        trials = [one for one in cluster.trials() if one["metadata"]["name"].startswith("search-")]
        assert operator.stop() == 0
    with contextlib.closing(Connection(cluster.plane)) as talk:
        copies = [copy_of(cluster, talk, done[number % 2], f"copy-{number}") for number in range(140)]
        for number in range(20):
            made = copy_of(cluster, talk, finished, f"again-{number}")
            copies.append(made)
            copies += [copy_of(cluster, talk, trial, f"again-{number}-{n:05d}", made) for n, trial in enumerate(trials)]
    assert len(copies) == 200
    before = cluster.audit_size()
    with cluster.operator() as operator:
        operator.wait_ready()
        until(lambda: operator.metric("modelpress_reconcile_total", result="unchanged") >= 205, "a look at all objects")
        assert operator.metric("modelpress_reconcile_total") == operator.metric(
            "modelpress_reconcile_total", result="unchanged"
        )
        assert operator.stop() == 0
    writes, reads = counted(cluster.requests(before))
    assert (writes, [key for key in reads if key[0] == "get"]) == (Counter(), [])
    versions = {one["metadata"]["uid"]: one["metadata"]["resourceVersion"] for one in copies}
    now = {one["metadata"]["uid"]: one["metadata"]["resourceVersion"] for one in cluster.trials()}
    assert versions.items() & now.items() == {pair for pair in versions.items() if pair[0] in now}


def copy_of(
    cluster: Cluster, talk: Connection, one: dict[str, Any], name: str, owner: dict[str, Any] | None = None
) -> dict[str, Any]:
    """An object with the spec and the status of another one, as it is stored."""
    meta = {"name": name, **{key: one["metadata"][key] for key in ("labels", "annotations") if key in one["metadata"]}}
    if owner is not None:
        ref = one["metadata"]["ownerReferences"][0]
        meta["ownerReferences"] = [{**ref, **{key: owner["metadata"][key] for key in ("name", "uid")}}]
    path = f"{API}/{cluster.namespace}/{PLURAL[one['kind']]}"
    _, made = talk("POST", path, {**{key: one[key] for key in ("apiVersion", "kind", "spec")}, "metadata": meta})
    _, made = talk("PATCH", f"{path}/{name}/status", {"status": one["status"]})
    return made


def test_killed_at_random_moments_a_sweep_ends_the_same(cluster: Cluster, undisturbed: list[str]) -> None:
    """SIGKILL, up to 15 times: still exactly 30 trials, none run twice, with the parameters of an undisturbed run."""
    chance = random.Random(4)
    cluster.kubelet.script = lambda run: Fate(run=chance.uniform(1, 3))
    cluster.create(sweep("search", 30))
    with cluster.operator() as operator:
        operator.wait_ready()
        kills = 0
        while kills < 15 and cluster.phase("CompressionSweep", "search") != "Succeeded":
            time.sleep(chance.uniform(0.02, 0.6))
            operator.kill()
            kills += 1
            operator.start()
            operator.wait_ready()
        done = cluster.wait_for("CompressionSweep", "search", "Succeeded", seconds=120)
    assert kills >= 10  # on a machine where starting takes long, the trials are over before the last ones
    check_sweep(cluster, done, undisturbed)


def check_sweep(cluster: Cluster, done: dict[str, Any], expected: list[str]) -> None:
    """Every trial ran, once, with its parameters."""
    assert parameters(cluster.trials()) == expected
    assert done["status"]["created"] == len(expected)
    assert done["status"]["trials"]["succeeded"] == len(expected)
    assert done["status"]["trials"]["lost"] == 0
    runs = Counter(run.request["name"] for run in cluster.kubelet.of(cluster.namespace))
    assert runs == {trial["metadata"]["name"]: 1 for trial in cluster.trials()}


def test_a_follower_takes_over_when_the_leader_dies(cluster: Cluster, undisturbed: list[str]) -> None:
    """Of two replicas one writes; when it is killed the other goes on where it stood."""
    cluster.kubelet.script = lambda run: Fate(run=0.5)
    with (
        cluster.operator(identity="first", lease_seconds=3) as first,
        contextlib.ExitStack() as stack,
    ):
        first.wait_ready()
        until(lambda: first.metric("modelpress_leader") == 1, "the first to lead")
        second = stack.enter_context(cluster.operator(identity="second", lease_seconds=3))
        second.wait_ready()
        cluster.create(sweep("search", 12))
        until(lambda: len(cluster.trials()) >= 5, "the sweep to be under way")
        assert second.metric("modelpress_leader") == 0
        assert second.metric("modelpress_reconcile_total") == 0
        first.kill()
        until(lambda: second.metric("modelpress_leader") == 1, "the second to lead")
        done = cluster.wait_for("CompressionSweep", "search", "Succeeded", seconds=90)
        lease = cluster.plane.request(
            "GET", f"/apis/coordination.k8s.io/v1/namespaces/{cluster.namespace}/leases/modelpress-operator"
        )
        assert lease["spec"]["holderIdentity"] == "second"
        second.stop()
        lease = cluster.plane.request(
            "GET", f"/apis/coordination.k8s.io/v1/namespaces/{cluster.namespace}/leases/modelpress-operator"
        )
        assert not lease["spec"].get("holderIdentity")
    check_sweep(cluster, done, undisturbed[:12])


def test_a_leader_that_loses_its_lease_ends(cluster: Cluster) -> None:
    """Once another holder stands in the Lease the process exits, with a code that makes its container start again."""
    with cluster.operator(lease_seconds=3) as operator:
        until(lambda: operator.metric("modelpress_leader") == 1, "the operator to lead")
        path = f"/apis/coordination.k8s.io/v1/namespaces/{cluster.namespace}/leases/modelpress-operator"
        body = {"spec": {"holderIdentity": "somebody else"}}
        cluster.plane.request("PATCH", path, body, content_type="application/merge-patch+json")
        assert operator.wait() == 1
    assert "was lost" in operator.tail()


def test_results_are_collected_when_the_operator_missed_the_end(cluster: Cluster) -> None:
    """While nobody watched, runs ended and their pods were deleted: a collect Job tells what was committed."""
    gate = threading.Event()
    cluster.fate_of("trial", Fate(gate=gate))
    with cluster.operator() as operator:
        operator.wait_ready()
        cluster.create(job("half"))
        cluster.create(job("lost"))
        cluster.wait_for("CompressionJob", "half", "Running")
        cluster.wait_for("CompressionJob", "lost", "Running")
        operator.kill()
        gate.set()
        until(lambda: len([j for j in cluster.list("apis/batch/v1/jobs") if j["status"].get("succeeded")]) == 2, "ends")
        lost = next(run for run in cluster.kubelet.of(cluster.namespace) if run.request["name"] == "lost")
        del cluster.kubelet.store[lost.request["prefix"]]
        for pod in cluster.list("api/v1/pods"):
            cluster.plane.request("DELETE", f"/api/v1/namespaces/{cluster.namespace}/pods/{pod['metadata']['name']}")
        until(lambda: not cluster.list("api/v1/pods"), "the pods to be gone")
        operator.start()
        done = cluster.wait_for("CompressionJob", "half", "Succeeded", seconds=40)
        again = cluster.wait_for("CompressionJob", "lost", "Succeeded", seconds=40)
    assert done["status"]["started"] == 1
    assert done["status"]["metrics"]["compressed"]["macs"] == 500
    jobs = sorted(run.job for run in cluster.kubelet.runs.values() if run.namespace == cluster.namespace)
    assert jobs == ["half-1", "half-1-collect", "lost-1", "lost-1-collect", "lost-2"]
    assert [attempt["outcome"] for attempt in again["status"]["attempts"]] == ["Failed", "Succeeded"]


def test_suspend_and_resume(shared: Cluster) -> None:
    """Suspending a sweep ends its runs after a checkpoint; resuming goes on, and nothing counts as failed."""
    shared.fate_of("trial", Fate(run=60))
    shared.create(sweep("paused", 2, parallelism=2))
    names = ("paused-00000", "paused-00001")

    def runs() -> list[Run]:
        return [run for run in shared.kubelet.of(shared.namespace) if run.request["name"] in names]

    until(lambda: [run.phase for run in runs()] == ["Running"] * 2, "two runs")
    for trial in names:
        shared.wait_for("CompressionJob", trial, "Running")
    shared.patch("CompressionSweep", "paused", {"spec": {"suspend": True}})
    shared.wait_for("CompressionSweep", "paused", "Suspended")
    for trial in names:
        shared.wait_for("CompressionJob", trial, "Suspended")
    until(lambda: [run.phase for run in runs()] == ["Terminated"] * 2, "both to end by SIGTERM")
    shared.patch("CompressionSweep", "paused", {"spec": {"suspend": False}})
    shared.wait_for("CompressionSweep", "paused", "Succeeded")
    for trial in names:
        status = shared.get("CompressionJob", trial)["status"]
        assert [attempt["outcome"] for attempt in status["attempts"]] == ["Suspended", "Succeeded"]
        assert (status["failures"], status["disruptions"], status["started"]) == (0, 0, 2)


def test_what_may_change_in_a_running_sweep_acts_and_loses_nothing(shared: Cluster) -> None:
    """More trials at one time, a pause, a higher limit: all by patches, and each trial runs once to its end."""
    gate = threading.Event()
    shared.kubelet.script = lambda run: Fate(gate=gate) if run["purpose"] == "trial" else Fate()
    shared.create(sweep("patched", 4, parallelism=1))

    def running() -> list[str]:
        runs = shared.kubelet.of(shared.namespace)
        return sorted(
            run.request["name"] for run in runs if run.phase == "Running" and "patched" in run.request["name"]
        )

    def are_running(count: int) -> bool:
        return running() == [f"patched-{number:05d}" for number in range(count)]

    until(lambda: are_running(1), "one run")
    shared.patch("CompressionSweep", "patched", {"spec": {"parallelism": 3}})
    until(lambda: are_running(3), "three runs")
    shared.patch("CompressionSweep", "patched", {"spec": {"suspend": True}})
    until(lambda: running() == [], "all to end by SIGTERM")
    shared.patch("CompressionSweep", "patched", {"spec": {"suspend": False, "maxTrials": 6}})
    until(lambda: are_running(3), "three runs again")
    gate.set()
    done = shared.wait_for("CompressionSweep", "patched", "Succeeded")
    counts = done["status"]["trials"]
    assert (counts["succeeded"], counts.get("failed", 0), counts.get("lost", 0)) == (6, 0, 0)
    for number in range(6):
        status = shared.get("CompressionJob", f"patched-{number:05d}")["status"]
        assert (status["failures"], status["disruptions"]) == (0, 0)


def test_a_running_trial_reports_its_progress(shared: Cluster, shared_operator: OperatorProcess) -> None:
    """A token of its pod opens the door: the report is in the status while the trial runs. No other token does."""
    gate = threading.Event()
    shared.fate_of("trial", Fate(gate=gate))
    shared.create(job("long"))
    run = until(
        lambda: next((r for r in shared.kubelet.of(shared.namespace) if r.request["name"] == "long"), None), "the pod"
    )
    shared.wait_for("CompressionJob", "long", "Running")
    path = f"/api/v1/namespaces/{shared.namespace}/serviceaccounts/default/token"
    bound = {"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": run.pod, "uid": run.uid}}

    def report(spec: dict[str, Any]) -> int:
        token = shared.plane.request("POST", path, {"spec": {"expirationSeconds": 600, **spec}})["status"]["token"]
        body = {
            "stage": "prune",
            "step": 2,
            "total": 8,
            "points": [{"step": 1, "value": 0.5}, {"step": 2, "value": 0.75}],
        }
        request = urllib.request.Request(
            f"http://127.0.0.1:{shared_operator.port}/progress",
            json.dumps(body).encode(),
            {"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    assert report({"audiences": ["modelpress-progress"]}) == 401
    assert report(bound) == 401
    assert report({"audiences": ["modelpress-progress"], **bound}) == 202
    until(lambda: shared.get("CompressionJob", "long")["status"].get("intermediate"), "the report", context=shared.logs)
    status = shared.get("CompressionJob", "long")["status"]
    assert [(point["step"], point["value"]) for point in status["intermediate"]] == [(1, 0.5), (2, 0.75)]
    assert status["phase"] == "Running"
    gate.set()
    done = shared.wait_for("CompressionJob", "long", "Succeeded")
    assert [point["step"] for point in done["status"]["intermediate"]] == [1, 2]
    assert shared_operator.metric("modelpress_progress_requests_total", code="202") == 1


def test_what_no_pod_can_honour_is_refused(shared: Cluster) -> None:
    """A store on a laptop's disk stalls the job, with the field's path; nothing is created."""
    shared.create(job("laptop", store={"uri": "file:///tmp/out"}))
    stalled = shared.wait_condition("CompressionJob", "laptop", "Stalled", status="True")
    assert stalled["reason"] == "NotOnCluster"
    assert "spec.store" in stalled["message"]
    assert [one for one in shared.list("apis/batch/v1/jobs") if one["metadata"]["name"].startswith("laptop")] == []
