"""examples/digits as tests use it: applied to a namespace, followed, its models scored in a process of their own."""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from running import Running

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
DIGITS = EXAMPLES / "digits"
PRUNE: dict[str, Any] = {"prune": {"configList": [{"opTypes": ["Conv2d"], "sparsity": 0.5}]}}

# In a clean process: the artifact by its address alone, then the held-back images of the example, which it never saw.
SCORE = """
import sys
import modelpress as mp
model = mp.load(sys.argv[1], endpoint=sys.argv[2] if sys.argv[1].startswith("s3:") else None)
sys.path.insert(0, sys.argv[3])
assert "digits" not in sys.modules
import digits
_, _, images, labels = digits.load_data()
print(digits.accuracy(model, images, labels), sum(p.numel() for p in model.parameters()))
"""


def documents(folder: Path = DIGITS) -> dict[str, dict[str, Any]]:
    """The manifests of an example, by kind."""
    found = (one for path in sorted(folder.glob("*.yaml")) for one in yaml.safe_load_all(path.read_text()))
    return {one["kind"]: one for one in found}


def apply(cluster: Running, namespace: str, kind: str = "CompressionJob", folder: Path = DIGITS, **spec: Any) -> None:
    """Applies an example's code and its object of a kind, with changes to its spec."""
    found = documents(folder)
    found[kind]["spec"] |= spec
    for one in found.values():
        one["metadata"]["namespace"] = namespace
    cluster.apply(found["ConfigMap"], found[kind])


def score(cluster: Running, uri: str) -> tuple[float, int]:
    """Accuracy and number of parameters of the model at a URI, opened by mp.load in a clean process."""
    command = [sys.executable, "-c", SCORE, uri, cluster.s3.endpoint, str(DIGITS)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | cluster.s3.credentials)
    assert done.returncode == 0, done.stderr
    accuracy, parameters = done.stdout.split()
    return float(accuracy), int(parameters)


def conditions(obj: dict[str, Any]) -> dict[str, str]:
    """Status by type."""
    return {one["type"]: one["status"] for one in obj["status"]["conditions"]}


def condition(obj: dict[str, Any], type_: str) -> dict[str, Any]:
    """One condition."""
    (found,) = [one for one in obj["status"]["conditions"] if one["type"] == type_]
    return dict(found)


def pods_of(cluster: Running, namespace: str, job: str, attempt: int, *, count: int = 1) -> list[str]:
    """Names of the pods of an attempt that is under way, by rank, once each has started."""
    cluster.watch("job", f"{job}-{attempt}", namespace, "{.status.active}", [str(count)], seconds=60)
    selector = f"modelpress.dev/job={job},modelpress.dev/attempt={attempt},modelpress.dev/purpose=trial"
    pods = cluster.list("pods", namespace, selector)
    rank = "batch.kubernetes.io/job-completion-index"
    pods.sort(key=lambda pod: int(pod["metadata"]["labels"].get(rank, 0)))
    names = [str(pod["metadata"]["name"]) for pod in pods]
    for name in names:
        cluster.watch("pod", name, namespace, "{.status.phase}", ["Running", "Succeeded", "Failed"], seconds=60)
    return names


def pod_of(cluster: Running, namespace: str, job: str, attempt: int) -> str:
    """Name of the one pod of an attempt that is under way, once it has started."""
    (name,) = pods_of(cluster, namespace, job, attempt)
    return name


def steps(lines: list[str]) -> list[int]:
    """Numbers of the optimizer steps that a log reports as done, in order."""
    return [int(found[1]) for line in lines if (found := re.search(r"\[(\d+)(?:/\d+)?\]", line))]


def patch(cluster: Running, namespace: str, kind: str, name: str, **spec: Any) -> None:
    """Changes the spec of an object."""
    change = json.dumps({"spec": spec})
    cluster.kubectl("patch", kind, name, "--namespace", namespace, "--type=merge", "-p", change)


def seconds_between(first: str, then: str) -> float:
    """Seconds from one time of the API server's to another."""
    return (dt.datetime.fromisoformat(then) - dt.datetime.fromisoformat(first)).total_seconds()
