"""Finding objects among rendered ones, and values that turn everything on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Render = Callable[..., list[dict[str, Any]]]
EVERYTHING: dict[str, Any] = {
    "watchNamespaces": ["team-a", "team-b"],
    "image": {"digest": "sha256:" + "a" * 64},
    "imagePullSecrets": [{"name": "registry"}],
    "runner": {
        "image": {"repository": "registry.example/runner", "tag": "1"},
        "imagePullPolicy": "Always",
        "serviceAccountName": "trainer",
        "podTemplate": {
            "metadata": {"annotations": {"example.com/price": "5$$ and $(POD_NAME)"}},
            "spec": {"nodeSelector": {"pool": "gpu"}, "tolerations": [{"key": "gpu", "operator": "Exists"}]},
        },
        "allowed": {
            "images": ["registry.example/*"],
            "serviceAccountNames": ["trainer"],
            "priorityClassNames": ["batch-*", "system-node-critical"],
            "podTemplate": False,
            "nodeName": True,
            "projectedTokens": True,
        },
        "fsGroup": 2000,
        "graceSeconds": 45,
    },
    "admissionPolicy": {
        "exemptUsers": ["system:serviceaccount:velero:velero"],
        "exemptGroups": ["system:masters"],
    },
    "serviceAccount": {"annotations": {"example.com/role": "none"}},
    "service": {"annotations": {"example.com/scrape": "no"}},
    "podLabels": {"example.com/team": "ml", "app.kubernetes.io/component": "other"},
    "podAnnotations": {"example.com/note": "one"},
    "podSecurityContext": {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "privileged": False},
    "resources": {"requests": {"cpu": "1", "memory": "1Gi"}},
    "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy.example:3128"}],
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "tolerations": [{"key": "cpu-only", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
    "topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "DoNotSchedule"}
    ],
    "priorityClassName": "system-cluster-critical",
    "networkPolicy": {
        "from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
        "progressFrom": [{"namespaceSelector": {"matchLabels": {"team": "ml"}}}],
        "egress": [{"ports": [{"port": 6443, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]}],
    },
    "metrics": {
        "serviceMonitor": {
            "enabled": True,
            "labels": {"release": "prometheus"},
            "relabelings": [{"action": "labeldrop", "regex": "pod_ip"}],
            "metricRelabelings": [{"action": "drop", "sourceLabels": ["le"], "regex": "0.001"}],
        },
        "prometheusRule": {
            "enabled": True,
            "alertLabels": {"team": "ml"},
            "additionalRules": [{"record": "modelpress:trials:rate1h", "expr": "rate(modelpress_trials_total[1h])"}],
        },
        "dashboard": {"enabled": True, "annotations": {"grafana_folder": "ML"}},
    },
}


def of_kind(objects: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """The objects of a kind."""
    return [item for item in objects if item["kind"] == kind]


def only(objects: list[dict[str, Any]], kind: str, ending: str = "") -> dict[str, Any]:
    """The one object of a kind whose name ends so."""
    found = [item for item in of_kind(objects, kind) if item["metadata"]["name"].endswith(ending)]
    assert len(found) == 1, [item["metadata"]["name"] for item in found]
    return found[0]


def environment(objects: list[dict[str, Any]]) -> dict[str, str]:
    """Variables of the operator's container that have a literal value."""
    container = only(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    return {item["name"]: expanded(item["value"]) for item in container["env"] if "value" in item}


def expanded(value: str) -> str:
    """A value as the kubelet hands it over, its references to other variables aside: $$ is $."""
    return value.replace("$$", "$")
