"""What the commands on a cluster make of raw objects: tables, one-line summaries, exit codes."""

from __future__ import annotations

import datetime as dt
import io
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from modelpress.api.v1alpha1 import CompressionJob, CompressionSweep
from modelpress.cli.cluster import connection, tables, views
from modelpress.cli.cluster.best import fetch
from modelpress.cli.cluster.connection import connect
from modelpress.cli.cluster.errors import ClusterError, RequestError
from modelpress.cli.cluster.logs import newest
from modelpress.cli.cluster.submit import _differences, _worst
from modelpress.local.session import exit_code_of
from modelpress.store import manifest, open_store
from modelpress.store.manifest import Manifest

NOW = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)
SPEC = {"model": {"entrypoint": "a:b"}, "stages": [{"finetune": {"epochs": 1}}]}
SPACE = [{"name": "e", "paths": ["/stages/0/finetune/epochs"], "int": {"min": 1, "max": 3}}]


def text(renderable: RenderableType) -> str:
    """What a wide, plain terminal shows."""
    stream = io.StringIO()
    Console(file=stream, width=200, no_color=True, force_terminal=False).print(renderable)
    return stream.getvalue()


def condition(type_: str, status: str = "True", reason: str = "Because", message: str = "") -> dict[str, Any]:
    when = "2026-11-21T09:00:00Z"
    return {"type": type_, "status": status, "reason": reason, "message": message, "lastTransitionTime": when}


def job(name: str = "one", *, number: int | None = None, **status: Any) -> dict[str, Any]:
    meta: dict[str, Any] = {"name": name, "namespace": "default", "creationTimestamp": "2026-11-21T11:57:00Z"}
    if number is not None:
        meta["labels"] = {"modelpress.dev/trial": str(number)}
        meta["annotations"] = {"modelpress.dev/parameters": '{"s": 0.5, "a": "l[1]"}'}
    return {
        "apiVersion": "modelpress.dev/v1alpha1",
        "kind": "CompressionJob",
        "metadata": meta,
        "spec": SPEC,
        "status": status,
    }


def sweep(**status: Any) -> dict[str, Any]:
    spec = {
        "template": {"spec": SPEC},
        "searchSpace": SPACE,
        "objectives": [{"metric": "default"}, {"metric": "macs"}],
        "maxTrials": 40,
    }
    return {**job("search", **status), "kind": "CompressionSweep", "spec": spec}


def metrics(score: float, macs: float) -> dict[str, Any]:
    return {"baseline": {"default": 1.0, "macs": 1000.0}, "compressed": {"default": score, "macs": macs}}


BEST = {"number": 3, "name": "s-00003", "parameters": {}, "metrics": {"default": 0.9}, "feasible": True}


@pytest.mark.parametrize(
    "obj",
    [
        job(phase="Succeeded"),
        job(phase="Succeeded", conditions=[condition("ConstraintsMet", "False")]),
        job(phase="Succeeded", conditions=[condition("ArtifactAvailable", "False", "NotFound")]),
        job(phase="Stopped"),
        job(phase="Failed"),
        job(phase="Failed", conditions=[condition("Failed", reason="InvalidModel")]),
        job(phase="Failed", conditions=[condition("Failed", reason="InvalidSpec")]),
        job(phase="Failed", conditions=[condition("Failed", reason="BackoffLimitExceeded")]),
        sweep(phase="Succeeded", best=BEST),
        sweep(phase="Succeeded", best=BEST, conditions=[condition("ArtifactAvailable", "False", "PublishFailed")]),
        sweep(phase="Succeeded", best=BEST, conditions=[condition("ConstraintsMet", "False")]),
        sweep(phase="Succeeded", trials={"succeeded": 2}),
        sweep(phase="Succeeded"),
        sweep(phase="Failed"),
    ],
)
def test_exit_codes_are_those_of_a_local_run(obj: dict[str, Any]) -> None:
    """The same state ends `submit --wait` and `run` with the same code."""
    model = CompressionSweep if views.is_sweep(obj) else CompressionJob
    assert views.exit_code_of(obj) == exit_code_of(model.model_validate(obj))


def test_of_several_results_the_worst_counts() -> None:
    """Failed before invalid before missed before done."""
    assert _worst([0, 3, 2, 1]) == 1
    assert _worst([0, 3, 2]) == 2
    assert _worst([0, 3]) == 3
    assert _worst([0]) == 0


def test_the_overview_has_a_line_for_each() -> None:
    """Kind, name, phase, progress, best, age, reason; texts of a cluster are no markup."""
    running = job(phase="Running", started=2, progress={"stage": "finetune [x]", "step": 3, "total": 8, "time": "t"})
    search = sweep(
        phase="Running", trials={"succeeded": 10, "failed": 1, "running": 4}, best=BEST, baseline={"default": 1}
    )
    shown = text(tables.overview([running, search, job("new")], NOW, everywhere=False)).splitlines()
    assert [line.split()[:3] for line in shown[3:6]] == [
        ["CompressionJob", "one", "Running"],
        ["CompressionSweep", "search", "Running"],
        ["CompressionJob", "new", "Pending"],
    ]
    assert "finetune [x] 3/8" in shown[3]
    assert "11/40 trials, 4 running, 1 failed" in shown[4]
    assert "trial 3  default 0.9 (-10.0%)" in shown[4]
    assert shown[3].split()[-1] == "3m"
    assert "default" in text(tables.overview([running], NOW, everywhere=True)).split("CompressionJob")[0]


def test_a_sweep_lists_its_trials() -> None:
    """In the order of their numbers, with parameters, changes and marks; of many only the best and the front."""
    trials = [job(f"search-{n:05d}", number=n, phase="Succeeded", metrics=metrics(0.9, 500.0)) for n in (4, 3)]
    trials.append(job("search-00005", number=5, phase="Failed", conditions=[condition("Failed", message="no [room]")]))
    obj = sweep(phase="Running", best=BEST, front=[3, 4])
    rows = text(tables.trials_table(obj, trials)).splitlines()[3:6]
    assert [row.split()[0] for row in rows] == ["3", "4", "5"]
    assert "s=0.5 a=l[1]" in rows[0]
    assert "0.9 (-10.0%)" in rows[0]
    assert "500 (-50.0%)" in rows[0]
    assert rows[0].rstrip().endswith("best front")
    assert rows[1].rstrip().endswith("front")
    assert rows[2].rstrip().endswith("Because: no [room]")
    many = [job(f"search-{n:05d}", number=n, phase="Succeeded") for n in range(60)]
    stream = io.StringIO()
    tables.print_object(Console(file=stream, width=200), obj, many, NOW)
    assert "58 more trials are neither the best nor on the Pareto front" in stream.getvalue()


def test_a_job_tells_what_went_wrong() -> None:
    """Attempts that were lost, conditions that do not hold, and the numbers before and after."""
    attempts = [
        {"number": 1, "outcome": "Failed", "reason": "RunnerOOMKilled", "message": "killed"},
        {"number": 2, "outcome": "Succeeded"},
    ]
    missed = condition("ConstraintsMet", "False", "ConstraintMissed", "macs is 0.6 times the dense model's")
    stream = io.StringIO()
    obj = job(phase="Succeeded", attempts=attempts, conditions=[missed], metrics=metrics(0.98, 600.0))
    tables.print_object(Console(file=stream, width=200), obj, [], NOW)
    shown = stream.getvalue()
    assert "attempt 1: Failed  RunnerOOMKilled: killed" in shown
    assert "attempt 2" not in shown
    assert "ConstraintsMet=False: macs is 0.6 times the dense model's" in shown
    assert [line.split() for line in shown.splitlines() if "macs  " in line] == [["macs", "1k", "600", "-40.0%"]]


def test_an_uncertain_latency_is_shown_with_its_numbers() -> None:
    """Neither met nor missed; the exit code is that of constraints that are not met."""
    said = "latencyMs lies between 0.8 and 1.2 after 500 calls of each model, which leaves maxRatio 0.5 open"
    uncertain = condition("ConstraintsMet", "Unknown", "LatencyUncertain", said)
    stream = io.StringIO()
    obj = job(phase="Succeeded", conditions=[uncertain], metrics=metrics(0.98, 600.0))
    tables.print_object(Console(file=stream, width=200), obj, [], NOW)
    assert f"ConstraintsMet=Unknown: {said}" in stream.getvalue()
    assert views.exit_code_of(obj) == 3


def test_objects_of_a_later_version_can_be_read() -> None:
    """Unknown phases, conditions and missing fields are no error."""
    strange = {"kind": "CompressionJob", "metadata": {"name": "x"}, "status": {"phase": "Dreaming", "conditions": [{}]}}
    assert "Dreaming" in text(tables.overview([strange], NOW, everywhere=True))
    assert not views.is_finished(strange)
    assert "x" in text(
        tables.overview([{"kind": "CompressionSweep", "metadata": {"name": "x"}}], NOW, everywhere=False)
    )


def test_ages() -> None:
    """As kubectl writes them."""

    def age(seconds: int) -> str:
        made = (NOW - dt.timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z")
        return views.age({"metadata": {"creationTimestamp": made}}, NOW)

    assert [age(s) for s in (45, 119, 120, 7199, 7200, 200_000)] == ["45s", "119s", "2m", "119m", "2h", "2d"]
    assert views.age({}, NOW) == ""


def test_differences_are_named_by_path() -> None:
    """What the API server has added does not count; 1 and 1.0 are equal, 1 and true are not."""
    found = {"a": [{"b": 1, "added": 2}], "c": True, "d": 1.0}
    assert _differences({"a": [{"b": 1}], "c": True, "d": 1}, found, "spec") == []
    assert _differences({"a": [{"b": 2}], "c": 1, "e": 1}, found, "spec") == ["spec.a[0].b", "spec.c", "spec.e"]
    assert _differences({"a": []}, found, "spec") == ["spec.a"]


def test_the_newest_pod_is_chosen() -> None:
    """By time, then attempt; of the ranks of its Job the first, though another one may be a second younger."""

    def pod(name: str, made: str, attempt: int, rank: int | None = None) -> dict[str, Any]:
        notes = {} if rank is None else {"batch.kubernetes.io/job-completion-index": str(rank)}
        labels = {"modelpress.dev/attempt": str(attempt), "batch.kubernetes.io/job-name": f"one-{attempt}"}
        return {"metadata": {"name": name, "creationTimestamp": made, "labels": labels, "annotations": notes}}

    pods = [pod("a", "1", 1), pod("b", "3", 2, 1), pod("c", "2", 2, 0), pod("d", "2", 1)]
    found = newest(pods)
    assert found is not None
    assert found["metadata"]["name"] == "c"
    assert newest([]) is None


# Fetching ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def artifact(tmp_path: Path) -> tuple[str, str]:
    """URI and manifest digest of an artifact in a store."""
    uri = f"memory://{tmp_path.name}"
    store = open_store(uri)
    local = tmp_path / "model.pt2"
    local.write_bytes(b"program")
    entry = manifest.entry("1-aaaaaaaa/model.pt2", local)
    store.put_file(entry.path, local)
    return uri, manifest.commit(store, "", Manifest(attempt=1, files=[entry], spec_digest="d"))[1]


def test_a_fetched_artifact_is_one_itself(artifact: tuple[str, str], tmp_path: Path) -> None:
    """Files, manifest and digest are those of the store, so that the folder opens as the URI does."""
    uri, digest = artifact
    fetch(uri, digest, tmp_path / "model", endpoint=None, store={})
    found = manifest.read(open_store(str(tmp_path / "model")), "")
    assert found is not None
    assert found[1] == digest
    assert (tmp_path / "model/1-aaaaaaaa/model.pt2").read_bytes() == b"program"


def test_what_cannot_be_fetched(artifact: tuple[str, str], tmp_path: Path) -> None:
    """Another digest, a damaged file, a folder in use, a volume of the cluster: a sentence, and no manifest is left."""
    uri, digest = artifact
    with pytest.raises(ClusterError, match="is not the one that the cluster knows of"):
        fetch(uri, "0" * 64, tmp_path / "a", endpoint=None, store={})
    with pytest.raises(RequestError, match="is not empty"):
        fetch(uri, digest, tmp_path, endpoint=None, store={})
    with pytest.raises(RequestError, match="lies on a volume of the cluster"):
        fetch("file:///data/x", digest, tmp_path / "b", endpoint=None, store={})
    with pytest.raises(ClusterError, match=r"there is no .*manifest"):
        fetch(f"{uri}/none", digest, tmp_path / "c", endpoint=None, store={})
    open_store(uri).put_bytes("1-aaaaaaaa/model.pt2", b"another")
    with pytest.raises(ClusterError, match="damaged or replaced"):
        fetch(uri, digest, tmp_path / "d", endpoint=None, store={})
    assert not (tmp_path / "d/manifest.json").exists()


# Connecting ----------------------------------------------------------------------------------------------------------


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Talking to a cluster is an extra; without it the command says what to install."""
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    with pytest.raises(RequestError, match=r"needs the package 'kubernetes'; install it with: pip install 'modelpress"):
        connect()


def test_without_a_kubeconfig_it_says_how_to_name_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither a file nor a pod's account is there."""
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(RequestError, match=r"there is no kubeconfig .*; name one with --kubeconfig or KUBECONFIG"):
        connect()


def test_a_pod_uses_its_own_account_and_namespace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In a cluster without a kubeconfig: the service account's token, its namespace unless another is named."""
    from kubernetes.config import incluster_config

    for name, text in (("token", "secret"), ("namespace", "team-a\n"), ("ca.crt", "certificate")):
        (tmp_path / name).write_text(text)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    monkeypatch.setattr(connection, "SERVICE_ACCOUNT", tmp_path)
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    monkeypatch.setattr(connection, "_client", lambda configuration: configuration)
    found = connect()
    assert (found.namespace, found.where) == ("team-a", "this pod's cluster")
    assert found._api.host == "https://10.96.0.1:443"
    assert connect(namespace="other").namespace == "other"


@pytest.mark.parametrize("value", ["[" * 100_000, "1" * 5000, "[]", "{", '{"a":' * 100 + "1" + "}" * 100])
def test_annotations_that_are_no_parameters(value: str) -> None:
    """Anybody may write them: what is no small JSON object has no parameters."""
    trial = job(number=1)
    trial["metadata"]["annotations"]["modelpress.dev/parameters"] = value
    assert views.parameters(trial) == {}


def test_one_deep_object_hides_no_other() -> None:
    """The API server takes ten thousand levels; what lies deep is null, and the rest of the listing is there."""
    deep = b'{"items": [{"metadata": {"name": "a"}, "spec": ' + b'{"a":' * 9000 + b"1" + b"}" * 9000
    found = connection._decoded(deep + b'}, {"metadata": {"name": "b"}}]}')
    assert found is not None
    assert [item["metadata"]["name"] for item in found["items"]] == ["a", "b"]
