"""Rendered Jobs on a real API server, in a namespace that enforces PodSecurity `restricted`."""

from __future__ import annotations

import json
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from control_plane import ControlPlane

from modelpress.api.podtemplate import VOLUME_KINDS, template_problems

ROOT = Path(__file__).resolve().parents[3]

from render_cases import CASES, Case, job  # noqa: E402

NAMESPACE = "team-restricted"
ENFORCED = {"enforce": "restricted", "enforce-version": "latest"}
DRY = "?dryRun=All&fieldValidation=Strict"
COLLECTION = {
    "Job": f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs",
    "Service": f"/api/v1/namespaces/{NAMESPACE}/services",
    "NetworkPolicy": f"/apis/networking.k8s.io/v1/namespaces/{NAMESPACE}/networkpolicies",
    "Pod": f"/api/v1/namespaces/{NAMESPACE}/pods",
}


@pytest.fixture(scope="module")
def cluster(control_plane: ControlPlane) -> Iterator[ControlPlane]:
    """The namespace, and what the cases refer to that admission looks up."""
    labels = {
        "pod-security.kubernetes.io/enforce": "restricted",
        "pod-security.kubernetes.io/enforce-version": "latest",
    }
    objects: list[dict[str, Any]] = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}},
        *(
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": NAMESPACE}}
            for name in ("trainer", "modelpress-runner")
        ),
        {
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": "batch-low"},
            "value": -100,
        },
        {
            "apiVersion": "node.k8s.io/v1",
            "kind": "RuntimeClass",
            "metadata": {"name": "nvidia"},
            "handler": "nvidia",
        },
    ]
    control_plane.kubectl("apply", "-f", "-", text="\n---\n".join(map(json.dumps, objects)))
    control_plane.kubectl("wait", "--for=create", "serviceaccount/default", "-n", NAMESPACE, "--timeout=60s")
    yield control_plane
    control_plane.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def refusal(cluster: ControlPlane, body: dict[str, Any]) -> str | None:
    """What the API server says against creating an object, None if it would; nothing is created."""
    try:
        cluster.request("POST", COLLECTION[body["kind"]] + DRY, body)
    except urllib.error.HTTPError as error:
        if error.code not in (400, 403, 422):
            raise
        return str(json.loads(error.read())["message"])
    return None


def moved(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The objects in the namespace of these tests."""
    return [{**body, "metadata": {**body["metadata"], "namespace": NAMESPACE}} for body in objects]


def pod_of(job_body: dict[str, Any]) -> dict[str, Any]:
    """The pod that the Job controller would make; PodSecurity judges pods."""
    template = job_body["spec"]["template"]
    metadata = {**template["metadata"], "name": "judged", "namespace": NAMESPACE}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def admitted(cluster: ControlPlane, spec: dict[str, Any]) -> str | None:
    """What is said against a pod with this podTemplate; the template itself has no problem."""
    assert list(template_problems({"spec": spec}, "t")) == []
    (body,) = Case(job(runner={"podTemplate": {"spec": spec}})).render()
    return refusal(cluster, pod_of(body))


@pytest.mark.parametrize("name", CASES)
def test_every_case_is_accepted(cluster: ControlPlane, name: str) -> None:
    """Job, Service and pod pass strict validation, defaulting and admission."""
    objects = moved(CASES[name].render())
    assert [refusal(cluster, body) for body in objects] == [None] * len(objects)
    assert refusal(cluster, pod_of(objects[-1])) is None


def test_admission_is_awake(cluster: ControlPlane) -> None:
    """The same pod with one privilege is refused, so an acceptance says something."""
    (body,) = moved(CASES["minimal"].render())
    pod = pod_of(body)
    pod["spec"]["containers"][0]["securityContext"]["capabilities"]["add"] = ["NET_ADMIN"]
    said = refusal(cluster, pod)
    assert said is not None
    assert 'violates PodSecurity "restricted:latest"' in said


@pytest.mark.parametrize(
    "volume",
    [
        {"configMap": {"name": "a"}},
        {"csi": {"driver": "a.example.com"}},
        {"downwardAPI": {"items": []}},
        {"emptyDir": {}},
        {
            "ephemeral": {
                "volumeClaimTemplate": {
                    "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
                }
            }
        },
        {"image": {"reference": "a:1"}},
        {"persistentVolumeClaim": {"claimName": "a"}},
        {"projected": {"sources": [{"secret": {"name": "a"}}]}},
        {"secret": {"secretName": "a"}},
    ],
    ids=lambda volume: next(iter(volume)),
)
def test_volumes_that_validation_allows(cluster: ControlPlane, volume: dict[str, Any]) -> None:
    """Every kind of volume that a podTemplate may have is admitted."""
    assert next(iter(volume)) in VOLUME_KINDS
    assert admitted(cluster, {"volumes": [{"name": "extra", **volume}]}) is None


@pytest.mark.parametrize(
    "spec",
    [
        {"securityContext": {"runAsUser": 1000, "runAsGroup": 0, "fsGroup": 0, "supplementalGroups": [5]}},
        {"securityContext": {"seccompProfile": {"type": "Localhost", "localhostProfile": "a.json"}}},
        {"securityContext": {"seLinuxOptions": {"type": "container_t", "level": "s0:c1,c2"}}},
        {"securityContext": {"appArmorProfile": {"type": "RuntimeDefault"}}},
        {"containers": [{"name": "runner", "securityContext": {"readOnlyRootFilesystem": False}}]},
        {"containers": [{"name": "runner", "securityContext": {"capabilities": {"drop": ["ALL"]}}}]},
        {"initContainers": [{"name": "a", "image": "a:1", "restartPolicy": "Always"}], "hostUsers": False},
        {"shareProcessNamespace": True, "hostAliases": [{"ip": "10.0.0.1", "hostnames": ["a"]}]},
    ],
)
def test_settings_that_validation_allows(cluster: ControlPlane, spec: dict[str, Any]) -> None:
    """What a podTemplate may say about security is admitted."""
    assert admitted(cluster, spec) is None


def test_the_largest_request_fits(cluster: ControlPlane) -> None:
    """What the renderer lets pass, the API server takes; what is larger than its limit, it does not."""
    (body,) = moved(Case(job(model={"entrypoint": "a:b", "args": {"blob": "x" * 257_000}})).render())
    assert refusal(cluster, body) is None
    annotations = body["spec"]["template"]["metadata"]["annotations"]
    annotations["modelpress.dev/spec"] += "x" * 5_000
    said = refusal(cluster, body)
    assert said is not None
    assert "may not be more than 262144 bytes" in said


def test_pods_of_an_indexed_job_have_the_labels_that_the_service_selects(cluster: ControlPlane) -> None:
    """The Job controller makes the pods; rank 0 is found under the name in MASTER_ADDR."""
    service, policy, body = moved(CASES["nodes"].render())
    for item in (service, policy, body):
        item["metadata"].pop("ownerReferences")  # no such owner here: the garbage collector would take them away
        cluster.request("POST", COLLECTION[item["kind"]], item)
    selector = service["spec"]["selector"]["batch.kubernetes.io/job-name"]
    cluster.kubectl(
        *("wait", "--for=create", f"job/{selector}", "-n", NAMESPACE, "--timeout=60s"),
    )
    cluster.kubectl("wait", "job", selector, "-n", NAMESPACE, "--for=jsonpath={.status.active}=2", "--timeout=60s")
    found = cluster.request("GET", f"{COLLECTION['Pod']}?labelSelector=batch.kubernetes.io%2Fjob-name%3D{selector}")
    assert sorted(pod["spec"]["hostname"] for pod in found["items"]) == [f"{selector}-0", f"{selector}-1"]
    assert {pod["spec"]["subdomain"] for pod in found["items"]} == {service["metadata"]["name"]}
    chosen = policy["spec"]["podSelector"]["matchLabels"].items()
    assert all(chosen <= pod["metadata"]["labels"].items() for pod in found["items"])
    ranks = {pod["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"] for pod in found["items"]}
    assert ranks == {"0", "1"}
