"""From a CreateJob of the reconcile core to the batch/v1 Job that runs it. Pure.

What a pod gets is settled in three steps: our own pod (pod.py), the templates merged into it, those of the cluster
first (merge.py), and what neither may change put back (restrict.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from modelpress.api.podtemplate import CONTAINER, annotation_problem, label_problem, template_problems
from modelpress.api.v1alpha1 import ConfigMapCode, PodTemplate, Runner
from modelpress.reconcile.model import CreateJob
from modelpress.request import CODE_FOLDER, RunRequest
from modelpress.result import ExitCode

from . import pod
from .allowed import Allowed
from .merge import merge_pod_spec
from .resources import COMPRESSION_SWEEPS, LABELS, MANAGED_BY, MANAGER, RawObject
from .restrict import restricted

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
MAX_ANNOTATIONS_BYTES = 256 * 1024  # keys and values of one object together: the API server's limit
_ROOM = 4 * 1024  # for the annotations that admission and schedulers add to a pod
RENDEZVOUS_PORT = 29500


class RenderError(ValueError):
    """No Job can be made of this specification; the text says why, for the status."""


class SpecTooLargeError(RenderError):
    """The specification does not fit into a pod's annotations."""


@dataclass(frozen=True)
class RenderSettings:
    """What the operator decides for all runners.

    Raises:
        ValueError: pod_template says what no podTemplate may say; the text is for the person who wrote it.
    """

    image: str | None = None  # where spec.runner.image names none
    image_pull_policy: str | None = None
    service_account: str | None = None
    # Group of the files of a store on a volume claim, so that a runner which is not root can write there.
    fs_group: int | None = 65532
    # Time for a checkpoint between SIGTERM and SIGKILL.
    grace_seconds: int = 120
    # Address that running trials report to; none: they report nothing while they run.
    progress_url: str | None = None
    progress_audience: str = "modelpress-progress"
    # As spec.runner.podTemplate, merged before it.
    pod_template: Mapping[str, Any] | None = None
    # What specifications may ask for; what stands above they always may.
    allowed: Allowed = field(default_factory=Allowed)

    def __post_init__(self) -> None:
        if self.pod_template is None:
            return
        template = PodTemplate.model_validate(self.pod_template)
        problems = [str(problem) for problem in template_problems(template.to_dict(), "podTemplate")]
        if problems:
            raise ValueError("\n".join(problems))


def render_job(action: CreateJob, owner: RawObject, settings: RenderSettings) -> list[RawObject]:
    """The Job of an action, owned by `owner`; a trial of several nodes as an Indexed one, after its headless Service
    and the NetworkPolicy that leaves its pods among themselves.

    Raises:
        SpecTooLargeError: the specification does not fit into a pod's annotations.
        RenderError: nothing names an image, or it asks for what this operator's administrator does not allow.
    """
    spec = action.request.spec
    runner = spec.runner or Runner()
    where = "spec.template.spec.runner" if owner["kind"] == COMPRESSION_SWEEPS.kind else "spec.runner"
    if refused := [str(problem) for problem in settings.allowed.problems(runner, where)]:
        raise RenderError("; ".join(refused))
    image = runner.image or settings.image
    if image is None:
        raise RenderError("spec.runner.image: names no image, and the operator has no default; add it")
    request = action.request
    if spec.code is not None and isinstance(spec.code.remote, ConfigMapCode):
        request = request.model_copy(update={"code_path": CODE_FOLDER})
    elif request.code_path is not None:
        request = request.model_copy(update={"code_path": None})
    heavy = action.purpose in ("trial", "prepare")
    nodes = runner.nodes if action.purpose == "trial" else 1
    own = pod.pod_spec(
        request,
        runner,
        image=image,
        image_pull_policy=runner.image_pull_policy or settings.image_pull_policy,
        service_account=runner.service_account_name or settings.service_account,
        fs_group=settings.fs_group,
        grace_seconds=settings.grace_seconds,
        progress=(settings.progress_url, settings.progress_audience) if settings.progress_url else None,
        group=_group(action, runner),
    )
    templates = [dict(settings.pod_template or {}), runner.pod_template.to_dict() if runner.pod_template else {}]
    merged = own
    for template in templates:
        merged = merge_pod_spec(merged, template.get("spec") or {})
    if not heavy:
        merged = pod.small(merged, request)
    labels = _labels(action, owner)
    template = {
        "metadata": _pod_metadata(templates, labels, request),
        "spec": restricted(merged, own),
    }
    queue = runner.queue_name if heavy else None
    metadata = {
        "name": action.name,
        "namespace": owner["metadata"]["namespace"],
        "labels": labels | ({QUEUE_LABEL: queue} if queue else {}),
        "ownerReferences": [_owner_reference(owner)],
    }
    job: RawObject = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {
            **({"suspend": True} if queue else {}),
            **({"completionMode": "Indexed", "completions": nodes, "parallelism": nodes} if nodes > 1 else {}),
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": _failure_rules()},
            "template": template,
        },
    }
    if nodes == 1:
        return [job]
    return [_service(metadata, labels, action.name), _network_policy(metadata, labels, action.name), job]


def _group(action: CreateJob, runner: Runner) -> pod.RankGroup | None:
    """The processes that train together: of trials, what else there is to do one process does."""
    if action.purpose != "trial" or (runner.processes == 1 and runner.launcher == "torchrun"):
        return None
    return pod.RankGroup(action.name, runner.nodes, runner.processes_per_node, RENDEZVOUS_PORT)


def _labels(action: CreateJob, owner: RawObject) -> dict[str, str]:
    """Labels of owner and purpose, for selectors of people, of the operator's watches, of NetworkPolicies."""
    meta = owner["metadata"]
    given = meta.get("labels") or {}
    labels = {MANAGED_BY: MANAGER}
    if owner["kind"] == "CompressionSweep":
        labels[f"{LABELS}/sweep"] = meta["name"]
    else:
        labels[f"{LABELS}/job"] = meta["name"]
        if sweep := given.get(f"{LABELS}/sweep"):
            labels[f"{LABELS}/sweep"] = sweep
    if action.request.trial is not None:
        labels[f"{LABELS}/trial"] = str(action.request.trial.number)
    return labels | {f"{LABELS}/attempt": str(action.attempt), f"{LABELS}/purpose": action.purpose}


def _pod_metadata(
    templates: list[dict[str, Any]], labels: dict[str, str], request: RunRequest
) -> dict[str, dict[str, str]]:
    found = [template.get("metadata") or {} for template in templates]
    text = request.to_json()
    annotations: dict[str, str] = {}
    all_labels: dict[str, str] = {}
    for metadata in found:
        for into, given, why_not in (
            (annotations, metadata.get("annotations"), annotation_problem),
            (all_labels, metadata.get("labels"), label_problem),
        ):
            into |= {key: value for key, value in (given or {}).items() if why_not(key, value) is None}
    annotations[pod.SPEC_ANNOTATION] = text
    size = sum(len(key.encode()) + len(value.encode()) for key, value in annotations.items())
    if size + _ROOM > MAX_ANNOTATIONS_BYTES:
        limit = MAX_ANNOTATIONS_BYTES - _ROOM
        raise SpecTooLargeError(f"spec: needs {size} bytes of a pod's annotations, which take {limit}; shorten it.")
    return {"labels": all_labels | labels, "annotations": annotations}


def _owner_reference(owner: RawObject) -> dict[str, Any]:
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
    }


def _failure_rules() -> list[dict[str, Any]]:
    """The first rule that fits names the cause in the Job's condition; every failure ends the attempt."""
    exits = [
        {"action": "FailJob", "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": [int(code)]}}
        for code in (ExitCode.INVALID, ExitCode.TERMINATED)
    ]
    return [*exits, {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]


def _service(metadata: dict[str, Any], labels: dict[str, str], job: str) -> RawObject:
    """Gives the ranks names: `<job>-0.<job>`, also before they are ready."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {**metadata, "labels": labels},
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {"batch.kubernetes.io/job-name": job},
            "ports": [{"name": "rendezvous", "port": RENDEZVOUS_PORT}],
        },
    }


def _network_policy(metadata: dict[str, Any], labels: dict[str, str], job: str) -> RawObject:
    """The ranks reach each other on every port, and nobody else reaches them: no port of theirs asks who calls."""
    ranks = {"podSelector": {"matchLabels": {"batch.kubernetes.io/job-name": job}}}
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {**metadata, "labels": labels},
        "spec": {**ranks, "policyTypes": ["Ingress"], "ingress": [{"from": [ranks]}]},
    }
