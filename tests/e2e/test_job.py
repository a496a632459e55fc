"""A rendered Job on a real node: from examples/digits to an artefact in S3."""

from __future__ import annotations

import datetime as dt
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from running import Running

from modelpress.api.v1alpha1 import CompressionJob
from modelpress.reconcile import CreateJob, JobObserved, reconcile_job
from modelpress.result import RunResult
from modelpress_operator.render import RenderSettings, render_job

DIGITS = Path(__file__).parents[2] / "examples" / "digits"

# In a clean process: the artefact by its address alone, then the held-back images of the example, which it never saw.
SCORE = """
import sys
import modelpress as mp
model = mp.load(sys.argv[1], endpoint=sys.argv[2])
assert "digits" not in sys.modules
sys.path.insert(0, sys.argv[3])
import digits
_, _, images, labels = digits.load_data()
print(digits.accuracy(model, images, labels), sum(p.numel() for p in model.parameters()))
"""


def example(cluster: Running, namespace: str) -> dict[str, Any]:
    """Applies the example's ConfigMap and creates its CompressionJob; that, as the API server has it."""
    documents = list(yaml.safe_load_all(cluster.kubectl("kustomize", str(DIGITS))))
    for document in documents:
        document["metadata"]["namespace"] = namespace
    cluster.create(*(one for one in documents if one["kind"] in ("ConfigMap", "CompressionJob")))
    return cluster.get("compressionjob", "digits-l1", namespace)


def test_a_rendered_job_leaves_an_artefact_that_scores_as_its_message_says(cluster: Running, namespace: str) -> None:
    """The first Job that the reconcile core wants runs to Complete; mp.load gives the score in its message."""
    raw = example(cluster, namespace)
    job = CompressionJob.model_validate(raw)
    plan = reconcile_job(JobObserved(job), dt.datetime.now(dt.UTC))
    (action,) = (one for one in plan.actions if isinstance(one, CreateJob))
    cluster.create(*render_job(action, raw, RenderSettings()))

    ending = cluster.finished("job", action.name, namespace, seconds=600)

    (pod,) = cluster.list("pods", namespace, f"batch.kubernetes.io/job-name={action.name}")
    state = pod["status"]["containerStatuses"][0]["state"]["terminated"]
    assert ending == "Complete", cluster.story(namespace)
    assert state["exitCode"] == 0
    result = RunResult.from_message(state["message"])
    assert result is not None
    assert result.phase == "Succeeded"
    assert result.constraints_met is True
    assert result.compressed["macs"] <= 0.5 * result.baseline["macs"]

    uri = f"{action.request.spec.store.uri}/{action.request.prefix}"  # type: ignore[union-attr]
    done = subprocess.run(
        [sys.executable, "-c", SCORE, uri, cluster.s3.endpoint, str(DIGITS)],
        capture_output=True,
        text=True,
        env=os.environ | cluster.s3.credentials,
    )
    assert done.returncode == 0, done.stderr
    score, parameters = done.stdout.split()
    assert float(score) == result.compressed["default"]
    assert int(parameters) < result.baseline["parameters"]


def test_a_wrong_entrypoint_ends_the_job_by_its_exit_code(cluster: Running, namespace: str) -> None:
    """Exit code 2 fails the Job by the first rule, without a second pod, and the message names the mistake."""
    raw = example(cluster, namespace)
    raw["spec"]["model"]["entrypoint"] = "digits:nothing"
    plan = reconcile_job(JobObserved(CompressionJob.model_validate(raw)), dt.datetime.now(dt.UTC))
    (action,) = (one for one in plan.actions if isinstance(one, CreateJob))
    cluster.create(*render_job(action, raw, RenderSettings()))

    assert cluster.finished("job", action.name, namespace) == "Failed"

    (pod,) = cluster.list("pods", namespace, f"batch.kubernetes.io/job-name={action.name}")
    state = pod["status"]["containerStatuses"][0]["state"]["terminated"]
    result = RunResult.from_message(state["message"])
    assert state["exitCode"] == 2
    assert result is not None
    assert result.phase == "Failed"
    assert "nothing" in result.message
    failed = cluster.get("job", action.name, namespace)["status"]["conditions"]
    assert {one["reason"] for one in failed if one["type"] == "Failed"} == {"PodFailurePolicy"}
