"""The generated CRDs on a real API server: pydantic's verdicts, immutability, defaults, names, scale."""

from __future__ import annotations

import copy
import json
import re
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import yaml
from control_plane import ControlPlane

CORPUS = Path(__file__).resolve().parents[2] / "corpus"
PLURAL = {"CompressionJob": "compressionjobs", "CompressionSweep": "compressionsweeps"}
JOB: dict[str, Any] = {
    "apiVersion": "modelpress.dev/v1alpha1",
    "kind": "CompressionJob",
    "metadata": {"name": "digits"},
    "spec": {"model": {"entrypoint": "digits:create"}, "stages": [{"finetune": {"epochs": 1}}]},
}
SWEEP: dict[str, Any] = {
    "apiVersion": "modelpress.dev/v1alpha1",
    "kind": "CompressionSweep",
    "metadata": {"name": "digits"},
    "spec": {
        "template": {"spec": JOB["spec"]},
        "searchSpace": [{"name": "epochs", "paths": ["/stages/0/finetune/epochs"], "int": {"min": 1, "max": 3}}],
        "objectives": [{"metric": "default"}],
        "maxTrials": 4,
        "budget": {"wallClockSeconds": 100},
    },
}


def collection(kind: str, namespace: str = "default") -> str:
    return f"/apis/modelpress.dev/v1alpha1/namespaces/{namespace}/{PLURAL[kind]}"


def refusal(error: urllib.error.HTTPError) -> str:
    """What the API server says against an object; any other error is raised again."""
    if error.code not in (400, 422):
        raise error
    return str(json.loads(error.read())["message"])


def create(cluster: ControlPlane, document: Any) -> dict[str, Any]:
    path = collection(document["kind"]) + "?fieldValidation=Strict"
    return cluster.request("POST", path, document)


def verdict(cluster: ControlPlane, document: str | dict[str, Any]) -> str | None:
    """None if the API server takes the document, YAML or data, under strict field validation, else what it says."""
    text = document if isinstance(document, str) else json.dumps(document)
    meta = yaml.load(text, Loader=yaml.CSafeLoader)
    # Elsewhere than in these two the path and the body differ, which is refused, as a bad namespace must be.
    named = (meta.get("metadata") or {}).get("namespace")
    namespace = named if named == "team-a" else "default"
    path = collection(meta["kind"], namespace) + "?fieldValidation=Strict&dryRun=All"
    try:
        cluster.request("POST", path, text.encode(), content_type="application/yaml")
    except urllib.error.HTTPError as error:
        return refusal(error)
    return None


def documents(*folders: str) -> list[tuple[str, str]]:
    """Every document of the corpus, as text, that has a kind and version the API server can be asked about."""
    found = []
    for folder in folders:
        for path in sorted((CORPUS / folder).glob("*.yaml")):
            for index, text in enumerate(re.split(r"^---$", path.read_text(), flags=re.MULTILINE)):
                data = yaml.load(text, Loader=yaml.CSafeLoader)
                if not isinstance(data, dict) or data.get("apiVersion") != "modelpress.dev/v1alpha1":
                    continue
                if data.get("kind") in PLURAL and isinstance(data.get("metadata"), dict | None):
                    found.append((f"{folder}/{path.stem}[{index}]", text))
    return found


def test_takes_what_pydantic_takes(control_plane: ControlPlane) -> None:
    """Documents that the schema accepts, semantically wrong ones among them, are accepted by the API server too."""
    cases = documents("accept", "semantic")
    assert len(cases) >= 30
    refused = {name: said for name, document in cases if (said := verdict(control_plane, document))}
    assert refused == {}


def test_refuses_what_pydantic_refuses(control_plane: ControlPlane) -> None:
    """Every document that the schema refuses is refused by the API server too."""
    cases = documents("reject")
    assert len(cases) >= 30
    taken = [name for name, document in cases if verdict(control_plane, document) is None]
    assert taken == []


@pytest.fixture
def job(control_plane: ControlPlane) -> dict[str, Any]:
    """A job that exists."""
    return _fresh(control_plane, JOB)


@pytest.fixture
def sweep(control_plane: ControlPlane) -> dict[str, Any]:
    """A sweep that exists."""
    return _fresh(control_plane, SWEEP)


def _fresh(cluster: ControlPlane, document: dict[str, Any]) -> dict[str, Any]:
    path = f"{collection(document['kind'])}/{document['metadata']['name']}"
    try:
        cluster.request("DELETE", path)
    except urllib.error.HTTPError as error:
        if error.code != 404:
            raise
    return create(cluster, document)


def change(cluster: ControlPlane, obj: dict[str, Any], spec: dict[str, Any]) -> str | None:
    """Merge-patches the spec; what the API server says against it, or None."""
    path = f"{collection(obj['kind'])}/{obj['metadata']['name']}"
    try:
        cluster.request("PATCH", path, {"spec": spec}, content_type="application/merge-patch+json")
    except urllib.error.HTTPError as error:
        return refusal(error)
    return None


def test_status_is_born_unobserved(job: dict[str, Any], sweep: dict[str, Any]) -> None:
    """kstatus must not take a new object for a finished one."""
    assert job["status"] == {"observedGeneration": -1}
    assert sweep["status"] == {"observedGeneration": -1}


@pytest.mark.parametrize(
    "spec",
    [{"seed": 5}, {"stages": [{"finetune": {"epochs": 2}}]}, {"backoffLimit": 9}, {"code": {"path": "elsewhere"}}],
)
def test_a_job_does_not_change(control_plane: ControlPlane, job: dict[str, Any], spec: dict[str, Any]) -> None:
    """The spec is fixed, optional fields that were absent too."""
    said = change(control_plane, job, spec)
    assert said is not None
    assert "immutable" in said


def test_a_job_can_be_suspended(control_plane: ControlPlane, job: dict[str, Any]) -> None:
    """suspend may change both ways."""
    assert change(control_plane, job, {"suspend": True}) is None
    assert change(control_plane, job, {"suspend": False}) is None


def test_a_sweep_grows_only(control_plane: ControlPlane, sweep: dict[str, Any]) -> None:
    """parallelism may change, maxTrials and budget only rise, the rest is fixed."""
    assert change(control_plane, sweep, {"parallelism": 7}) is None
    assert change(control_plane, sweep, {"parallelism": 1}) is None
    assert change(control_plane, sweep, {"maxTrials": 9}) is None
    assert change(control_plane, sweep, {"maxTrials": 8}) is not None
    assert change(control_plane, sweep, {"budget": {"wallClockSeconds": 200}}) is None
    assert change(control_plane, sweep, {"budget": {"wallClockSeconds": 150}}) is not None
    assert change(control_plane, sweep, {"budget": {"gpuSeconds": 100}}) is not None
    assert change(control_plane, sweep, {"budget": {"wallClockSeconds": None}}) is None
    assert change(control_plane, sweep, {"algorithm": {"name": "random"}}) is not None
    assert change(control_plane, sweep, {"suspend": True}) is None


def test_unknown_fields_are_refused_when_strict(control_plane: ControlPlane) -> None:
    """A misspelt field is an error under strict field validation."""
    document = copy.deepcopy(JOB)
    document["spec"]["stages"][0]["finetune"]["epoch"] = 3
    said = verdict(control_plane, document)
    assert said is not None
    assert "epoch" in said


def test_names_have_room_for_their_children(control_plane: ControlPlane) -> None:
    """52 characters for a job, 46 for a sweep, DNS-1035."""
    for document, limit in ((JOB, 52), (SWEEP, 46)):
        for name, fits in (("a" * limit, True), ("a" * (limit + 1), False), ("1a", False), ("a.b", False)):
            renamed = copy.deepcopy(document)
            renamed["metadata"]["name"] = name
            assert (verdict(control_plane, renamed) is None) == fits, name


def test_short_names_categories_and_scale(control_plane: ControlPlane, sweep: dict[str, Any]) -> None:
    """kubectl knows cjob, csweep and the category, and can scale a sweep's parallelism."""
    assert "digits" in control_plane.kubectl("get", "csweep")
    control_plane.kubectl("get", "cjob")
    assert "compressionsweep.modelpress.dev/digits" in control_plane.kubectl("get", "modelpress", "-o", "name")
    control_plane.kubectl("scale", "csweep/digits", "--replicas=3")
    found = control_plane.request("GET", collection("CompressionSweep") + "/digits")
    assert found["spec"]["parallelism"] == 3
