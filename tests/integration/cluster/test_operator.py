"""The operator as a process on a real control plane: a fake kubelet plays the pods, everything else is real."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from control_plane import ControlPlane
from fake_kubelet import FakeKubelet, Fate, Run
from operator_process import ACCOUNT, OperatorProcess, make_account, until

API = "/apis/modelpress.dev/v1alpha1/namespaces"
MODEL = {"entrypoint": "digits:create"}
STORE = {"uri": "s3://models/out"}
WRITES = ("create", "patch", "update", "delete")


def job(name: str, **spec: Any) -> dict[str, Any]:
    """A CompressionJob that halves the channels."""
    prune = {"algorithm": "l1", "configList": [{"opTypes": ["Conv2d"], "sparsity": 0.5}]}
    body = {"model": MODEL, "stages": [{"prune": prune}], "store": STORE, **spec}
    return {"apiVersion": "modelpress.dev/v1alpha1", "kind": "CompressionJob", "metadata": {"name": name}, "spec": body}


def sweep(name: str, trials: int, parallelism: int = 4, **spec: Any) -> dict[str, Any]:
    """A random search for a sparsity."""
    space = {"name": "sparsity", "paths": ["/stages/0/prune/configList/0/sparsity"], "float": {"min": 0.1, "max": 0.9}}
    body = {
        "template": {"spec": job("x")["spec"]},
        "searchSpace": [space],
        "objectives": [{"metric": "default"}, {"metric": "macs"}],
        "algorithm": {"name": "random", "seed": 7},
        "parallelism": parallelism,
        "maxTrials": trials,
        **spec,
    }
    return {
        "apiVersion": "modelpress.dev/v1alpha1",
        "kind": "CompressionSweep",
        "metadata": {"name": name},
        "spec": body,
    }


PLURAL = {"CompressionJob": "compressionjobs", "CompressionSweep": "compressionsweeps"}


class Cluster:
    """One namespace of the control plane, with a fake kubelet and a service account for the operator."""

    def __init__(self, plane: ControlPlane, kubelet: FakeKubelet, namespace: str, folder: Path) -> None:
        self.plane = plane
        self.kubelet = kubelet
        self.namespace = namespace
        self.folder = folder
        plane.kubectl("create", "namespace", namespace)

    def operator(self, *, cluster_wide: bool = False, **options: Any) -> OperatorProcess:
        """A replica that serves this namespace, or the cluster."""
        kubeconfig = self.folder / "operator.kubeconfig"
        if not kubeconfig.exists():
            made = make_account(self.plane, self.namespace, cluster_wide=cluster_wide)
            made.rename(kubeconfig)
        return OperatorProcess(kubeconfig, self.namespace, folder=self.folder, cluster_wide=cluster_wide, **options)

    def fate_of(self, purpose: str, fate: Fate, attempt: int = 1) -> None:
        """What becomes of one attempt's runs of a purpose; all else succeeds at once."""
        self.kubelet.script = lambda run: (
            fate
            if (run["purpose"], run["attempt"]) == (purpose, attempt) and run["namespace"] == self.namespace
            else Fate()
        )

    def create(self, body: dict[str, Any]) -> dict[str, Any]:
        """Create an object of ours."""
        answer: dict[str, Any] = self.plane.request("POST", f"{API}/{self.namespace}/{PLURAL[body['kind']]}", body)
        return answer

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """An object of ours."""
        answer: dict[str, Any] = self.plane.request("GET", f"{API}/{self.namespace}/{PLURAL[kind]}/{name}")
        return answer

    def patch(self, kind: str, name: str, body: dict[str, Any]) -> None:
        """Merge-patch an object of ours, as a user."""
        path = f"{API}/{self.namespace}/{PLURAL[kind]}/{name}"
        self.plane.request("PATCH", path, body, content_type="application/merge-patch+json")

    def list(self, path: str) -> list[dict[str, Any]]:
        """All objects of a collection in this namespace; `path` is such as apis/batch/v1 and jobs."""
        prefix, _, plural = path.rpartition("/")
        items: list[dict[str, Any]] = self.plane.request("GET", f"/{prefix}/namespaces/{self.namespace}/{plural}")[
            "items"
        ]
        return items

    def trials(self) -> list[dict[str, Any]]:
        """All CompressionJobs, by name."""
        return sorted(
            self.list("apis/modelpress.dev/v1alpha1/compressionjobs"), key=lambda one: one["metadata"]["name"]
        )

    def phase(self, kind: str, name: str) -> str | None:
        """The phase of an object of ours."""
        phase: str | None = self.get(kind, name).get("status", {}).get("phase")
        return phase

    def wait_for(self, kind: str, name: str, *phases: str, seconds: float = 60) -> dict[str, Any]:
        """The object once it is in one of these phases."""
        until(
            lambda: self.phase(kind, name) in phases,
            f"{kind} {name} to be {' or '.join(phases)}",
            seconds=seconds,
            context=lambda: json.dumps(self.get(kind, name).get("status"), indent=1) + self.logs(),
        )
        return self.get(kind, name)

    def wait_condition(self, kind: str, name: str, type_: str, **wanted: str) -> dict[str, Any]:
        """The condition of that type once its fields are as wanted."""
        return until(
            lambda: next((c for c in [condition(self.get(kind, name), type_)] if wanted.items() <= c.items()), None),
            f"{kind} {name} to have {type_} with {wanted}",
            context=lambda: json.dumps(self.get(kind, name).get("status"), indent=1) + self.logs(),
        )

    def logs(self) -> str:
        """The ends of the operators' logs."""
        return "\n".join(path.read_text()[-3000:] for path in sorted(self.folder.glob("operator-*.log")))

    def requests(self, since: int = 0) -> list[dict[str, Any]]:
        """What the operator's service account asked of the API server, from the audit log."""
        assert self.plane.audit_log is not None
        user = f"system:serviceaccount:{self.namespace}:{ACCOUNT}"
        lines = self.plane.audit_log.read_text().splitlines()
        found = [event for event in map(json.loads, lines[since:]) if event["user"]["username"] == user]
        return [event for event in found if event.get("objectRef", {}).get("resource") != "leases"]

    def audit_size(self) -> int:
        """Where the audit log ends now."""
        assert self.plane.audit_log is not None
        return len(self.plane.audit_log.read_text().splitlines())


def condition(obj: dict[str, Any], type_: str) -> dict[str, Any]:
    """A condition of an object, empty if it has none of that type."""
    conditions = obj.get("status", {}).get("conditions", [])
    return next((item for item in conditions if item["type"] == type_), {})


def parameters(trials: list[dict[str, Any]]) -> list[str]:
    """The parameters of trials, in the order of their numbers."""
    return [trial["metadata"]["annotations"]["modelpress.dev/parameters"] for trial in trials]


@pytest.fixture(scope="module")
def kubelet(control_plane: ControlPlane) -> Iterator[FakeKubelet]:
    """One fake kubelet for all tests of this file."""
    with FakeKubelet(control_plane) as kubelet:
        yield kubelet


@pytest.fixture
def cluster(control_plane: ControlPlane, kubelet: FakeKubelet, request: Any, tmp_path: Path) -> Iterator[Cluster]:
    """A namespace of its own; pods start at once, run 0.1 s and succeed, unless a test says otherwise."""
    number = next(_numbers)
    kubelet.script = lambda run: Fate()
    yield Cluster(control_plane, kubelet, f"op-{number}", tmp_path)
    kubelet.script = lambda run: Fate()


@pytest.fixture(scope="module")
def shared_cluster(control_plane: ControlPlane, kubelet: FakeKubelet, tmp_path_factory: Any) -> Cluster:
    """One namespace for the tests that need no restart of the operator."""
    return Cluster(control_plane, kubelet, "op-shared", tmp_path_factory.mktemp("shared"))


@pytest.fixture(scope="module")
def shared_operator(shared_cluster: Cluster) -> Iterator[OperatorProcess]:
    """Its operator; it never logs a traceback."""
    with shared_cluster.operator() as operator:
        operator.wait_ready()
        yield operator
        assert operator.running
    assert not [line for line in operator.lines() if "error" in line]


@pytest.fixture
def shared(shared_cluster: Cluster, shared_operator: OperatorProcess) -> Iterator[Cluster]:
    """The shared namespace and its operator; pods succeed at once unless a test says otherwise."""
    shared_cluster.kubelet.script = lambda run: Fate()
    yield shared_cluster
    shared_cluster.kubelet.script = lambda run: Fate()


_numbers = itertools.count(1)


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
    with cluster.operator(cluster_wide=True) as operator:
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


def test_a_sweep_completes_within_its_budget_of_writes(cluster: Cluster, undisturbed: list[str]) -> None:
    """30 trials, four at a time: few writes each, no reading but of watches, and none at all after a restart."""
    with cluster.operator() as operator:
        operator.wait_ready()
        before, began = cluster.audit_size(), time.monotonic()
        cluster.create(sweep("search", 30))
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
    verbs = Counter(
        (event["verb"], event["objectRef"]["resource"], event["objectRef"].get("subresource")) for event in asked
    )
    writes = {key: count for key, count in verbs.items() if key[0] in WRITES and key[1] != "events"}
    print(f"writes of a 30-trial sweep: {writes}; {sum(writes.values()) / 30:.2f} per trial, all counted")
    # Apart from what every trial needs: that a run which takes over two seconds runs (on a slow machine these do), the
    # counters every ten seconds, and the sweep's own preparing and publishing.
    starts = max(0, writes["patch", "compressionjobs", "status"] - 60)
    counters, own = 1 + int(seconds / 10), 8
    assert (sum(writes.values()) - starts - counters - own) / 30 <= 5
    assert writes["create", "jobs", None] == 32
    assert writes["create", "compressionjobs", None] == 30
    assert not [key for key in verbs if key[0] in ("get", "list")]

    before = cluster.audit_size()
    with cluster.operator() as operator:
        operator.wait_ready()
        until(lambda: operator.metric("modelpress_reconcile_total", result="unchanged") >= 31, "a look at all objects")
        assert operator.metric("modelpress_reconcile_total", result="acted") == 0
        assert operator.stop() == 0
    assert [event["requestURI"] for event in cluster.requests(before) if event["verb"] in WRITES] == []


def test_killed_at_random_moments_a_sweep_ends_the_same(cluster: Cluster, undisturbed: list[str]) -> None:
    """SIGKILL, 15 times: still exactly 30 trials, none run twice, with the parameters of an undisturbed run."""
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
    assert kills == 15
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


FAILURES = {
    "exit-1": (Fate(exit_code=1), "Failed", "RunnerFailed", "Succeeded"),
    "exit-2": (Fate(exit_code=2), "Invalid", "InvalidModel", "Failed"),
    "exit-143": (Fate(exit_code=143, message=""), "Disrupted", "RunnerTerminated", "Succeeded"),
    "memory": (Fate(exit_code=137, message="", reason="OOMKilled"), "Failed", "RunnerOOMKilled", "Succeeded"),
    "evicted": (
        Fate(exit_code=137, message="", disrupted="EvictionByEvictionAPI"),
        "Disrupted",
        "RunnerDisrupted",
        "Succeeded",
    ),
    "pressure": (Fate(exit_code=137, message="", evicted=True), "Disrupted", "RunnerDisrupted", "Succeeded"),
}


def test_failures_are_told_apart(shared: Cluster) -> None:
    """First attempts end badly; what their pods say decides whether it counts and whether another one starts."""
    shared.kubelet.script = lambda run: (
        FAILURES[run["name"]][0] if run["attempt"] == 1 and run["purpose"] == "trial" else Fate(commits=False)
    )
    for name in FAILURES:
        shared.create(job(name))
    for name, (_, outcome, reason, phase) in FAILURES.items():
        status = shared.wait_for("CompressionJob", name, "Succeeded", "Failed")["status"]
        first = status["attempts"][0]
        assert (name, first["outcome"], first["reason"], status["phase"]) == (name, outcome, reason, phase)
        assert (status["failures"], status["disruptions"]) == (outcome == "Failed", outcome == "Disrupted")


def test_a_name_that_somebody_else_has(shared: Cluster) -> None:
    """A foreign Job under the name that the first attempt would have: NameConflict until it is gone."""
    pod = {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "fake"}]}}
    path = f"/apis/batch/v1/namespaces/{shared.namespace}/jobs"
    shared.plane.request("POST", path, {"metadata": {"name": "taken-1"}, "spec": {"template": pod, "suspend": True}})
    shared.create(job("taken"))
    stalled = shared.wait_condition("CompressionJob", "taken", "Stalled", status="True")
    assert stalled["reason"] == "NameConflict"
    assert "taken-1" in stalled["message"]
    shared.plane.request("DELETE", f"{path}/taken-1?propagationPolicy=Background")
    done = shared.wait_for("CompressionJob", "taken", "Succeeded")
    assert (done["status"]["started"], done["status"]["failures"]) == (1, 0)


def test_suspend_and_resume(shared: Cluster) -> None:
    """Suspending a sweep ends its runs after a checkpoint; resuming goes on, and nothing counts as failed."""
    shared.fate_of("trial", Fate(run=60))
    shared.create(sweep("paused", 2, parallelism=2))
    names = ("paused-00000", "paused-00001")

    def runs() -> list[Run]:
        return [run for run in shared.kubelet.of(shared.namespace) if run.request["name"] in names]

    until(lambda: [run.phase for run in runs()] == ["Running"] * 2, "two runs")
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


def test_a_deadline_ends_a_run(shared: Cluster) -> None:
    """A run that takes longer than activeDeadlineSeconds is ended, and its job fails for that reason."""
    shared.fate_of("trial", Fate(run=60))
    shared.create(job("slow", activeDeadlineSeconds=3))
    done = shared.wait_for("CompressionJob", "slow", "Failed")
    assert condition(done, "Failed")["reason"] == "DeadlineExceeded"
    run = next(run for run in shared.kubelet.of(shared.namespace) if run.request["name"] == "slow")
    assert run.phase == "Terminated"


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


def test_an_image_that_cannot_be_pulled_is_told(shared: Cluster) -> None:
    """A container that waits shows why, in the condition that people look at."""
    shared.fate_of("trial", Fate(waiting="ImagePullBackOff"))
    shared.create(job("typo"))
    until(
        lambda: "ImagePullBackOff" in condition(shared.get("CompressionJob", "typo"), "Ready").get("message", ""),
        "the reason to be told",
        context=shared.logs,
    )
    assert shared.phase("CompressionJob", "typo") == "Pending"


def test_what_no_pod_can_honour_is_refused(shared: Cluster) -> None:
    """A store on a laptop's disk stalls the job, with the field's path; nothing is created."""
    shared.create(job("laptop", store={"uri": "file:///tmp/out"}))
    stalled = shared.wait_condition("CompressionJob", "laptop", "Stalled", status="True")
    assert stalled["reason"] == "NotOnCluster"
    assert "spec.store" in stalled["message"]
    assert [one for one in shared.list("apis/batch/v1/jobs") if one["metadata"]["name"].startswith("laptop")] == []
