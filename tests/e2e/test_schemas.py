"""Chart and examples against the schemas that the real API server publishes, by kubeconform, strictly."""

from __future__ import annotations

import copy
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import schemas
import yaml
from running import Running

ROOT = Path(__file__).resolve().parents[2]
EVERYTHING = {
    "metrics__serviceMonitor__enabled": "true",
    "metrics__prometheusRule__enabled": "true",
    "metrics__dashboard__enabled": "true",
    "podDisruptionBudget__maxUnavailable": "50%",
    "runner__serviceAccountName": "trainer",
}
Check = Callable[[list[dict[str, Any]]], dict[str, tuple[str, str]]]


def documents(*paths: Path) -> list[dict[str, Any]]:
    """All YAML documents of the files."""
    return [one for path in paths for one in yaml.load_all(path.read_text(), Loader=yaml.CSafeLoader) if one]


@pytest.fixture(scope="module")
def conform(cluster: Running, tmp_path_factory: pytest.TempPathFactory) -> Check:
    """kubeconform: status and message of each object, by kind/name. No schema is taken from anywhere else."""
    folder = tmp_path_factory.mktemp("schemas")
    own = sorted((ROOT / "crds").glob("*.yaml"))
    theirs = [
        cluster.monitoring / f"monitoring.coreos.com_{name}.yaml" for name in ("servicemonitors", "prometheusrules")
    ]
    openapi = json.loads(cluster.kubectl("get", "--raw", "/openapi/v2"))
    assert schemas.write(openapi, documents(*own, *theirs), folder) > 200

    def run(objects: list[dict[str, Any]]) -> dict[str, tuple[str, str]]:
        location = f"{folder}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json"
        command = [str(cluster.tools / "kubeconform"), "-strict", "-verbose", "-output=json"]
        done = subprocess.run(
            [*command, "-schema-location", location, "-"],
            input="\n---\n".join(json.dumps(one) for one in objects),
            capture_output=True,
            text=True,
        )
        found = json.loads(done.stdout)["resources"]
        assert len(found) == len(objects), done.stderr
        assert (done.returncode == 0) == all(one["status"] == "statusValid" for one in found)
        return {f"{one['kind']}/{one['name']}": (one["status"], one.get("msg", "")) for one in found}

    return run


def test_the_rendered_chart_conforms(cluster: Running, conform: Check) -> None:
    """Every object of the chart, with everything that can be switched on, and with nothing."""
    for values in (EVERYTHING, {}):
        objects = cluster.rendered(**values)
        assert len(objects) > 8
        found = conform(objects)
        assert {name: why for name, why in found.items() if why[0] != "statusValid"} == {}


def test_the_examples_conform(conform: Check) -> None:
    """Every manifest below examples/, and the CustomResourceDefinitions themselves."""
    files = sorted((ROOT / "examples").glob("*/*.yaml"))
    objects = documents(*files, *sorted((ROOT / "crds").glob("*.yaml")))
    assert {"CompressionJob", "CompressionSweep", "ConfigMap"} <= {one["kind"] for one in objects}
    for one in objects:
        assert {name: why for name, why in conform([one]).items() if why[0] != "statusValid"} == {}


def spoilt(value: dict[str, Any], path: str, new: Any) -> dict[str, Any]:
    """A copy with another value, or without one, at a path of keys."""
    changed = copy.deepcopy(value)
    *folders, last = path.split("/")
    place: Any = changed
    for part in folders:
        place = place[int(part) if part.isdigit() else part]
    if new is None:
        del place[last]
    else:
        place[last] = new
    return changed


@pytest.mark.parametrize(
    ("kind", "path", "value", "says"),
    [
        ("Deployment", "spec/template/spec/containers/0/portz", [], "portz"),
        ("Deployment", "spec/replicas", "two", "replicas"),
        ("Deployment", "spec/template/spec/containers/0/name", None, "name"),
        ("CompressionJob", "spec/stages/0/prune/algoritm", "l1", "algoritm"),
        ("CompressionJob", "spec/stages/0/prune/algorithm", "l7", "algorithm"),
        ("CompressionJob", "spec/model", None, "model"),
        ("CompressionSweep", "spec/maxTrials", 0, "maxTrials"),
    ],
)
def test_what_is_wrong_is_found(cluster: Running, conform: Check, kind: str, path: str, value: Any, says: str) -> None:
    """The same objects, each with one mistake, are refused by the name of the field."""
    everything = [*cluster.rendered(), *documents(*sorted((ROOT / "examples" / "digits").glob("*.yaml")))]
    (good,) = [one for one in everything if one["kind"] == kind]
    (why,) = conform([spoilt(good, path, value)]).values()
    assert why[0] == "statusInvalid"
    assert says in why[1]
