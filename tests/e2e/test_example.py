"""examples/digits on the installed operator, as its README line says: kubectl apply, wait, load the best model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from example import DIGITS, conditions, score
from running import Running

from modelpress.store import open_store

JOB, SWEEP = "cjob/digits-l1", "csweep/digits-sweep"


def modelpress(cluster: Running, namespace: str, *arguments: str) -> str:
    """Output of a command of the CLI, with a user's credentials for the store."""
    command = [sys.executable, "-m", "modelpress.cli", *arguments, "--namespace", namespace]
    environment = os.environ | cluster.s3.credentials | {"KUBECONFIG": str(cluster.kubeconfig), "COLUMNS": "200"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_as_a_user_applies_it(
    operator: Running, namespace: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`kubectl apply -f examples/digits/` and `kubectl wait`: a job and a sweep end Complete; their models score what
    the status says, in a process without the training code."""
    operator.kubectl("apply", "--namespace", namespace, "--filename", f"{DIGITS}/")
    wait = ["wait", "--for=condition=Complete", "--namespace", namespace, "--timeout=600s"]
    try:
        for name in (JOB, SWEEP):
            operator.kubectl(*wait, name, seconds=620)
    except RuntimeError as error:
        raise AssertionError(f"{error}\n{operator.story(namespace)}") from None

    status = operator.get("cjob", "digits-l1", namespace)["status"]
    assert status["phase"] == "Succeeded"
    names = ("ConstraintsMet", "Compressed", "Portable", "ArtifactAvailable")
    assert {name: conditions({"status": status})[name] for name in names} == dict.fromkeys(names, "True")
    metrics = status["metrics"]
    assert metrics["compressed"]["macs"] <= 0.5 * metrics["baseline"]["macs"]
    accuracy, parameters = score(operator, status["artifact"]["uri"])
    assert (accuracy, parameters) == (metrics["compressed"]["default"], metrics["compressed"]["parameters"])
    assert parameters < metrics["baseline"]["parameters"]

    status = operator.get("csweep", "digits-sweep", namespace)["status"]
    assert (status["phase"], status["created"]) == ("Succeeded", 10)
    trials = operator.list("cjob", namespace, "modelpress.dev/sweep=digits-sweep")
    assert [trial["status"]["phase"] for trial in trials] == ["Succeeded"] * 10
    best = status["best"]
    assert best["feasible"] is True
    assert best["metrics"]["macs"] <= 0.5 * status["baseline"]["macs"]
    assert best["metrics"]["default"] >= 0.99 * status["baseline"]["default"]
    assert score(operator, status["artifact"]["uri"])[0] == best["metrics"]["default"]

    endpoint = ("--endpoint", operator.s3.endpoint)
    modelpress(operator, namespace, "best", "digits-sweep", "--download", str(tmp_path / "best"), *endpoint)
    assert score(operator, str(tmp_path / "best"))[0] == best["metrics"]["default"]
    assert "1-finetune: done" in modelpress(operator, namespace, "logs", "digits-l1")

    for name, value in operator.s3.credentials.items():
        monkeypatch.setenv(name, value)
    store = open_store("s3://models/digits", endpoint=operator.s3.endpoint)
    root = next(one.path for one in store.list(namespace) if one.path.endswith("/best.json")).removesuffix("best.json")
    assert json.loads(store.get_bytes(f"{root}best.json"))["metrics"]["compressed"] == best["metrics"]
    assert store.get_bytes(f"{root}trials.csv").count(b"\n") == 11
    assert b"<html" in store.get_bytes(f"{root}report.html")
