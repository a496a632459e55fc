"""The chart on a real API server: installed, upgraded, removed, its rights asked for, the operator run with them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from control_plane import ControlPlane
from operator_process import OperatorProcess, until

ROOT = Path(__file__).resolve().parents[3]
CHART = ROOT / "helm" / "modelpress"
JOB = {
    "apiVersion": "modelpress.dev/v1alpha1",
    "kind": "CompressionJob",
    "metadata": {"name": "digits"},
    "spec": {
        "model": {"entrypoint": "digits:create"},
        "stages": [{"prune": {"configList": [{"opTypes": ["Conv2d"], "sparsity": 0.5}]}}],
        "store": {"uri": "s3://models/out"},
    },
}
# What Kubernetes lets every account ask.
FOR_ALL = {"selfsubjectreviews", "selfsubjectaccessreviews", "selfsubjectrulesreviews"}
OWN = {
    "compressionjobs.modelpress.dev": {"get", "list", "watch", "create"},
    "compressionsweeps.modelpress.dev": {"list", "watch"},
    "compressionjobs.modelpress.dev/status": {"patch"},
    "compressionsweeps.modelpress.dev/status": {"patch"},
    "jobs.batch": {"get", "list", "watch", "create", "delete"},
    "pods": {"list", "watch"},
    "services": {"get", "create", "delete"},
    "networkpolicies.networking.k8s.io": {"get", "create", "delete"},
    "events.events.k8s.io": {"create", "list"},
}
LEASE = {"leases.coordination.k8s.io": {"create"}, "leases.coordination.k8s.io modelpress-operator": {"get", "patch"}}
Helm = Callable[..., str]


@pytest.fixture(scope="module")
def helm(control_plane: ControlPlane) -> Helm:
    """Runs helm on the cluster; any failure fails the test with what helm says."""
    script = ROOT / "tools" / "cluster" / "tools.sh"
    built = subprocess.run([str(script), "helm"], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    binary = f"{built.stdout.strip()}/helm"

    def run(*arguments: str) -> str:
        command = [binary, f"--kubeconfig={control_plane.kubeconfig}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180)
        assert done.returncode == 0, f"helm {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    return run


@pytest.fixture
def install(helm: Helm, control_plane: ControlPlane, tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Installs the chart into a new namespace; the file of values can be used again. Removed at the end."""
    releases: list[tuple[str, str]] = []

    def run(namespace: str, release: str = "modelpress", **values: Any) -> Path:
        file = tmp_path / f"{namespace}.yaml"
        file.write_text(yaml.safe_dump(values))
        # The CRDs are there already, from other tests or from kubectl.
        helm(
            *("install", release, str(CHART), "--namespace", namespace, "--create-namespace"),
            *("--values", str(file), "--take-ownership"),
        )
        releases.append((namespace, release))
        return file

    yield run
    for namespace, release in releases:
        helm("uninstall", release, "--namespace", namespace, "--ignore-not-found", "--wait")


def rights(cluster: ControlPlane, namespace: str, account: str) -> dict[str, set[str]]:
    """`kubectl auth can-i --list` of a service account: verbs by resource, and by name where rules name one."""
    table = cluster.kubectl("auth", "can-i", "--list", f"--as={account}", f"--namespace={namespace}")
    found: dict[str, set[str]] = {}
    for line in table.splitlines()[1:]:
        head, urls, names, verbs = (part.strip("[] ") for part in _columns(line))
        if urls or head.partition(".")[0] in FOR_ALL:
            continue
        found.setdefault(f"{head} {names}".strip(), set()).update(verbs.split())
    return found


def _columns(line: str) -> tuple[str, str, str, str]:
    """A line of the table: resource, then three lists in brackets."""
    resource, _, rest = line.partition("[")
    urls, names, verbs = (part.split("]")[0] for part in rest.split("["))
    return resource, urls, names, verbs


def names(cluster: ControlPlane, *arguments: str) -> set[str]:
    """kind/name of what kubectl finds."""
    return set(cluster.kubectl("get", *arguments, "--output=name", "--ignore-not-found").split())


def test_server_takes_every_object(control_plane: ControlPlane, helm: Helm) -> None:
    """Strict server-side validation, under Pod Security restricted, finds nothing in any object of three value sets."""
    control_plane.kubectl("create", "namespace", "strict")
    label = "pod-security.kubernetes.io/enforce=restricted"
    control_plane.kubectl("label", "namespace", "strict", label)
    sets: list[dict[str, Any]] = [
        {},
        {"watchNamespaces": ["team-a", "strict"], "metrics": {"dashboard": {"enabled": True}}},
        {
            "image": {"digest": "sha256:" + "a" * 64},
            "imagePullSecrets": [{"name": "registry"}],
            "networkPolicy": {
                "from": [{"podSelector": {}}],
                "egress": [{"ports": [{"port": 6443, "protocol": "TCP"}]}],
            },
            "tolerations": [{"key": "a", "operator": "Exists"}],
            "topologySpreadConstraints": [
                {"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "DoNotSchedule"}
            ],
            "podDisruptionBudget": {"maxUnavailable": "50%"},
            "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy.example:3128"}],
        },
    ]
    for number, values in enumerate(sets):
        file = control_plane.folder / f"strict-{number}.yaml"
        file.write_text(yaml.safe_dump(values))
        text = helm("template", "m", str(CHART), "-n", "strict", "--kube-version=1.35", "--values", str(file))
        objects = [item for item in yaml.load_all(text, Loader=yaml.CSafeLoader) if item]
        said = control_plane.kubectl(
            *("apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict"),
            *("--field-manager=dry-run", "--filename=-"),
            text=text,
        )
        assert len(said.splitlines()) == len(objects)
        # A Deployment is not judged by Pod Security; its pod is.
        (deployment,) = [item for item in objects if item["kind"] == "Deployment"]
        template = deployment["spec"]["template"]
        template["spec"].pop("serviceAccountName")
        pod = {"apiVersion": "v1", "kind": "Pod", **template}
        pod["metadata"]["name"] = "operator"
        control_plane.kubectl("create", "--dry-run=server", "-n", "strict", "--filename=-", text=json.dumps(pod))


def test_prometheus_operator_takes_its_objects(control_plane: ControlPlane, helm: Helm) -> None:
    """The ServiceMonitor and the PrometheusRule pass the Prometheus operator's own schemas, strictly."""
    script = ROOT / "tools" / "cluster" / "monitoring.sh"
    found = subprocess.run([str(script)], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    files = [
        f"--filename={found.stdout.strip()}/monitoring.coreos.com_{name}.yaml"
        for name in ("servicemonitors", "prometheusrules")
    ]
    control_plane.kubectl("apply", "--server-side", *files)
    try:
        control_plane.wait_established(*files)
        values = {
            "serviceMonitor": {
                "enabled": True,
                "labels": {"release": "prometheus"},
                "relabelings": [{"action": "labeldrop", "regex": "pod_ip"}],
                "metricRelabelings": [{"action": "drop", "sourceLabels": ["le"], "regex": "0.001"}],
            },
            "prometheusRule": {
                "enabled": True,
                "alertLabels": {"team": "ml"},
                "additionalRules": [{"record": "modelpress:trials", "expr": "sum(modelpress_trials_total)"}],
            },
        }
        file = control_plane.folder / "monitoring.yaml"
        file.write_text(yaml.safe_dump({"metrics": values}))
        templates = [f"--show-only=templates/{name}.yaml" for name in ("servicemonitor", "prometheusrule")]
        text = helm(
            *("template", "m", str(CHART), "-n", "default", "--kube-version=1.35", "--values", str(file), *templates)
        )
        arguments = ("apply", "--server-side", "--dry-run=server", "--validate=strict", "--filename=-")
        assert len(control_plane.kubectl(*arguments, text=text).splitlines()) == 2
    finally:
        control_plane.kubectl("delete", *files)


def test_rights_cluster_wide(install: Callable[..., Path], control_plane: ControlPlane) -> None:
    """Everywhere the operator may do what it needs and no more: no Secret, no ConfigMap, no exec, no other kind."""
    install("press-wide")
    account = "system:serviceaccount:press-wide:modelpress-operator"
    assert rights(control_plane, "team-a", account) == OWN
    assert rights(control_plane, "press-wide", account) == OWN | LEASE
    assert rights(control_plane, "team-a", "system:serviceaccount:press-wide:default") == {}


def test_rights_in_two_namespaces(install: Callable[..., Path], control_plane: ControlPlane) -> None:
    """With watchNamespaces there are no rights outside them, but for the Lease at home."""
    control_plane.kubectl("create", "namespace", "team-b")
    install("press-two", watchNamespaces=["team-a", "team-b"])
    account = "system:serviceaccount:press-two:modelpress-operator"
    assert rights(control_plane, "team-a", account) == OWN
    assert rights(control_plane, "team-b", account) == OWN
    assert rights(control_plane, "press-two", account) == LEASE
    assert rights(control_plane, "default", account) == {}


def test_people_get_what_their_role_says(install: Callable[..., Path], control_plane: ControlPlane) -> None:
    """Bound to `view` a person reads jobs and sweeps, bound to `edit` they change them; neither writes a status."""
    install("press-people")
    for role in ("view", "edit"):
        control_plane.kubectl(
            "create", "rolebinding", role, f"--clusterrole={role}", f"--user={role}er", "--namespace=press-people"
        )

    def may(user: str, verb: str, resource: str) -> bool:
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": user,
                "resourceAttributes": {
                    "namespace": "press-people",
                    "group": "modelpress.dev",
                    "verb": verb,
                    "resource": resource.partition("/")[0],
                    "subresource": resource.partition("/")[2],
                },
            },
        }
        answer = control_plane.request("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
        return bool(answer["status"]["allowed"])

    until(lambda: may("editer", "create", "compressionsweeps"), "the roles to be aggregated")
    for resource in ("compressionjobs", "compressionsweeps"):
        assert may("viewer", "watch", resource)
        assert not may("viewer", "create", resource)
        assert may("editer", "patch", resource)
        assert may("editer", "get", f"{resource}/status")
        assert not may("editer", "patch", f"{resource}/status")
    assert may("editer", "update", "compressionsweeps/scale")


def test_install_upgrade_uninstall(
    install: Callable[..., Path], control_plane: ControlPlane, helm: Helm, tmp_path: Path
) -> None:
    """An upgrade rolls the pods and brings CRDs back up to date; removal leaves the CRDs and people's objects only."""
    where = ("--namespace", "press-life")
    values = install("press-life")
    control_plane.kubectl("create", *where, "--filename=-", text=json.dumps(JOB))
    assert "rollout status deployment/modelpress-operator" in helm("get", "notes", "modelpress", *where)

    crd = "customresourcedefinition/compressionjobs.modelpress.dev"
    control_plane.kubectl(
        "patch", crd, "--type=json", '--patch=[{"op": "remove", "path": "/spec/names/shortNames"}]'
    )  # as if it came from an older chart
    values.write_text(yaml.safe_dump({"logLevel": "debug", "replicas": 3}))
    helm("upgrade", "modelpress", str(CHART), *where, "--values", str(values))
    assert names(control_plane, "cjob", *where) == {"compressionjob.modelpress.dev/digits"}  # the short name is back
    deployment = json.loads(control_plane.kubectl("get", "deployment/modelpress-operator", *where, "--output=json"))
    assert deployment["spec"]["replicas"] == 3
    environment = deployment["spec"]["template"]["spec"]["containers"][0]["env"]
    assert {"name": "MODELPRESS_LOG_LEVEL", "value": "debug"} in environment

    helm("uninstall", "modelpress", *where, "--wait")
    kinds = "deployment,service,serviceaccount,role,rolebinding,poddisruptionbudget,networkpolicy,configmap,lease"
    left = names(control_plane, kinds, *where, "--selector=app.kubernetes.io/instance=modelpress")
    assert left == set()
    cluster = names(control_plane, "clusterrole,clusterrolebinding", "--selector=app.kubernetes.io/part-of=modelpress")
    assert {name for name in cluster if "press-life" in name} == set()
    assert crd in {name.replace(".apiextensions.k8s.io", "") for name in names(control_plane, "crd")}
    assert names(control_plane, "cjob", *where) == {"compressionjob.modelpress.dev/digits"}

    # The CRDs that stayed are the release's still: it installs again without more ado.
    helm("install", "modelpress", str(CHART), *where)
    assert names(control_plane, "compressionjob", *where) == {"compressionjob.modelpress.dev/digits"}
    helm("uninstall", "modelpress", *where, "--wait")


@pytest.mark.parametrize("scope", ["cluster", "namespace"])
def test_operator_works_with_the_charts_rights(
    scope: str, install: Callable[..., Path], control_plane: ControlPlane, tmp_path: Path
) -> None:
    """The operator as a process, with the token of the chart's account, creates a job's first child and is refused
    nothing."""
    home, team = f"press-op-{scope}", f"team-op-{scope}"
    control_plane.kubectl("create", "namespace", team)
    install(home, **({} if scope == "cluster" else {"watchNamespaces": [team]}))
    path = f"/api/v1/namespaces/{home}/serviceaccounts/modelpress-operator/token"
    token = control_plane.request("POST", path, {"spec": {"expirationSeconds": 3600}})["status"]["token"]
    kubeconfig = control_plane.write_kubeconfig(f"chart-{scope}", token=token)
    with OperatorProcess(
        kubeconfig, team, folder=tmp_path, cluster_wide=scope == "cluster", MODELPRESS_LEASE_NAMESPACE=home
    ) as operator:
        operator.wait_ready()
        control_plane.kubectl("create", "--namespace", team, "--filename=-", text=json.dumps(JOB))
        until(
            lambda: names(control_plane, "job", "--namespace", team) == {"job.batch/digits-1"},
            "the job's first child",
            context=operator.tail,
        )
        until(lambda: names(control_plane, "events", "--namespace", team), "an Event", context=operator.tail)
        assert operator.metric("modelpress_leader") == 1
        script = (CHART / "files" / "test.py").read_text()  # what the pod of `helm test` runs
        url = {"URL": f"http://127.0.0.1:{operator.port}"}
        tested = subprocess.run([sys.executable, "-c", script], env=url, capture_output=True, text=True, timeout=90)
        assert (tested.returncode, tested.stdout) == (0, f"{url['URL']}: ready, with metrics\n"), tested.stderr
        assert operator.metric("modelpress_api_requests_total", code="403") == 0
        assert operator.metric("modelpress_events_lost_total") == 0
