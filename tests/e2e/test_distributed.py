"""Two pods that train one model together: examples/distributed."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from example import EXAMPLES, PRUNE, apply, pods_of, steps
from running import Running

FOLDER = EXAMPLES / "distributed"
NAME = "digits-ddp"

SCORE = """
import sys
import modelpress as mp
model = mp.load(sys.argv[1], endpoint=sys.argv[2]).eval()
sys.path.insert(0, sys.argv[3])
import digits_ddp
_, test = digits_ddp.load_data()
images, labels = test.tensors
print((model(images).argmax(1) == labels).float().mean().item())
"""


def test_two_pods_train_one_model_though_one_is_deleted(operator: Running, namespace: str) -> None:
    """An Indexed Job of two pods: without one of them the other does not go on alone; two new ones do, to the end."""
    apply(operator, namespace, folder=FOLDER, stages=[PRUNE, {"finetune": {"epochs": 200}}])
    first, second = pods_of(operator, namespace, NAME, 1, count=2)
    done = max(steps(operator.log_until(first, namespace, ": step ")))
    operator.kubectl("delete", "pod", second, "--namespace", namespace, seconds=150)
    operator.watch("cjob", NAME, namespace, "{.status.started}", ["2"], seconds=150)
    pods = pods_of(operator, namespace, NAME, 2, count=2)

    ending = operator.finished("cjob", NAME, namespace, seconds=600)

    status = operator.get("cjob", NAME, namespace)["status"]
    assert ending == "Complete", json.dumps(status, indent=1) + operator.story(namespace)
    assert [one["outcome"] for one in status["attempts"]] == ["Disrupted", "Succeeded"]
    assert (status.get("failures", 0), status["disruptions"]) == (0, 1)
    job = operator.get("job", f"{NAME}-2", namespace)
    assert (job["spec"]["completionMode"], job["spec"]["completions"]) == ("Indexed", 2)
    assert job["status"]["completedIndexes"] == "0,1"
    assert min(steps(operator.kubectl("logs", pods[0], "--namespace", namespace).splitlines())) >= done
    command = [sys.executable, "-c", SCORE, status["artifact"]["uri"], operator.s3.endpoint, str(FOLDER)]
    environment = os.environ | operator.s3.credentials
    scored = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert scored.returncode == 0, scored.stderr
    assert abs(float(scored.stdout) - status["metrics"]["compressed"]["default"]) < 1e-6
