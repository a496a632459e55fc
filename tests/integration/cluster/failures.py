"""The table of what goes wrong: each cause with what the status says of it, and what becomes of the object."""

from __future__ import annotations

import json
import threading
import urllib.error
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fake_kubelet import Fate
from operator_cluster import API, PLURAL, condition, job, sweep
from operator_process import until
from recorder import Recorder, Seen

LOST_POD_SECONDS = 3.0
POD = {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "fake"}]}}


@dataclass
class Scene:
    """One case at work: an object in a namespace of its own."""

    case: Case
    plane: Any
    recorder: Recorder
    gate: threading.Event = field(default_factory=threading.Event)

    @property
    def namespace(self) -> str:
        return f"f-{self.case.name}"

    def send(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        """A request about something in the namespace."""
        prefix, _, rest = path.partition("//")
        return self.plane.request(method, f"{prefix}/namespaces/{self.namespace}/{rest}", body, **options)

    def patch(self, path: str, body: Any) -> None:
        """Merge-patch something in the namespace."""
        self.send("PATCH", path, body, content_type="application/merge-patch+json")

    def own(self) -> str:
        """Path of the object."""
        return f"{API.removesuffix('/namespaces')}//{PLURAL[self.case.kind]}/{self.case.name}"

    def of_pod(self, fits: Callable[[Seen], bool]) -> Seen:
        """The first version of a pod here that fits."""
        return self.recorder.first("the pod", lambda s: self.here(s, "Pod") and s.type != "DELETED" and fits(s))

    def here(self, seen: Seen, kind: str) -> bool:
        """Whether it is about an object of this kind in the namespace."""
        return seen.kind == kind and seen.namespace == self.namespace


Act = Callable[[Scene], None]


@dataclass(frozen=True)
class Case:
    """What goes wrong, when a watcher can see it, what the status says within seconds, and how it ends.

    `cause` tells the first news of the cause; `later` is how long after that it counts as visible.
    """

    name: str
    cause: Callable[[Seen], bool]
    reason: str
    text: str = ""
    phase: str = "Pending"
    condition: tuple[str, str] = ("Ready", "False")
    later: float = 0.0
    kind: str = "CompressionJob"
    spec: dict[str, Any] = field(default_factory=dict)
    fates: tuple[Fate, ...] = ()  # of attempts 1, 2...; the rest succeed
    gated: bool = False  # the first pod's gate is this scene's
    arrange: Act | None = None
    act: Act | None = None  # once it runs
    mend: Act | None = None
    ends: str = "Succeeded"
    ending: str = "Succeeded"  # reason of the last word
    outcomes: tuple[str, ...] = ("Succeeded",)
    failures: int = 0
    disruptions: int = 0
    lost: int = 0  # trials of a sweep

    def body(self) -> dict[str, Any]:
        """The object."""
        if self.kind == "CompressionSweep":
            return sweep(self.name, 2, parallelism=2, **self.spec)
        return job(self.name, **self.spec)

    def told(self, seen: Seen) -> bool:
        """Whether this version of the object says it."""
        item = condition(seen.object, self.condition[0])
        says = (seen.status.get("phase"), item.get("status"), item.get("reason"))
        return says == (self.phase, self.condition[1], self.reason) and self.text in item.get("message", "")


# Causes --------------------------------------------------------------------------------------------------------------


def waits(reason: str) -> Callable[[Seen], bool]:
    """A pod's container waits for that reason."""
    return lambda seen: seen.kind == "Pod" and reason in json.dumps(seen.status.get("containerStatuses", []))


def ended(seen: Seen) -> bool:
    """A pod's container has ended."""
    return seen.kind == "Pod" and '"terminated"' in json.dumps(seen.status.get("containerStatuses", []))


def refused(seen: Seen) -> bool:
    """The Job controller says that it cannot create a pod."""
    return seen.kind == "Event" and seen.object.get("reason") == "FailedCreate"


def is_there(kind: str) -> Callable[[Seen], bool]:
    """The first object of that kind."""
    return lambda seen: seen.kind == kind and seen.type == "ADDED"


def is_gone(kind: str) -> Callable[[Seen], bool]:
    """An object of that kind was deleted."""
    return lambda seen: seen.kind == kind and seen.type == "DELETED"


# Deeds ---------------------------------------------------------------------------------------------------------------


def pods_are_refused(scene: Scene, words: str) -> None:
    """Until admission takes no pod any more: quotas and policies take effect a moment after they are written."""
    body = json.loads(json.dumps({"metadata": {"name": "probe"}, **POD}))
    body["spec"]["containers"][0]["resources"] = {"limits": {"cpu": "2"}}

    def answer() -> bool:
        try:
            scene.send("POST", "/api/v1//pods?dryRun=All", body)
        except urllib.error.HTTPError as error:
            with error:
                return words in error.read().decode()
        return False

    until(answer, f"pods to be refused: {words}")


def set_quota(scene: Scene) -> None:
    """No pod in this namespace."""
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    scene.send("POST", "/api/v1//resourcequotas", quota)
    pods_are_refused(scene, "exceeded quota")


def set_limit(scene: Scene) -> None:
    """No container with more than a tenth of a core."""
    limits = {"metadata": {"name": "small"}, "spec": {"limits": [{"type": "Container", "max": {"cpu": "100m"}}]}}
    scene.send("POST", "/api/v1//limitranges", limits)
    pods_are_refused(scene, "maximum cpu usage")


def set_policy(scene: Scene) -> None:
    """An admission policy refuses every pod of this namespace."""
    group = "/apis/admissionregistration.k8s.io/v1"
    only = {"matchLabels": {"kubernetes.io/metadata.name": scene.namespace}}
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
    spec = {
        "matchConstraints": {"resourceRules": [rule], "namespaceSelector": only},
        "validations": [{"expression": "false", "message": "no runners on weekdays"}],
    }
    scene.plane.request("POST", f"{group}/validatingadmissionpolicies", {"metadata": {"name": "none"}, "spec": spec})
    bound = {"policyName": "none", "validationActions": ["Deny"]}
    binding = {"metadata": {"name": "none"}, "spec": bound}
    scene.plane.request("POST", f"{group}/validatingadmissionpolicybindings", binding)
    pods_are_refused(scene, "no runners on weekdays")


def drop_policy(scene: Scene) -> None:
    """It refuses nothing any more."""
    path = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings/none"
    scene.plane.request("DELETE", path)


def take_name(scene: Scene) -> None:
    """Somebody has a Job of the name that the first attempt would have."""
    body = {"metadata": {"name": f"{scene.case.name}-1"}, "spec": {"template": POD, "suspend": True}}
    scene.send("POST", "/apis/batch/v1//jobs", body)


def delete(path: str) -> Act:
    """Delete something by hand; {} is the object's name."""
    return lambda scene: scene.send("DELETE", path.format(scene.case.name) + "?propagationPolicy=Background")


def suspend(value: bool) -> Act:
    """Set spec.suspend."""
    return lambda scene: scene.patch(scene.own(), {"spec": {"suspend": value}})


def lose_node(scene: Scene) -> None:
    """The pod is told to go, and nobody hears."""
    pod = scene.of_pod(lambda seen: seen.status.get("phase") == "Running").name
    scene.send("DELETE", f"/api/v1//pods/{pod}", {"gracePeriodSeconds": 1})


def admit(scene: Scene) -> None:
    """What a queue does."""
    scene.patch(f"/apis/batch/v1//jobs/{scene.case.name}-1", {"spec": {"suspend": False}})


def open_gate(scene: Scene) -> None:
    """The node has what it lacked."""
    scene.gate.set()


def said(reason: str, message: str) -> str:
    """A runner's last words."""
    return json.dumps({"v": 1, "phase": "Failed", "reason": reason, "message": message})


def held(reason: str) -> dict[str, Any]:
    """Of a case whose first pod does not start for that reason, until the gate opens."""
    return {"cause": waits(reason), "fates": (Fate(waiting=reason),), "gated": True, "mend": open_gate}


LONG = Fate(run=60)
RETRIED: dict[str, Any] = {"cause": ended, "reason": "Retrying", "outcomes": ("Failed", "Succeeded"), "failures": 1}
MOVED: dict[str, Any] = {**RETRIED, "outcomes": ("Disrupted", "Succeeded"), "failures": 0, "disruptions": 1}

CASES = [
    # Pods that cannot be created
    Case(
        "quota",
        refused,
        "PodsRefused",
        "exceeded quota",
        arrange=set_quota,
        mend=delete("/api/v1//resourcequotas/none"),
    ),
    Case(
        "limit",
        refused,
        "PodsRefused",
        "maximum cpu usage per Container is 100m",
        spec={"runner": {"resources": {"limits": {"cpu": "2"}}}},
        arrange=set_limit,
        mend=delete("/api/v1//limitranges/small"),
    ),
    Case("policy", refused, "PodsRefused", "no runners on weekdays", arrange=set_policy, mend=drop_policy),
    Case(
        "prepare",
        refused,
        "PodsRefused",
        "The prepare Job waits for its runner to start (FailedCreate): exceeded quota",
        kind="CompressionSweep",
        arrange=set_quota,
        mend=delete("/api/v1//resourcequotas/none"),
        ending="TrialsFinished",
    ),
    Case("queue", is_there("Job"), "Queued", spec={"runner": {"queueName": "team-a"}}, mend=admit),
    # Pods that do not start
    Case("pull", reason="ImageUnavailable", text="(ErrImagePull): fate", **held("ErrImagePull")),
    Case("backoff", reason="ImageUnavailable", text="(ImagePullBackOff): fate", **held("ImagePullBackOff")),
    Case("name", reason="ImageUnavailable", text="(InvalidImageName): fate", **held("InvalidImageName")),
    Case("secret", reason="PodNotStarted", text="(CreateContainerConfigError)", **held("CreateContainerConfigError")),
    Case(
        "room",
        lambda seen: seen.kind == "Pod" and "0/1 nodes are free" in json.dumps(seen.status),
        "Unschedulable",
        "0/1 nodes are free",
        fates=(Fate(unschedulable=True),),
        gated=True,
        mend=open_gate,
    ),
    # Runners that fail
    Case(
        "raise",
        text="index 7 is out of bounds",
        fates=(Fate(exit_code=1, message=said("RunnerFailed", "index 7 is out of bounds")),),
        **RETRIED,
    ),
    Case("memory", text="killed for memory", fates=(Fate(exit_code=137, message="", reason="OOMKilled"),), **RETRIED),
    Case(
        "hungry",
        ended,
        "BackoffLimitExceeded",
        "killed for memory",
        phase="Failed",
        condition=("Failed", "True"),
        spec={"backoffLimit": 1},
        fates=(Fate(exit_code=137, message="", reason="OOMKilled"),) * 2,
        ends="Failed",
        ending="BackoffLimitExceeded",
        outcomes=("Failed", "Failed"),
        failures=2,
    ),
    Case(
        "entrypoint",
        ended,
        "InvalidModel",
        "digits has no attribute 'create'",
        phase="Failed",
        condition=("Failed", "True"),
        fates=(Fate(exit_code=2, message=said("InvalidModel", "digits has no attribute 'create'")),),
        ends="Failed",
        ending="InvalidModel",
        outcomes=("Invalid",),
    ),
    Case(
        "store",
        ended,
        "BackoffLimitExceeded",
        "s3://models/out: access denied",
        phase="Failed",
        condition=("Failed", "True"),
        spec={"backoffLimit": 0},
        fates=(Fate(exit_code=1, message=said("RunnerFailed", "s3://models/out: access denied")),),
        ends="Failed",
        ending="BackoffLimitExceeded",
        outcomes=("Failed",),
        failures=1,
    ),
    Case(
        "deadline",
        lambda seen: seen.kind == "Pod" and seen.status.get("phase") == "Running",
        "DeadlineExceeded",
        "activeDeadlineSeconds",
        later=3.0,
        phase="Failed",
        condition=("Failed", "True"),
        spec={"activeDeadlineSeconds": 3},
        fates=(LONG,),
        ends="Failed",
        ending="DeadlineExceeded",
        outcomes=("Failed",),
    ),
    # Runners that are taken away
    Case("term", text="told to end", fates=(Fate(exit_code=143, message=""),), **MOVED),
    Case(
        "drain",
        text="RunnerDisrupted",
        fates=(Fate(exit_code=137, message="", disrupted="EvictionByEvictionAPI"),),
        **MOVED,
    ),
    Case("pressure", text="low on resource: memory", fates=(Fate(exit_code=137, message="", evicted=True),), **MOVED),
    Case(
        "node",
        text="Its node has not been heard from",
        fates=(Fate(run=60, deaf=True),),
        act=lose_node,
        later=1.0 + LOST_POD_SECONDS,
        **{**MOVED, "cause": lambda seen: seen.kind == "Pod" and "deletionTimestamp" in seen.object["metadata"]},
    ),
    # What people do
    Case(
        "suspend",
        lambda seen: seen.kind == "CompressionJob" and seen.object["spec"].get("suspend") is True,
        "SuspendedByUser",
        phase="Suspended",
        fates=(LONG,),
        act=suspend(True),
        mend=suspend(False),
        outcomes=("Suspended", "Succeeded"),
    ),
    Case(
        "taken",
        is_there("CompressionJob"),
        "NameConflict",
        "taken-1 belongs to somebody else",
        condition=("Stalled", "True"),
        arrange=take_name,
        mend=delete("/apis/batch/v1//jobs/{}-1"),
    ),
    Case(
        "deleted",
        is_gone("Job"),
        "Collecting",
        phase="Running",
        condition=("Reconciling", "True"),
        fates=(LONG,),
        act=delete("/apis/batch/v1//jobs/{}-1"),
        outcomes=("Lost", "Succeeded"),
        disruptions=1,
    ),
    Case(
        "trial",
        is_gone("CompressionJob"),
        "Publishing",
        kind="CompressionSweep",
        phase="Running",
        condition=("Reconciling", "True"),
        fates=(Fate(run=6.0),),  # seen to run on a busy machine, too
        later=6.0,
        act=delete("/apis/modelpress.dev/v1alpha1//compressionjobs/{}-00000"),
        ending="TrialsFinished",
        lost=1,
    ),
]
