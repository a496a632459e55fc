"""Jobs to render: one of each kind that users can ask for. The same cases go to a real API server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from modelpress.api.v1alpha1 import CompressionJob, CompressionSweep
from modelpress.reconcile.model import CreateJob
from modelpress.reconcile.requests import run_request, sweep_request
from modelpress.request import PublishRequest, Purpose
from modelpress_operator.render import RenderSettings, render_job

SETTINGS = RenderSettings(image="registry.example.com/modelpress/runner:1.0")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
UID = "8c2f3a0e-1111-4222-8333-444455556666"
SWEEP_UID = "1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed"

STORE = {"uri": "s3://models/out", "endpoint": "http://minio:9000", "secretRef": {"name": "s3"}}


def spec(**more: Any) -> dict[str, Any]:
    return {
        "model": {"entrypoint": "digits:create"},
        "stages": [{"prune": {"algorithm": "l1", "configList": [{"opTypes": ["Conv2d"], "sparsity": 0.5}]}}],
        "store": STORE,
    } | more


def job(sweep: bool = False, **more: Any) -> CompressionJob:
    meta: dict[str, Any] = {"name": "digits", "namespace": "team-a", "uid": UID}
    if sweep:
        meta["name"] = "search-00007"
        meta["labels"] = {"modelpress.dev/sweep": "search", "modelpress.dev/trial": "7"}
        owner = {"apiVersion": "modelpress.dev/v1alpha1", "kind": "CompressionSweep", "name": "search"}
        meta["ownerReferences"] = [owner | {"uid": SWEEP_UID, "controller": True}]
    return CompressionJob.model_validate({"metadata": meta, "spec": spec(**more)})


def sweep(**more: Any) -> CompressionSweep:
    return CompressionSweep.model_validate(
        {
            "metadata": {"name": "search", "namespace": "team-a", "uid": SWEEP_UID},
            "spec": {
                "template": {"spec": spec(**more)},
                "searchSpace": [{"name": "seed", "paths": ["/seed"], "int": {"min": 0, "max": 9}}],
                "objectives": [{"metric": "default"}],
                "maxTrials": 4,
            },
        }
    )


def action(owner: CompressionJob | CompressionSweep, purpose: Purpose = "trial", attempt: int = 1) -> CreateJob:
    name = f"{owner.metadata.name}-{attempt}" if purpose == "trial" else f"{owner.metadata.name}-{purpose}"
    if isinstance(owner, CompressionJob):
        return CreateJob(name, purpose, attempt, run_request(owner, purpose, attempt))
    publish = PublishRequest(objectives=owner.spec.objectives, best=2, front=[2]) if purpose == "publish" else None
    return CreateJob(name, purpose, attempt, sweep_request(owner, purpose, attempt, publish))


@dataclass(frozen=True)
class Case:
    """What is rendered, and with what."""

    owner: CompressionJob | CompressionSweep
    purpose: Purpose = "trial"
    settings: RenderSettings = SETTINGS

    def render(self) -> list[dict[str, Any]]:
        return render_job(action(self.owner, self.purpose), self.owner.to_dict(), self.settings)


RUNNER: dict[str, Any] = {
    "image": "registry.example.com/team/digits@sha256:" + "0" * 64,
    "imagePullPolicy": "IfNotPresent",
    "imagePullSecrets": [{"name": "registry"}],
    "gpus": 2,
    "resources": {"requests": {"cpu": 2, "memory": "4Gi"}, "limits": {"memory": "8Gi"}},
    "nodeSelector": {"pool": "gpu"},
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "priorityClassName": "batch-low",
    "runtimeClassName": "nvidia",
    "serviceAccountName": "trainer",
    "queueName": "team-a",
    "resourceClaims": [{"name": "nic", "resourceClaimTemplateName": "fast-nic"}],
}
TEMPLATE: dict[str, Any] = {
    "metadata": {"labels": {"cost-center": "42"}, "annotations": {"example.com/note": "hello"}},
    "spec": {
        "terminationGracePeriodSeconds": 300,
        "securityContext": {"runAsUser": 1000, "fsGroup": 2000},
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": {}}
        ],
        "containers": [
            {
                "name": "runner",
                "env": [{"name": "HF_HOME", "value": "/cache"}, {"name": "HOME", "value": "/cache/home"}],
                "envFrom": [{"secretRef": {"name": "tracking"}}],
                "resources": {"limits": {"ephemeral-storage": "10Gi"}},
                "volumeMounts": [{"name": "cache", "mountPath": "/cache"}],
            }
        ],
        "initContainers": [
            {"name": "warm", "image": "busybox:1", "command": ["true"]},
            {"name": "proxy", "image": "proxy:1", "restartPolicy": "Always"},
        ],
        "volumes": [
            {"name": "cache", "persistentVolumeClaim": {"claimName": "cache"}},
            {
                "name": "tmp",
                "ephemeral": {
                    "volumeClaimTemplate": {
                        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "50Gi"}}}
                    }
                },
            },
        ],
    },
}
FULL = RUNNER | {"podTemplate": TEMPLATE}
CONFIG_MAP = {"path": ".", "configMap": {"name": "digits", "items": [{"key": "a", "path": "digits/__init__.py"}]}}
GIT = {"git": {"url": "https://git.example.com/a.git", "commit": COMMIT, "path": "src", "secretRef": {"name": "git"}}}
VOLUME = {"uri": "file:///models/out", "volumeClaim": {"name": "models", "subPath": "team-a"}}

CASES = {
    "minimal": Case(job(store={"uri": "s3://models/out"})),
    "trial": Case(job(sweep=True, code=CONFIG_MAP, runner=RUNNER)),
    "template": Case(job(runner={"podTemplate": TEMPLATE})),
    "collect": Case(job(code=GIT, runner=FULL), "collect"),
    "prepare": Case(
        sweep(code=GIT, runner={"queueName": "team-a", "resources": {"limits": {"cpu": "1500m"}}}), "prepare"
    ),
    "publish": Case(sweep(store=VOLUME, code=CONFIG_MAP, runner=FULL), "publish"),
    "suggest": Case(sweep(store={"uri": "s3://models/out"}, code=CONFIG_MAP, runner=FULL), "suggest"),
    "volume": Case(job(store=VOLUME)),
    "nodes": Case(job(runner={"gpus": 8, "nodes": 2, "processesPerNode": 8})),
    "processes": Case(job(runner={"gpus": 4, "processesPerNode": 4, "launcher": "deepspeed"})),
    "prepare_of_nodes": Case(sweep(runner={"gpus": 8, "nodes": 2, "processesPerNode": 8}), "prepare"),
    "cluster": Case(
        job(),
        settings=RenderSettings(
            image="runner:2",
            image_pull_policy="Never",
            service_account="modelpress-runner",
            progress_url="https://modelpress-operator.modelpress.svc:8443/progress",
            pod_template={"spec": {"nodeSelector": {"pool": "batch"}, "dnsPolicy": "Default"}},
        ),
    ),
}
