"""What the chart renders for values that people give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from chart_objects import EVERYTHING, Render, environment, of_kind, only

from modelpress_operator.allowed import Allowed
from modelpress_operator.settings import load_settings

CRDS = Path(__file__).resolve().parents[3] / "crds"
READERS = {"get", "list", "watch"}


def pod_of(objects: list[dict[str, Any]]) -> dict[str, Any]:
    """The pod template of the Deployment."""
    template: dict[str, Any] = only(objects, "Deployment")["spec"]["template"]
    return template


def test_crds_equal_the_generated_ones(render: Render) -> None:
    """Apart from labels and annotations the chart's CRDs are those of crds/, to the last number."""
    rendered = {item["metadata"]["name"]: item for item in of_kind(render(), "CustomResourceDefinition")}
    for item in rendered.values():
        assert item["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
        assert item["metadata"].pop("labels")["app.kubernetes.io/part-of"] == "modelpress"
    files = [yaml.load(file.read_text(), Loader=yaml.CSafeLoader) for file in CRDS.glob("*.yaml")]
    assert rendered == {item["metadata"]["name"]: item for item in files}
    assert len(rendered) == 2


def test_crds_can_be_left_out_or_not_kept(render: Render) -> None:
    """crds.enabled, crds.keep and crds.annotations do what they say."""
    assert of_kind(render({"crds": {"enabled": False}}), "CustomResourceDefinition") == []
    for crd in of_kind(render({"crds": {"keep": False, "annotations": {"a/b": "c"}}}), "CustomResourceDefinition"):
        assert crd["metadata"]["annotations"] == {"a/b": "c"}
    for crd in of_kind(render({"crds": {"annotations": {"a/b": "c"}}}), "CustomResourceDefinition"):
        assert crd["metadata"]["annotations"] == {"a/b": "c", "helm.sh/resource-policy": "keep"}


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["defaults", "everything"])
def test_operator_understands_its_environment(render: Render, values: dict[str, Any]) -> None:
    """The operator's own reader takes every MODELPRESS_ variable, and knows all of them."""
    given = environment(render(values))
    settings = load_settings([], given)
    names = {name for name in given if name.startswith("MODELPRESS_")}
    assert names <= {f"MODELPRESS_{field.upper()}" for field in vars(settings)}
    assert (settings.port, settings.probe_port, settings.progress_port) == (8080, 8081, 8082)
    assert settings.lease_name == "modelpress-operator"
    assert settings.identity == "$(POD_NAME)_$(POD_UID)"  # the kubelet puts both in
    if values:
        assert settings.namespaces == ("team-a", "team-b")
        assert settings.runner_image == "registry.example/runner:1"
        assert settings.runner_image_pull_policy == "Always"
        assert settings.runner_service_account == "trainer"
        assert settings.runner_pod_template == EVERYTHING["runner"]["podTemplate"]
        assert settings.runner_allowed == Allowed.model_validate(EVERYTHING["runner"]["allowed"]).to_dict()
        assert (settings.runner_fs_group, settings.runner_grace_seconds) == (2000, 45)
    else:
        assert settings.cluster_wide
        assert settings.runner_image == "modelpress/runner:0.1.0.dev0"
        assert settings.runner_image_pull_policy is None
        assert settings.runner_service_account is None
        assert settings.runner_pod_template is None
        assert settings.runner_allowed == Allowed().to_dict()  # the chart's defaults are the operator's
        assert (settings.runner_fs_group, settings.runner_grace_seconds) == (65532, 120)


def test_no_group_is_a_group_too(render: Render) -> None:
    """null leaves the choice to the cluster, 0 is root's."""
    for value, meant in ((None, None), (0, 0)):
        given = environment(render({"runner": {"fsGroup": value}}))
        assert load_settings([], given).runner_fs_group == meant


def test_numbers_reach_the_operator(render: Render) -> None:
    """Workers, times and level go through to the operator's settings as they were given."""
    given = environment(
        render(
            {
                "workers": 2000000,
                "watchSilenceSeconds": 900,
                "lostPodSeconds": 600.5,
                "logLevel": "debug",
                "leaderElection": {"leaseName": "press", "leaseSeconds": 2.5},
            }
        )
    )
    settings = load_settings([], given)
    assert (settings.workers, settings.watch_silence_seconds, settings.log_level) == (2000000, 900.0, "debug")
    assert settings.lost_pod_seconds == 600.5
    assert (settings.lease_name, settings.lease_seconds) == ("press", 2.5)


def test_pods_options(render: Render) -> None:
    """Digest, pull secrets, labels, placement and environment land in the pod, and cannot break its selector."""
    objects = render(EVERYTHING)
    pod = pod_of(objects)
    spec = pod["spec"]
    assert spec["containers"][0]["image"] == "modelpress/operator@sha256:" + "a" * 64
    assert spec["imagePullSecrets"] == [{"name": "registry"}]
    assert spec["priorityClassName"] == "system-cluster-critical"
    assert spec["tolerations"] == EVERYTHING["tolerations"]
    assert spec["nodeSelector"] == EVERYTHING["nodeSelector"]
    assert spec["affinity"] == EVERYTHING["affinity"]
    assert pod["metadata"]["annotations"] == {"example.com/note": "one"}
    assert pod["metadata"]["labels"]["example.com/team"] == "ml"
    assert pod["metadata"]["labels"]["app.kubernetes.io/component"] == "operator"
    assert {"name": "HTTPS_PROXY", "value": "http://proxy.example:3128"} in spec["containers"][0]["env"]
    selector = only(objects, "Deployment")["spec"]["selector"]
    (spread,) = spec["topologySpreadConstraints"]
    assert spread["topologyKey"] == "topology.kubernetes.io/zone"
    assert spread["labelSelector"] == selector


def test_selectors_find_the_operators_pods(render: Render) -> None:
    """Deployment, Service, budget, NetworkPolicy and ServiceMonitor all select what they should."""
    objects = render(EVERYTHING)
    labels = pod_of(objects)["metadata"]["labels"].items()
    service = only(objects, "Service")
    selectors = [
        only(objects, "Deployment")["spec"]["selector"]["matchLabels"],
        service["spec"]["selector"],
        only(objects, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        only(objects, "NetworkPolicy", "-operator")["spec"]["podSelector"]["matchLabels"],
    ]
    for selector in selectors:
        assert selector.items() <= labels
    monitor = only(objects, "ServiceMonitor")["spec"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert [endpoint["port"] for endpoint in monitor["endpoints"]] == ["metrics"]
    assert [port["name"] for port in service["spec"]["ports"]] == ["metrics", "progress"]
    test_pod = only(objects, "Pod", "-test")["metadata"]["labels"].items()
    assert not selectors[1].items() <= test_pod
    admitted = only(objects, "NetworkPolicy", "-operator")["spec"]["ingress"][0]["from"]
    assert any(peer["podSelector"]["matchLabels"].items() <= test_pod for peer in admitted if "podSelector" in peer)


def test_each_port_has_its_own_visitors(render: Render) -> None:
    """Metrics: who is named. Progress: trials' pods, and who is named. Probes: nobody but the node."""
    prometheus, proxy = ({"podSelector": {"matchLabels": {"app": name}}} for name in ("prometheus", "proxy"))
    trials = {
        "namespaceSelector": {},
        "podSelector": {"matchLabels": {"app.kubernetes.io/managed-by": "modelpress-operator"}},
    }
    objects = render({"networkPolicy": {"from": [prometheus], "progressFrom": [proxy]}})
    metrics, progress = only(objects, "NetworkPolicy", "-operator")["spec"]["ingress"]
    assert [port["port"] for port in metrics["ports"]] == ["metrics"]
    assert prometheus in metrics["from"]
    assert trials not in metrics["from"]
    assert ([port["port"] for port in progress["ports"]], progress["from"]) == (["progress"], [trials, proxy])
    metrics, progress = only(render(), "NetworkPolicy", "-operator")["spec"]["ingress"]
    assert "from" not in metrics
    assert progress["from"] == [trials]
    (metrics,) = only(render({"progress": False}), "NetworkPolicy", "-operator")["spec"]["ingress"]
    assert metrics["ports"] == [{"port": "metrics", "protocol": "TCP"}]
    container = pod_of(render())["spec"]["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"metrics": 8080, "probes": 8081, "progress": 8082}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["port"] == "probes"
    given = environment(render({"service": {"progressPort": 99}}))
    assert given["MODELPRESS_PROGRESS_URL"].endswith(".svc:99/progress")
    assert given["MODELPRESS_ADDRESS"] == "http://$(POD_IP):8082"


def test_nobody_talks_to_a_runner(render: Render) -> None:
    """In each namespace that is served, by the labels of a trial's pods; a gang's own policy lets its ranks meet."""
    from modelpress_operator.resources import LABELS, MANAGED_BY, MANAGER

    policies = [
        item for item in of_kind(render(EVERYTHING), "NetworkPolicy") if item["metadata"]["name"].endswith("-trials")
    ]
    assert [item["metadata"]["namespace"] for item in policies] == EVERYTHING["watchNamespaces"]
    trials = {"matchLabels": {MANAGED_BY: MANAGER, f"{LABELS}/purpose": "trial"}}
    for item in policies:
        assert item["spec"] == {
            "podSelector": trials,
            "policyTypes": ["Ingress"],
            "ingress": [],
        }
    assert len(of_kind(render(), "NetworkPolicy")) == 1


def test_replicas_are_spread_by_default(render: Render) -> None:
    """Two replicas, on different nodes where possible, one missing at most while nodes are drained."""
    objects = render()
    assert only(objects, "Deployment")["spec"]["replicas"] == 2
    (spread,) = pod_of(objects)["spec"]["topologySpreadConstraints"]
    assert (spread["topologyKey"], spread["whenUnsatisfiable"]) == ("kubernetes.io/hostname", "ScheduleAnyway")
    assert only(objects, "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1


def grants(objects: list[dict[str, Any]]) -> dict[tuple[str, str], set[str]]:
    """(group, resource) -> verbs of all roles that are bound to the operator's service account."""
    found: dict[tuple[str, str], set[str]] = {}
    bound = {
        (item["roleRef"]["kind"], item["metadata"].get("namespace"), item["roleRef"]["name"])
        for item in objects
        if item["kind"].endswith("RoleBinding")
    }
    for item in objects:
        if (item["kind"], item["metadata"].get("namespace"), item["metadata"]["name"]) in bound:
            for rule in item["rules"]:
                for group in rule["apiGroups"]:
                    for resource in rule["resources"]:
                        found.setdefault((group, resource), set()).update(rule["verbs"])
    return found


@pytest.mark.parametrize("values", [{}, {"watchNamespaces": ["team-a", "team-b", "team-a"]}], ids=["cluster", "two"])
def test_least_rights(render: Render, values: dict[str, Any]) -> None:
    """The operator gets these rights and no others, no wildcard among them, wherever it serves."""
    objects = render(values)
    assert grants(objects) == {
        ("modelpress.dev", "compressionjobs"): {"get", "list", "watch", "create"},
        ("modelpress.dev", "compressionsweeps"): {"list", "watch"},
        ("modelpress.dev", "compressionjobs/status"): {"patch"},
        ("modelpress.dev", "compressionsweeps/status"): {"patch"},
        ("batch", "jobs"): {"get", "list", "watch", "create", "delete"},
        ("", "pods"): {"list", "watch"},
        ("", "services"): {"get", "create", "delete"},
        ("networking.k8s.io", "networkpolicies"): {"get", "create", "delete"},
        ("events.k8s.io", "events"): {"create", "list"},
        ("coordination.k8s.io", "leases"): {"create", "get", "patch"},
    }
    cluster = [item["metadata"]["name"] for item in of_kind(objects, "ClusterRoleBinding")]
    roles = {item["metadata"]["namespace"] for item in of_kind(objects, "RoleBinding")}
    if values:
        assert (cluster, roles) == ([], {"team-a", "team-b", "press"})
    else:
        assert (cluster, roles) == (["modelpress-press"], {"press"})


def test_lease_rights_name_the_lease(render: Render) -> None:
    """Only the operator's own Lease can be read and changed."""
    role = only(render({"leaderElection": {"leaseName": "press"}}), "Role", "-lease")
    named = [rule for rule in role["rules"] if rule["verbs"] != ["create"]]
    assert [rule["resourceNames"] for rule in named] == [["press"]]


def test_user_roles_are_aggregated(render: Render) -> None:
    """view reads both kinds; edit and admin change them too, and nobody writes a status."""
    prefix = "rbac.authorization.k8s.io/aggregate-to-"
    reached: dict[str, dict[str, set[str]]] = {"view": {}, "edit": {}, "admin": {}}
    for role in of_kind(render(), "ClusterRole"):
        for name, verbs in reached.items():
            if role["metadata"]["labels"].get(prefix + name) == "true":
                for rule in role["rules"]:
                    assert rule["apiGroups"] == ["modelpress.dev"]
                    for resource in rule["resources"]:
                        verbs.setdefault(resource, set()).update(rule["verbs"])
    change = {"create", "delete", "deletecollection", "patch", "update"}
    assert reached["view"] == {
        "compressionjobs": READERS,
        "compressionjobs/status": {"get"},
        "compressionsweeps": READERS,
        "compressionsweeps/status": {"get"},
        "compressionsweeps/scale": {"get"},
    }
    both = {
        "compressionjobs": READERS | change,
        "compressionjobs/status": {"get"},
        "compressionsweeps": READERS | change,
        "compressionsweeps/status": {"get"},
        "compressionsweeps/scale": {"get", "patch", "update"},
    }
    assert reached["edit"] == reached["admin"] == both
    assert len(of_kind(render({"rbac": {"aggregate": False}}), "ClusterRole")) == 1


def test_service_account_of_ones_own(render: Render) -> None:
    """With create: false the chart binds and uses the named account and makes none."""
    objects = render({"serviceAccount": {"create": False, "name": "robot"}})
    assert of_kind(objects, "ServiceAccount") == []
    assert pod_of(objects)["spec"]["serviceAccountName"] == "robot"
    for binding in (item for item in objects if item["kind"].endswith("RoleBinding")):
        assert [subject["name"] for subject in binding["subjects"]] == ["robot"]


def test_optional_objects(render: Render) -> None:
    """Each switch takes away or adds its own objects only."""
    off = {
        "crds": {"enabled": False},
        "serviceAccount": {"create": False},
        "rbac": {"create": False, "aggregate": False},
        "podDisruptionBudget": {"enabled": False},
        "networkPolicy": {"enabled": False},
        "admissionPolicy": {"enabled": False},
    }
    assert sorted(item["kind"] for item in render(off)) == ["Deployment", "Pod", "Service"]
    kinds = {item["kind"] for item in render(EVERYTHING)}
    assert {"ServiceMonitor", "PrometheusRule", "ConfigMap"} <= kinds
    assert not {"ServiceMonitor", "PrometheusRule", "ConfigMap"} & {item["kind"] for item in render()}


def test_names_fit_and_tell_releases_apart(render: Render) -> None:
    """Names stay within 63 characters, and carry the release's."""
    for release in ("x" * 53, "a"):
        for item in render(EVERYTHING, release=release):
            if item["kind"] != "CustomResourceDefinition":
                assert len(item["metadata"]["name"]) <= (
                    63 if item["kind"] in ("Service", "Pod", "Deployment") else 120
                )
                assert item["metadata"]["name"].startswith(release[:40])
    assert only(render({"fullnameOverride": "press"}), "Deployment")["metadata"]["name"] == "press-operator"
    assert only(render({"nameOverride": "squeeze"}), "Deployment")["metadata"]["name"] == "modelpress-squeeze-operator"
    assert len({item["metadata"]["namespace"] for item in of_kind(render(), "Deployment")}) == 1
