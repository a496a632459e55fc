"""Recipes of several stages as pods; what one of them leaves in S3 is run by ONNX Runtime alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from example import EXAMPLES, documents, score
from running import Running
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from modelpress.store import open_store

INT8, SPARSE = "structured-distilled-int8", "sparse-qat-distilled"

# The file and the held-back images; nothing else of what made it.
RUN = """
import sys
sys.modules["torch"] = sys.modules["modelpress"] = None
import numpy as np, onnxruntime
held = np.load(sys.argv[2])
options = onnxruntime.SessionOptions()
options.add_session_config_entry("session.x64quantprecision", "1")  # exact sums on every x86, as the guide says
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
(given,) = session.get_inputs()
outputs = session.run(None, {given.name: held["images"]})[0]
print((outputs.argmax(1) == held["labels"]).sum())
"""


def apply(cluster: Running, namespace: str, name: str) -> dict[str, Any]:
    """Applies a recipe with code, store and image of examples/digits; the stages that it has."""
    found = documents()
    recipe = yaml.safe_load((EXAMPLES / "recipes" / f"{name}.yaml").read_text())["spec"]
    job = found["CompressionJob"]
    job["metadata"]["name"] = name
    job["spec"] |= {key: value for key, value in recipe.items() if key in ("model", "stages", "target", "constraints")}
    if "target" not in recipe:
        del job["spec"]["target"]
    job["spec"]["runner"]["resources"]["requests"]["cpu"] = "100m"  # other tests wait for room on the node
    for one in (found["ConfigMap"], job):
        one["metadata"]["namespace"] = namespace
    cluster.apply(found["ConfigMap"], job)
    return recipe


def test_recipes_run_as_pods_and_onnx_runtime_alone_runs_what_one_leaves(
    operator: Running, namespace: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    statuses = {}
    for name in (INT8, SPARSE):
        recipe = apply(operator, namespace, name)
        ending = operator.finished("cjob", name, namespace, seconds=600)
        statuses[name] = operator.get("cjob", name, namespace)["status"]
        said = json.dumps(statuses[name], indent=1)
        assert ending == "Complete", said + operator.story(namespace)
        (met,) = [one for one in statuses[name]["conditions"] if one["type"] == "ConstraintsMet"]
        assert met["status"] == "True", (met, recipe["constraints"])

    sparse = statuses[SPARSE]
    assert score(operator, sparse["artifact"]["uri"])[0] == sparse["metrics"]["compressed"]["default"]

    for name, value in operator.s3.credentials.items():
        monkeypatch.setenv(name, value)
    int8 = statuses[INT8]
    store = open_store(int8["artifact"]["uri"], endpoint=operator.s3.endpoint)
    (path,) = [info.path for info in store.list("") if info.path.endswith("/model.onnx")]
    store.get_file(path, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").stat().st_size == int8["metrics"]["compressed"]["sizeBytes"]
    images, labels = load_digits(return_X_y=True)
    split = train_test_split(images / 16.0, labels, test_size=0.3, stratify=labels, random_state=0)
    held = {"images": split[1].reshape(-1, 1, 8, 8).astype(np.float32), "labels": split[3]}
    np.savez(tmp_path / "held.npz", **held)
    command = [sys.executable, "-c", RUN, str(tmp_path / "model.onnx"), str(tmp_path / "held.npz")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    # The node is this machine, so its processor rounds as the pod's did: the very images are told.
    assert int(done.stdout) == round(int8["metrics"]["compressed"]["default"] * len(split[3]))
