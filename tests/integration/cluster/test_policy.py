"""The chart's ValidatingAdmissionPolicy and runner.allowed on a real API server: what only the operator writes."""

from __future__ import annotations

import json
import subprocess
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from control_plane import ControlPlane
from operator_cluster import Cluster, job, sweep
from operator_process import until

ROOT = Path(__file__).resolve().parents[3]
CHART = ROOT / "helm" / "modelpress"
HOME, TEAM = "policy-home", "policy-team"
OPERATOR = f"system:serviceaccount:{HOME}:modelpress-operator"
RESOURCES = {
    "CompressionJob": "/apis/modelpress.dev/v1alpha1/namespaces/{}/compressionjobs",
    "CompressionSweep": "/apis/modelpress.dev/v1alpha1/namespaces/{}/compressionsweeps",
    "Job": "/apis/batch/v1/namespaces/{}/jobs",
}
KUBE_JOB = {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "a", "image": "a"}]}}}


def owner(kind: str, uid: str = "11111111-2222-4333-8444-555555555555") -> dict[str, Any]:
    return {"apiVersion": "modelpress.dev/v1alpha1", "kind": kind, "name": "s", "uid": uid, "controller": True}


def plain(kind: str, name: str, **metadata: Any) -> dict[str, Any]:
    """An object that is right but for its metadata."""
    kube_job = {"apiVersion": "batch/v1", "kind": "Job", "spec": KUBE_JOB}
    made = {"CompressionJob": job(name), "CompressionSweep": sweep(name, 2), "Job": kube_job}[kind]
    return {**made, "metadata": {"name": name, **metadata}}


class Someone:
    """A user of the API server; may do everything that roles can grant."""

    def __init__(self, plane: ControlPlane, account: str) -> None:
        self._plane, self._account = plane, account

    def _kubectl(self, *arguments: str, text: str | None = None) -> str:
        return self._plane.kubectl(*arguments, f"--as={self._account}", f"--namespace={TEAM}", text=text)

    def create(self, body: dict[str, Any]) -> str | None:
        """What is said against it, None if it was created."""
        try:
            self._kubectl("create", "--filename=-", text=json.dumps(body))
        except RuntimeError as error:
            return str(error)
        return None

    def patch(self, kind: str, name: str, patch: dict[str, Any]) -> str | None:
        """What is said against it, None if it was done."""
        try:
            self._kubectl("patch", kind, name, "--type=merge", f"--patch={json.dumps(patch)}")
        except RuntimeError as error:
            return str(error)
        return None


@pytest.fixture(scope="module")
def policy(control_plane: ControlPlane) -> Iterator[ControlPlane]:
    """The chart's policy for one namespace, in force."""
    built = subprocess.run([str(ROOT / "tools" / "cluster" / "tools.sh"), "helm"], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    rendered = subprocess.run(
        [
            *(f"{built.stdout.strip()}/helm", "template", "modelpress", str(CHART), f"--namespace={HOME}"),
            *("--kube-version=1.35", "--show-only=templates/admissionpolicy.yaml"),
            *("--set", f"watchNamespaces={{{TEAM}}}", "--set", "admissionPolicy.exemptUsers={restorer}"),
            *("--set", "admissionPolicy.exemptGroups={keepers}"),
        ],
        capture_output=True,
        text=True,
    )
    assert rendered.returncode == 0, rendered.stderr
    for namespace in (HOME, TEAM, "policy-other"):
        control_plane.kubectl("create", "namespace", namespace)
    for user in ("mallory", "restorer", OPERATOR):
        control_plane.kubectl(
            *("create", "clusterrolebinding", user.replace(":", "-"), "--clusterrole=cluster-admin", f"--user={user}")
        )
    control_plane.kubectl("apply", "--server-side", "--validate=strict", "--filename=-", text=rendered.stdout)
    forged = plain("CompressionJob", "probe", labels={"modelpress.dev/trial": "1"})
    where = RESOURCES["CompressionJob"].format(TEAM) + "?dryRun=All"

    def in_force() -> bool:
        try:
            control_plane.request("POST", where, forged)
        except urllib.error.HTTPError as error:
            return error.code == 403
        return False

    until(in_force, "the policy to be in force")
    status = control_plane.kubectl(
        *("get", "validatingadmissionpolicy", f"modelpress-{HOME}", "--output=jsonpath={.status.typeChecking}")
    )
    assert "warning" not in status.lower(), status
    yield control_plane
    control_plane.kubectl("delete", "--filename=-", text=rendered.stdout)


@pytest.mark.parametrize("kind", RESOURCES)
def test_what_is_the_operators_is_refused_to_others(policy: ControlPlane, kind: str) -> None:
    """Labels and annotations of modelpress.dev/, owners of its kinds; what is not its own is nobody's business."""
    mallory, name = Someone(policy, "mallory"), f"a-{kind.lower()}"
    for metadata, field in (
        ({"labels": {"modelpress.dev/trial": "5"}}, "metadata.labels"),
        ({"annotations": {"modelpress.dev/parameters": "{}"}}, "metadata.annotations"),
        ({"ownerReferences": [owner("CompressionSweep")]}, "metadata.ownerReferences"),
        ({"ownerReferences": [{**owner("CompressionJob"), "controller": False}]}, "metadata.ownerReferences"),
    ):
        said = mallory.create(plain(kind, name, **metadata))
        assert said is not None
        assert "ValidatingAdmissionPolicy" in said
        assert field in said
    free = {
        "labels": {"modelpress.example/trial": "5", "team": "a"},
        "annotations": {"example.com/modelpress.dev": "x"},
    }
    assert mallory.create(plain(kind, name, **free)) is None
    assert "metadata.labels" in (mallory.patch(kind, name, {"metadata": {"labels": {"modelpress.dev/x": "1"}}}) or "")
    taken = mallory.patch(kind, name, {"metadata": {"ownerReferences": [owner("CompressionSweep")]}})
    assert "metadata.ownerReferences" in (taken or "")
    assert mallory.patch(kind, name, {"metadata": {"labels": {"team": "b"}}}) is None


@pytest.mark.parametrize("kind", RESOURCES)
def test_the_operator_and_who_is_exempt_may(policy: ControlPlane, kind: str) -> None:
    """The operator makes them; others may change the rest of such an object, but none of these, nor take them away."""
    name = f"b-{kind.lower()}"
    metadata = {"labels": {"modelpress.dev/trial": "5"}, "annotations": {"modelpress.dev/parameters": "{}"}}
    assert Someone(policy, "restorer").create(plain(kind, f"{name}-r", **metadata)) is None
    operator, mallory = Someone(policy, OPERATOR), Someone(policy, "mallory")
    assert operator.create(plain(kind, name, **metadata)) is None
    assert mallory.patch(kind, name, {"metadata": {"labels": {"team": "a"}}}) is None
    assert mallory.patch(kind, name, {"spec": {"suspend": True}}) is None
    for change in (
        {"labels": {"modelpress.dev/trial": "6"}},
        {"labels": {"modelpress.dev/trial": None}},
        {"annotations": {"modelpress.dev/parameters": '{"a": 1}'}},
        {"annotations": None},
    ):
        assert "are the operator's" in (mallory.patch(kind, name, {"metadata": change}) or ""), change
    assert operator.patch(kind, name, {"metadata": {"labels": {"modelpress.dev/trial": "6"}}}) is None


def test_owners_may_go(policy: ControlPlane) -> None:
    """The garbage collector takes them away from children that are to outlive their sweep."""
    operator, mallory = Someone(policy, OPERATOR), Someone(policy, "mallory")

    def family(sweep: str, child: str) -> dict[str, object]:
        plain_sweep = json.dumps(plain("CompressionSweep", sweep))
        made = policy.kubectl("create", f"--namespace={TEAM}", "--filename=-", "--output=json", text=plain_sweep)
        owning = {**owner("CompressionSweep", json.loads(made)["metadata"]["uid"]), "name": sweep}
        assert operator.create(plain("CompressionJob", child, ownerReferences=[owning])) is None
        return owning

    # A collector that does not watch these kinds yet would take the orphan for one whose owner never was.
    family("watched", "collected")
    policy.kubectl("delete", "csweep", "watched", f"--namespace={TEAM}")
    until(
        lambda: "collected" not in policy.kubectl("get", "cjob", f"--namespace={TEAM}", "--output=name"),
        "the garbage collector to watch jobs",
    )
    theirs = family("s", "orphan")
    policy.kubectl("delete", "csweep", "s", f"--namespace={TEAM}", "--cascade=orphan")
    until(
        lambda: (
            "ownerReferences" not in policy.kubectl("get", "cjob", "orphan", f"--namespace={TEAM}", "--output=yaml")
        ),
        "the garbage collector to take the owner away",
    )
    assert "metadata.ownerReferences" in (
        mallory.patch("CompressionJob", "orphan", {"metadata": {"ownerReferences": [theirs]}}) or ""
    )


def test_other_namespaces_are_left_alone(policy: ControlPlane) -> None:
    """With watchNamespaces the policy is for those."""
    body = plain("CompressionJob", "free", labels={"modelpress.dev/trial": "5"})
    policy.request("POST", RESOURCES["CompressionJob"].format("policy-other"), body)


def test_a_job_beyond_what_is_allowed_stalls(cluster: Cluster) -> None:
    """It says InvalidSpec with the field and what to do, no Job is made; a job beside it runs to its end."""
    allowed = json.dumps({"images": ["modelpress/*"], "podTemplate": True})
    volume = {"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}
    with cluster.operator(MODELPRESS_RUNNER_ALLOWED=allowed) as operator:
        operator.wait_ready()
        cluster.create(job("image", runner={"image": "elsewhere/a:1"}))
        cluster.create(job("token", runner={"podTemplate": {"spec": {"volumes": [volume]}}}))
        cluster.create(job("fine", runner={"image": "modelpress/own:1"}))
        for name, field in (
            ("image", "spec.runner.image: this cluster does not let jobs have the image elsewhere/a:1"),
            ("token", "spec.runner.podTemplate.spec.volumes[0].projected.sources[0].serviceAccountToken: this cluster"),
        ):
            found = cluster.wait_condition("CompressionJob", name, "Stalled", status="True", reason="InvalidSpec")
            assert field in found["message"]
        cluster.wait_for("CompressionJob", "fine", "Succeeded")
        owners = {one["metadata"]["ownerReferences"][0]["name"] for one in cluster.list("apis/batch/v1/jobs")}
        assert owners == {"fine"}
