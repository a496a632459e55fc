"""A kubelet without containers, for a control plane without nodes: it plays the pods that modelpress's Jobs get.

Pods are bound to one fake node, start, run for a while and end as a script says; the real Job controller does the rest.
What runners would write into the object store is kept in memory, so that collect and publish runs find it. A deleted
pod ends like one whose process got SIGTERM.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import heapq
import http.client
import itertools
import json
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from control_plane import ControlPlane

NODE = "fake-node"
SELECTOR = "app.kubernetes.io/managed-by=modelpress-operator"
SPEC = "modelpress.dev/spec"
INDEX = "batch.kubernetes.io/job-completion-index"
BASELINE = {"default": 1.0, "macs": 1000.0, "sizeBytes": 4000.0}


@dataclass(frozen=True)
class Fate:
    """What becomes of one pod. None for `message`: what the run would report; "" for none at all."""

    start: float = 0.02
    run: float = 0.1
    exit_code: int = 0
    message: str | None = None
    reason: str | None = None  # of the terminated container
    disrupted: str | None = None  # reason of a DisruptionTarget condition
    evicted: bool = False
    waiting: str | None = None  # reason for which the container does not start, until the gate is set
    unschedulable: bool = False  # no node takes the pod, until the gate is set
    deaf: bool = False  # does not end when it is deleted, like a pod on a node that is gone
    commits: bool = True  # whether the artifact reaches the store
    gate: threading.Event | None = None  # runs at least until it is set


# What becomes of a pod, by what it was asked to do; for a pod of an Indexed Job also by its `rank`.
Script = Callable[[dict[str, Any]], Fate]


@dataclass
class Run:
    """One pod, as it was seen; `request` is what it was asked to do."""

    pod: str
    namespace: str
    uid: str
    job: str
    request: dict[str, Any]
    fate: Fate
    phase: str = "Pending"
    started: float | None = None
    ended: float | None = None
    labels: dict[str, str] = field(default_factory=dict)
    held: bool = False  # it was told why it does not start
    began: str = ""  # started, as the API server has it

    @property
    def rank(self) -> int:
        """Which pod of an Indexed Job it is."""
        return int(self.labels.get(INDEX, "0"))


class FakeKubelet:
    """A context manager; `script` says what becomes of each pod, `runs` what was."""

    def __init__(self, cluster: ControlPlane, script: Script | None = None) -> None:
        self._cluster = cluster
        self.script: Script = script or (lambda request: Fate())
        self.runs: dict[str, Run] = {}
        self.store: dict[str, dict[str, Any]] = {}  # prefix below the store -> the committed result
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self._wake = threading.Condition()
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._watch, self._work, self._beat)]

    def __enter__(self) -> FakeKubelet:
        self._talk = Connection(self._cluster)
        self._make_node()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        with self._wake:
            self._wake.notify_all()
        for thread in self._threads:
            thread.join(10)
        self._talk.close()

    def of(self, namespace: str, purpose: str = "trial") -> list[Run]:
        """The runs of one purpose in a namespace, in the order in which they were seen."""
        return [run for run in self.runs.values() if run.namespace == namespace and run.request["purpose"] == purpose]

    # Node ------------------------------------------------------------------------------------------------------------

    def _make_node(self) -> None:
        now = _now()
        self._talk("POST", "/api/v1/nodes", {"metadata": {"name": NODE}}, known=(409,))
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": now}
        status = {"conditions": [{**ready, "lastTransitionTime": now}], "capacity": {"pods": "1000", "cpu": "64"}}
        self._talk("PATCH", f"/api/v1/nodes/{NODE}/status", {"status": status})
        self._talk("PATCH", f"/api/v1/nodes/{NODE}", {"spec": {"taints": None}})

    def _beat(self) -> None:
        with contextlib.closing(Connection(self._cluster)) as talk:
            self._renew(talk)

    def _renew(self, talk: Connection) -> None:
        path = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
        spec = {"holderIdentity": NODE, "leaseDurationSeconds": 40}
        while not self._stopped.is_set():
            body = {"metadata": {"name": NODE}, "spec": {**spec, "renewTime": _now(micro=True)}}
            status, _ = talk("PATCH", f"{path}/{NODE}", body, known=(404,))
            if status == 404:
                talk("POST", path, body, known=(404, 409))
            self._stopped.wait(8)

    # Pods ------------------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        with contextlib.closing(Connection(self._cluster)) as talk:
            self._follow(talk)

    def _follow(self, talk: Connection) -> None:
        version = ""
        while not self._stopped.is_set():
            query = {"labelSelector": SELECTOR}
            try:
                if not version:
                    _, listing = talk("GET", f"/api/v1/pods?{urllib.parse.urlencode(query)}")
                    for pod in listing["items"]:
                        self._seen("ADDED", pod)
                    version = listing["metadata"]["resourceVersion"]
                query |= {"watch": "true", "resourceVersion": version, "timeoutSeconds": "3"}
                for event in talk.stream(f"/api/v1/pods?{urllib.parse.urlencode(query)}"):
                    if event["type"] == "ERROR":
                        version = ""
                        break
                    version = event["object"]["metadata"]["resourceVersion"]
                    self._seen(event["type"], event["object"])
            except (OSError, http.client.HTTPException):
                version = ""
                talk.reopen()
                self._stopped.wait(0.2)

    def _seen(self, type_: str, pod: dict[str, Any]) -> None:
        meta = pod["metadata"]
        run = self.runs.get(meta["uid"])
        if type_ == "DELETED":
            if run is not None and run.phase in ("Pending", "Running"):
                run.phase, run.ended = "Gone", time.monotonic()
            return
        if run is None:
            if pod["status"].get("phase") not in (None, "Pending") or meta.get("deletionTimestamp"):
                return
            request = json.loads(meta["annotations"][SPEC])
            run = Run(meta["name"], meta["namespace"], meta["uid"], meta["labels"].get("job-name", ""), request, Fate())
            run.labels = meta["labels"]
            run.fate = self.script({**request, "rank": run.rank} if INDEX in run.labels else request)
            self.runs[meta["uid"]] = run
            self._after(run.fate.start, lambda: self._start(run))
        if meta.get("deletionTimestamp") and run.phase in ("Pending", "Running") and not run.fate.deaf:
            run.phase = "Ending"
            self._after(0.02, lambda: self._terminate(run))

    def _start(self, run: Run) -> None:
        if run.phase != "Pending":
            return
        path = f"/api/v1/namespaces/{run.namespace}/pods/{run.pod}"
        opened = run.fate.gate is not None and run.fate.gate.is_set()
        if run.fate.unschedulable and not opened:
            self._hold(run, None)
            return
        binding = {"metadata": {"name": run.pod, "uid": run.uid}, "target": {"kind": "Node", "name": NODE}}
        if self._talk("POST", f"{path}/binding", binding, known=(404, 409))[0] == 404:
            return
        if run.fate.waiting is not None and not opened:
            self._hold(run, {"waiting": {"reason": run.fate.waiting, "message": f"fate: {run.fate.waiting}"}})
            return
        run.phase, run.started, run.began = "Running", time.monotonic(), _now()
        self._patch(run, "Running", {"running": {"startedAt": run.began}})
        self._after(run.fate.run, lambda: self._end(run))

    def _hold(self, run: Run, state: dict[str, Any] | None) -> None:
        """Say once why it does not start, and try again until the gate is open."""
        if not run.held and state is not None:
            self._patch(run, "Pending", state)
        elif not run.held:
            no = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes are free"}
            path = f"/api/v1/namespaces/{run.namespace}/pods/{run.pod}/status"
            body = {"metadata": {"uid": run.uid}, "status": {"conditions": [{**no, "lastTransitionTime": _now()}]}}
            self._talk("PATCH", path, body, known=(404, 409))
        run.held = True
        if run.fate.gate is not None:
            self._after(0.05, lambda: self._start(run))

    def _end(self, run: Run) -> None:
        if run.phase != "Running":
            return
        if run.fate.gate is not None and not run.fate.gate.is_set():
            self._after(0.05, lambda: self._end(run))
            return
        fate = run.fate
        quiet = run.rank > 0 and fate.exit_code == 0  # rank 0 commits and reports
        message = fate.message if fate.message is not None else "" if quiet else self._result(run)
        terminated = {"exitCode": fate.exit_code, "startedAt": run.began, "finishedAt": _now(), "message": message}
        terminated["reason"] = fate.reason or ("Completed" if fate.exit_code == 0 else "Error")
        run.phase, run.ended = ("Succeeded" if fate.exit_code == 0 else "Failed"), time.monotonic()
        self._patch(run, run.phase, {"terminated": terminated})

    def _terminate(self, run: Run) -> None:
        """SIGTERM: a checkpoint, then exit code 143; then the pod is gone."""
        terminated = {"exitCode": 143, "startedAt": run.began or _now(), "finishedAt": _now(), "reason": "Error"}
        self._patch(run, "Failed", {"terminated": terminated})
        path = f"/api/v1/namespaces/{run.namespace}/pods/{run.pod}"
        self._talk("DELETE", path, {"gracePeriodSeconds": 0, "preconditions": {"uid": run.uid}}, known=(404, 409))
        run.phase, run.ended = "Terminated", time.monotonic()

    def _patch(self, run: Run, phase: str, state: dict[str, Any]) -> None:
        container = {
            "name": "runner",
            "image": "fake",
            "imageID": "fake",
            "ready": "running" in state,
            "restartCount": 0,
            "state": state,
        }
        status: dict[str, Any] = {"phase": phase, "containerStatuses": [container], "startTime": _now()}
        ready = {"type": "Ready", "status": "True" if phase == "Running" else "False", "lastTransitionTime": _now()}
        status["conditions"] = [ready]
        if "terminated" in state and run.fate.disrupted:
            disruption = {"type": "DisruptionTarget", "status": "True", "reason": run.fate.disrupted}
            status["conditions"].append({**disruption, "message": "fate", "lastTransitionTime": _now()})
        if "terminated" in state and run.fate.evicted:
            status |= {"reason": "Evicted", "message": "The node was low on resource: memory."}
        path = f"/api/v1/namespaces/{run.namespace}/pods/{run.pod}/status"
        self._talk("PATCH", path, {"metadata": {"uid": run.uid}, "status": status}, known=(404, 409))

    # What a runner would do ------------------------------------------------------------------------------------------

    def _result(self, run: Run) -> str:
        request, fate = run.request, run.fate
        if fate.exit_code != 0:
            reason = "InvalidModel" if fate.exit_code == 2 else "RunnerFailed"
            return json.dumps({"v": 1, "phase": "Failed", "reason": reason, "message": f"exit {fate.exit_code}"})
        answer = {"trial": self._trial, "prepare": self._prepare, "collect": self._collect, "publish": self._publish}
        return json.dumps(answer[request["purpose"]](request, fate))

    def commit(self, request: dict[str, Any]) -> dict[str, Any]:
        """Put the trial's artifact into the store, unless one is there; what stands there."""
        return self.store.setdefault(request["prefix"], trial_result(request))

    def _trial(self, request: dict[str, Any], fate: Fate) -> dict[str, Any]:
        return self.commit(request) if fate.commits else trial_result(request)

    def _collect(self, request: dict[str, Any], fate: Fate) -> dict[str, Any]:
        return self.store.get(request["prefix"]) or {"v": 1, "phase": "NotFound", "reason": "NotFound"}

    def _prepare(self, request: dict[str, Any], fate: Fate) -> dict[str, Any]:
        return {"v": 1, "phase": "Succeeded", "reason": "Committed", "baseline": BASELINE, "codeDigest": "c" * 64}

    def _publish(self, request: dict[str, Any], fate: Fate) -> dict[str, Any]:
        best = request["publish"].get("best")
        result = {"v": 1, "phase": "Succeeded", "reason": "Published"}
        if best is not None:
            result["manifestDigest"] = self.store[f"{request['root']}/trials/{best:05d}"]["manifestDigest"]
        return result

    # Time ------------------------------------------------------------------------------------------------------------

    def _after(self, seconds: float, work: Callable[[], None]) -> None:
        with self._wake:
            heapq.heappush(self._due, (time.monotonic() + seconds, next(self._count), work))
            self._wake.notify()

    def _work(self) -> None:
        while not self._stopped.is_set():
            with self._wake:
                if not self._due:
                    self._wake.wait(1)
                    continue
                left = self._due[0][0] - time.monotonic()
                if left > 0:
                    self._wake.wait(left)
                    continue
                _, _, work = heapq.heappop(self._due)
            try:
                work()
            except (OSError, http.client.HTTPException):
                if not self._stopped.is_set():
                    self._after(0.2, work)


def trial_result(request: dict[str, Any]) -> dict[str, Any]:
    """A deterministic function of the recipe: of sparsity s the score is 1 - s/10, and 1000 (1 - s) MACs remain."""
    entry = request["spec"]["stages"][0]["prune"]["configList"][0]
    keep = 1 - entry["sparsity"]
    compressed = {"default": 1 - entry["sparsity"] / 10, "macs": 1000 * keep, "sizeBytes": 4000 * keep}
    digest = hashlib.sha256(json.dumps([request["prefix"], compressed]).encode()).hexdigest()
    result = {"v": 1, "phase": "Succeeded", "reason": "Committed", "manifestDigest": digest, "codeDigest": "c" * 64}
    return {**result, "baseline": BASELINE, "compressed": compressed, "smaller": True, "portable": True}


class Connection:
    """One kept-alive HTTPS connection as cluster admin; for one thread."""

    def __init__(self, cluster: ControlPlane) -> None:
        parts = urllib.parse.urlsplit(cluster.url)
        context = ssl.create_default_context(cafile=str(cluster.authority.certificate))
        context.load_cert_chain(cluster.folder / "admin.crt", cluster.folder / "admin.key")
        self._make = lambda: http.client.HTTPSConnection(parts.hostname or "", parts.port, timeout=30, context=context)
        self._open = self._make()

    def __call__(
        self, method: str, path: str, body: Any = None, known: tuple[int, ...] = ()
    ) -> tuple[int, dict[str, Any]]:
        """Status and answer; RuntimeError on a status that is neither success nor in `known`."""
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        try:
            self._open.request(method, path, None if body is None else json.dumps(body), {"Content-Type": kind})
            response = self._open.getresponse()
            data = response.read()
        except (OSError, http.client.HTTPException):
            self.reopen()
            raise
        if response.status >= 400 and response.status not in known:
            raise RuntimeError(f"{method} {path}: {response.status} {data[:500]!r}")
        return response.status, json.loads(data)

    def close(self) -> None:
        """Close the connection."""
        self._open.close()

    def reopen(self) -> None:
        """Start over after an error."""
        self._open.close()
        self._open = self._make()

    def stream(self, path: str) -> Any:
        """The JSON lines of a watch."""
        self._open.request("GET", path)
        response = self._open.getresponse()
        while line := response.readline():
            yield json.loads(line)


def _now(*, micro: bool = False) -> str:
    spec = "microseconds" if micro else "seconds"
    return dt.datetime.now(dt.UTC).isoformat(timespec=spec).replace("+00:00", "Z")
