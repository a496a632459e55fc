"""The pod that modelpress itself asks for, before any template is merged into it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from modelpress.api.podtemplate import CONTAINER, OWN_PREFIX
from modelpress.api.semantic_locations import mount_path
from modelpress.api.v1alpha1 import GPU, ConfigMapCode, GitCode, Runner
from modelpress.request import CODE_FOLDER, GIT_SECRET_FOLDER, RUN_UID_VARIABLE, RunRequest

from .resources import LABELS

SPEC_ANNOTATION = f"{LABELS}/spec"
REQUEST_FOLDER = "/etc/modelpress"
RESULT = "/dev/termination-log"
PROGRESS_FOLDER = "/var/run/secrets/modelpress.dev/progress"
HOME = "/tmp"

# Collect and publish copy and count; they train nothing.
SMALL_RESOURCES = {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": "1Gi"}}
# Suggest imports torch and fits to some hundred points, in one thread.
SUGGEST_RESOURCES = {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"memory": "2Gi"}}


@dataclass(frozen=True)
class RankGroup:
    """Processes that train one model: name of their Job and Service, how many pods, processes in each, port."""

    name: str
    nodes: int
    processes_per_node: int
    port: int


def pod_spec(
    request: RunRequest,
    runner: Runner,
    *,
    image: str,
    image_pull_policy: str | None,
    service_account: str | None,
    fs_group: int | None,
    grace_seconds: int,
    progress: tuple[str, str] | None,
    group: RankGroup | None,
) -> dict[str, Any]:
    """The PodSpec of a request.

    Args:
        progress: address and token audience of the operator's progress server.
        group: the processes that train together, if they are several.
    """
    heavy = request.purpose in ("trial", "prepare")
    store = request.spec.store
    mounts = _Mounts()
    mounts.add(
        "request", REQUEST_FOLDER, {"downwardAPI": {"items": [_annotation("request.json", "modelpress.dev/spec")]}}
    )
    mounts.add("tmp", HOME, {"emptyDir": {}}, own=False, read_only=False)
    env: list[dict[str, Any]] = [
        {"name": "HOME", "value": HOME},
        {"name": "USER", "value": "modelpress"},  # torch asks who it is, and a uid of a template's has no name
        {"name": "PYTHONUNBUFFERED", "value": "1"},
        {"name": "PYTHONDONTWRITEBYTECODE", "value": "1"},
        {"name": RUN_UID_VARIABLE, "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
    ]
    env_from: list[dict[str, Any]] = []
    security: dict[str, Any] = {}
    if store is not None and store.secret_ref is not None:
        # It may be missing: the runner then says which credentials it lacks, and a pod that waits says nothing.
        env_from.append({"secretRef": {"name": store.secret_ref.name, "optional": True}})
    if store is not None and store.volume_claim is not None:
        claim = store.volume_claim
        volume = {"persistentVolumeClaim": {"claimName": claim.name}}
        mounts.add("store", mount_path(store), volume, read_only=False, sub_path=claim.sub_path)
        if fs_group is not None:
            security = {"fsGroup": fs_group, "fsGroupChangePolicy": "OnRootMismatch"}
    if heavy:
        _add_code(mounts, request)
        # Loaders with worker processes hand batches over in shared memory; the runtime's 64 MiB are too few.
        mounts.add("shm", "/dev/shm", {"emptyDir": {"medium": "Memory"}}, own=False, read_only=False)
        env += _threads(runner)
    if progress is not None and request.purpose == "trial":
        url, audience = progress
        token = {"serviceAccountToken": {"audience": audience, "expirationSeconds": 3600, "path": "token"}}
        mounts.add("progress", PROGRESS_FOLDER, {"projected": {"sources": [token]}})
        env.append({"name": "MODELPRESS_PROGRESS_URL", "value": url})
        env.append({"name": "MODELPRESS_PROGRESS_TOKEN", "value": f"{PROGRESS_FOLDER}/token"})
    if group is not None:
        env += _rendezvous(group)
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": image,
        "command": [
            *("python", "-m", "modelpress_runner.main"),
            *("--request", f"{REQUEST_FOLDER}/request.json", "--result", RESULT),
        ],
        "env": env,
        "envFrom": env_from,
        "resources": _resources(runner) if heavy else light_resources(request),
        "terminationMessagePath": RESULT,
        "terminationMessagePolicy": "File",
        "volumeMounts": mounts.mounts,
    }
    if image_pull_policy is not None:
        container["imagePullPolicy"] = image_pull_policy
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": grace_seconds,
        "securityContext": security,
        "containers": [{key: value for key, value in container.items() if value not in ([], {})}],
        "volumes": mounts.volumes,
    }
    spec |= _scheduling(runner, service_account)
    if heavy and runner.resource_claims:
        spec["resourceClaims"] = [claim.to_dict() for claim in runner.resource_claims]
    if group is not None and group.nodes > 1:
        spec["subdomain"] = group.name
    return spec


def light_resources(request: RunRequest) -> dict[str, dict[str, str]]:
    """What a run that trains nothing gets."""
    return SUGGEST_RESOURCES if request.purpose == "suggest" else SMALL_RESOURCES


def small(spec: dict[str, Any], request: RunRequest) -> dict[str, Any]:
    """The pod of a collect, publish or suggest Job: whatever a template says, it takes no devices."""
    out = {key: value for key, value in spec.items() if key not in ("resourceClaims", "initContainers")}
    out["containers"] = [{**container, "resources": light_resources(request)} for container in spec["containers"]]
    for container in spec.get("initContainers") or ():
        resources = {key: value for key, value in (container.get("resources") or {}).items() if key != "claims"}
        out.setdefault("initContainers", []).append({**container, "resources": resources})
    return out


class _Mounts:
    """Volumes and where they are mounted. Names of our own have a prefix; the others may be replaced by a template."""

    def __init__(self) -> None:
        self.volumes: list[dict[str, Any]] = []
        self.mounts: list[dict[str, Any]] = []

    def add(
        self,
        name: str,
        path: str,
        volume: dict[str, Any],
        *,
        own: bool = True,
        read_only: bool = True,
        sub_path: str | None = None,
    ) -> None:
        name = f"{OWN_PREFIX}{name}" if own else name
        self.volumes.append({"name": name, **volume})
        mount: dict[str, Any] = {"name": name, "mountPath": path}
        if read_only:
            mount["readOnly"] = True
        if sub_path is not None:
            mount["subPath"] = sub_path
        self.mounts.append(mount)


def _add_code(mounts: _Mounts, request: RunRequest) -> None:
    code = request.spec.code.remote if request.spec.code is not None else None
    if isinstance(code, ConfigMapCode):
        volume: dict[str, Any] = {"name": code.name, "optional": True}
        if code.items is not None:
            volume["items"] = [item.to_dict() for item in code.items]
        mounts.add("code", CODE_FOLDER, {"configMap": volume})
    elif isinstance(code, GitCode) and code.secret_ref is not None:
        mounts.add("git", GIT_SECRET_FOLDER, {"secret": {"secretName": code.secret_ref.name, "optional": True}})


def _annotation(path: str, key: str) -> dict[str, Any]:
    return {"path": path, "fieldRef": {"fieldPath": f"metadata.annotations['{key}']"}}


def _resources(runner: Runner) -> dict[str, Any]:
    given = runner.resources
    out: dict[str, Any] = given.to_dict() if given is not None else {}
    if runner.gpus:
        out["limits"] = {**out.get("limits", {}), GPU: str(runner.gpus)}
    if runner.resource_claims:
        out["claims"] = [{"name": claim.name} for claim in runner.resource_claims]
    return out


def _threads(runner: Runner) -> list[dict[str, Any]]:
    """As many threads as the pod has cores, where it says so; a process sees those of the whole node."""
    given = runner.resources.to_dict() if runner.resources is not None else {}
    kind = next((kind for kind in ("limits", "requests") if "cpu" in given.get(kind, {})), None)
    if kind is None:
        return []
    field = {"containerName": CONTAINER, "resource": f"{kind}.cpu", "divisor": "1"}
    return [{"name": "OMP_NUM_THREADS", "valueFrom": {"resourceFieldRef": field}}]


def _rendezvous(group: RankGroup) -> list[dict[str, Any]]:
    """What Kubeflow's trainers give a pod: variables of torchrun (PET_*) and of torch.distributed's env://.

    All meet at the first pod. RANK is the pod's, as theirs is; the launcher in it numbers the processes.
    """
    several = group.nodes > 1
    address, port = f"{group.name}-0.{group.name}" if several else "127.0.0.1", str(group.port)
    return [
        {"name": "MASTER_ADDR", "value": address},
        {"name": "MASTER_PORT", "value": port},
        {"name": "WORLD_SIZE", "value": str(group.nodes * group.processes_per_node)},
        {"name": "RANK", **_index(several)},
        {"name": "PET_MASTER_ADDR", "value": address},
        {"name": "PET_MASTER_PORT", "value": port},
        {"name": "PET_NNODES", "value": str(group.nodes)},
        {"name": "PET_NPROC_PER_NODE", "value": str(group.processes_per_node)},
        {"name": "PET_NODE_RANK", **_index(several)},
    ]


def _index(several: bool) -> dict[str, Any]:
    """The pod's number in its Job, as the value of a variable."""
    path = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    return {"valueFrom": {"fieldRef": {"fieldPath": path}}} if several else {"value": "0"}


def _scheduling(runner: Runner, service_account: str | None) -> dict[str, Any]:
    found = {
        "serviceAccountName": service_account,
        "imagePullSecrets": [secret.to_dict() for secret in runner.image_pull_secrets or []],
        "nodeSelector": runner.node_selector,
        "tolerations": [toleration.to_dict() for toleration in runner.tolerations or []],
        "priorityClassName": runner.priority_class_name,
        "runtimeClassName": runner.runtime_class_name,
    }
    return {key: value for key, value in found.items() if value}
