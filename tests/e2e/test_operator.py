"""The installed product: the chart, the operator's own image and rights, and examples/digits as a user applies it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from running import IDLE, RELEASE, SYSTEM, Running

from modelpress.store import open_store

DIGITS = Path(__file__).parents[2] / "examples" / "digits"


@pytest.fixture(scope="module")
def operator(cluster: Running) -> Iterator[Running]:
    """Two replicas of the operator, ready, that serve all namespaces."""
    cluster.install("replicas=2")
    yield cluster
    cluster.install("replicas=1", f"watchNamespaces={{{IDLE}}}")


def apply(cluster: Running, namespace: str, *kinds: str, **spec: Any) -> None:
    """Applies the example's ConfigMap and its objects of these kinds, with changes to their spec."""
    documents = list(yaml.safe_load_all(cluster.kubectl("kustomize", str(DIGITS))))
    for document in documents:
        document["metadata"]["namespace"] = namespace
        if document["kind"] in kinds:
            document["spec"] |= spec
    cluster.apply(*(one for one in documents if one["kind"] in ("ConfigMap", *kinds)))


def score(cluster: Running, uri: str) -> float:
    """Accuracy of the model at a URI, opened by mp.load in a clean process."""
    program = (
        "import sys, modelpress as mp\n"
        "model = mp.load(sys.argv[1], endpoint=sys.argv[2] if sys.argv[1].startswith('s3:') else None)\n"
        "assert 'digits' not in sys.modules\n"
        "sys.path.insert(0, sys.argv[3])\n"
        "import digits\n"
        "_, _, images, labels = digits.load_data()\n"
        "print(digits.accuracy(model, images, labels))\n"
    )
    command = [sys.executable, "-c", program, uri, cluster.s3.endpoint, str(DIGITS)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | cluster.s3.credentials)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


def conditions(obj: dict[str, Any]) -> dict[str, str]:
    """Status by type."""
    return {one["type"]: one["status"] for one in obj["status"]["conditions"]}


def test_an_applied_job_completes(operator: Running, namespace: str) -> None:
    """The example's job ends Complete, within its constraints, and its artefact scores as its status says."""
    apply(operator, namespace, "CompressionJob")
    ending = operator.finished("compressionjob", "digits-l1", namespace, seconds=600)
    job = operator.get("compressionjob", "digits-l1", namespace)
    assert ending == "Complete", json.dumps(job["status"], indent=1) + operator.story(namespace)
    status = job["status"]
    assert status["phase"] == "Succeeded"
    found = conditions(job)
    assert {
        name: found[name] for name in ("ConstraintsMet", "Compressed", "Portable", "ArtifactAvailable")
    } == dict.fromkeys(("ConstraintsMet", "Compressed", "Portable", "ArtifactAvailable"), "True")
    assert status["metrics"]["compressed"]["macs"] <= 0.5 * status["metrics"]["baseline"]["macs"]
    assert score(operator, status["artifact"]["uri"]) == status["metrics"]["compressed"]["default"]


def pod_of(cluster: Running, namespace: str, job: str, attempt: int) -> str:
    """Name of the pod of an attempt that is under way, once it has started."""
    selector = f"modelpress.dev/job={job},modelpress.dev/attempt={attempt}"
    cluster.watch("job", f"{job}-{attempt}", namespace, "{.status.active}", ["1"], seconds=60)
    (pod,) = cluster.list("pods", namespace, selector)
    name: str = pod["metadata"]["name"]
    cluster.watch("pod", name, namespace, "{.status.phase}", ["Running", "Succeeded", "Failed"], seconds=60)
    return name


def test_a_sweep_completes_though_its_leader_is_killed(
    operator: Running, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other replica goes on with the example's sweep: no trial twice, and the best scores as best.json says."""
    apply(operator, namespace, "CompressionSweep", maxTrials=4)
    operator.watch("csweep", "digits-sweep", namespace, "{.status.trials.succeeded}", ["1", "2", "3"], seconds=400)
    lease = operator.list("lease", SYSTEM)[0]
    leader = lease["spec"]["holderIdentity"].partition("_")[0]
    operator.kubectl("delete", "pod", leader, "--namespace", SYSTEM, "--grace-period=0", "--force")

    ending = operator.finished("csweep", "digits-sweep", namespace, seconds=600)

    sweep = operator.get("csweep", "digits-sweep", namespace)
    assert ending == "Complete", json.dumps(sweep["status"], indent=1) + operator.story(namespace)
    assert operator.list("lease", SYSTEM)[0]["spec"]["holderIdentity"].partition("_")[0] != leader
    trials = operator.list("cjob", namespace)
    assert len(trials) == 10
    assert {trial["status"]["phase"] for trial in trials} == {"Succeeded"}
    for name, value in operator.s3.credentials.items():
        monkeypatch.setenv(name, value)
    store = open_store("s3://models/digits", endpoint=operator.s3.endpoint)
    (found,) = [one.path for one in store.list(namespace) if one.path.endswith("/best.json")]
    best = json.loads(store.get_bytes(found))
    folder = found.removesuffix(".json")
    assert score(operator, f"s3://models/digits/{folder}") == best["metrics"]["compressed"]["default"]
    assert store.get_bytes(f"{folder.removesuffix('best')}trials.csv").count(b"\n") == 11


def steps(lines: list[str]) -> list[int]:
    """Numbers of the chunks that a log reports as done, in order."""
    return [int(found[1]) for line in lines if (found := re.search(r"\[(\d+)/\d+\]", line))]


def test_a_deleted_pod_is_followed_by_one_that_goes_on(operator: Running, namespace: str) -> None:
    """The pod gets SIGTERM and leaves a checkpoint; the next attempt does the chunks after it."""
    stages = [{"prune": {"configList": [{"opTypes": ["Conv2d"], "sparsity": 0.5}]}}, {"finetune": {"epochs": 30}}]
    apply(operator, namespace, "CompressionJob", stages=stages)
    first = pod_of(operator, namespace, "digits-l1", 1)
    done = max(steps(operator.log_until(first, namespace, "[6/")))
    operator.kubectl("delete", "pod", first, "--namespace", namespace, seconds=150)
    operator.watch("cjob", "digits-l1", namespace, "{.status.started}", ["2"], seconds=60)
    second = pod_of(operator, namespace, "digits-l1", 2)

    ending = operator.finished("cjob", "digits-l1", namespace, seconds=600)

    status = operator.get("cjob", "digits-l1", namespace)["status"]
    assert ending == "Complete", json.dumps(status, indent=1) + operator.story(namespace)
    assert [one["outcome"] for one in status["attempts"]] == ["Disrupted", "Succeeded"]
    assert status.get("failures", 0) == 0
    again = steps(operator.kubectl("logs", second, "--namespace", namespace).splitlines())
    assert min(again) >= done
    assert max(again) == 30


def suspend(cluster: Running, namespace: str, value: bool) -> None:
    """Sets spec.suspend of the example's job."""
    change = json.dumps({"spec": {"suspend": value}})
    cluster.kubectl("patch", "cjob", "digits-l1", "--namespace", namespace, "--type=merge", "-p", change)


def test_scores_show_up_while_a_job_runs(operator: Running, namespace: str) -> None:
    """The runner's progress arrives with its projected token, through the Service and at the leader, in the status."""
    stages = [{"prune": {"configList": [{"opTypes": ["Conv2d"], "sparsity": 0.5}]}}, {"finetune": {"epochs": 1000}}]
    apply(operator, namespace, "CompressionJob", stages=stages)
    operator.watch("cjob", "digits-l1", namespace, "{.status.progress.stage}", ["1-finetune"], seconds=180)
    status = operator.get("cjob", "digits-l1", namespace)["status"]
    assert status["phase"] == "Running"
    assert 0 < status["progress"]["step"] <= status["progress"]["total"] == 1000
    points = status["intermediate"]
    assert len(points) > 1
    assert [one["step"] for one in points] == sorted({one["step"] for one in points})
    assert all(0.0 <= one["value"] <= 1.0 for one in points)


def test_suspending_frees_the_node_and_resuming_goes_on(operator: Running, namespace: str) -> None:
    """A suspended job has no pod and counts no attempt as failed; resumed, it goes on after its checkpoint."""
    stages = [{"prune": {"configList": [{"opTypes": ["Conv2d"], "sparsity": 0.5}]}}, {"finetune": {"epochs": 30}}]
    apply(operator, namespace, "CompressionJob", stages=stages)
    first = pod_of(operator, namespace, "digits-l1", 1)
    done = max(steps(operator.log_until(first, namespace, "[6/")))

    suspend(operator, namespace, True)
    operator.watch("cjob", "digits-l1", namespace, "{.status.phase}", ["Suspended"], seconds=120)
    operator.kubectl("wait", "--for=delete", f"pod/{first}", "-n", namespace, "--timeout=130s", seconds=140)
    assert operator.list("pods", namespace) == []

    operator.kubectl(
        "patch", "cjob", "digits-l1", "-n", namespace, "--type=merge", "-p", '{"spec": {"suspend": false}}'
    )
    operator.watch("cjob", "digits-l1", namespace, "{.status.started}", ["2"], seconds=60)
    second = pod_of(operator, namespace, "digits-l1", 2)
    ending = operator.finished("cjob", "digits-l1", namespace, seconds=600)

    status = operator.get("cjob", "digits-l1", namespace)["status"]
    assert ending == "Complete", json.dumps(status, indent=1) + operator.story(namespace)
    assert (status.get("failures", 0), status.get("disruptions", 0)) == (0, 0)
    assert min(steps(operator.kubectl("logs", second, "--namespace", namespace).splitlines())) >= done


def test_too_little_memory_is_named(operator: Running, namespace: str) -> None:
    """A runner that the kernel kills for memory counts as an attempt, and the status names the cause."""
    image = operator.images["example"]
    apply(
        operator,
        namespace,
        "CompressionJob",
        runner={"image": image, "resources": {"limits": {"memory": "100Mi"}}},
        backoffLimit=0,
    )
    assert operator.finished("cjob", "digits-l1", namespace, seconds=120) == "Failed"
    status = operator.get("cjob", "digits-l1", namespace)["status"]
    assert [one["reason"] for one in status["attempts"]] == ["RunnerOOMKilled"]
    assert status["failures"] == 1


def test_the_charts_own_test_passes(operator: Running) -> None:
    """`helm test` asks the operator for its metrics from a pod."""
    answer = operator.helm("test", RELEASE, "--namespace", SYSTEM, "--timeout", "60s")
    assert "Succeeded" in answer


def test_a_volume_claim_is_a_store(operator: Running, namespace: str) -> None:
    """A runner that is not root writes to a file:// store on a volume; mp.load opens the model from there."""
    folder = operator.folder / "volumes" / namespace
    folder.mkdir(parents=True)
    here = {"key": "kubernetes.io/hostname", "operator": "In", "values": [operator.node]}
    volume = {
        "capacity": {"storage": "1Gi"},
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": "",
        "local": {"path": str(folder)},
        "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}},
        "claimRef": {"name": "models", "namespace": namespace},
    }
    claim = {
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": "",
        "volumeName": namespace,
        "resources": {"requests": {"storage": "1Gi"}},
    }
    meta = {"name": "models", "namespace": namespace}
    operator.create(
        {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": namespace}, "spec": volume},
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta, "spec": claim},
    )
    store = {"uri": "file:///models", "volumeClaim": {"name": "models"}}
    apply(operator, namespace, "CompressionJob", store=store)

    ending = operator.finished("cjob", "digits-l1", namespace, seconds=600)

    status = operator.get("cjob", "digits-l1", namespace)["status"]
    assert ending == "Complete", json.dumps(status, indent=1) + operator.story(namespace)
    uri = status["artifact"]["uri"]
    assert uri.startswith("file:///models/")
    local = str(folder / uri.removeprefix("file:///models/"))
    assert score(operator, local) == status["metrics"]["compressed"]["default"]
    operator.kubectl("delete", "pv", namespace, "--wait=false")


def test_uninstalling_leaves_jobs_and_their_kinds(operator: Running, namespace: str) -> None:
    """`helm uninstall` takes the operator and its rights; the CRDs and what users made stay for the next release."""
    apply(operator, namespace, "CompressionJob", suspend=True)
    operator.watch("cjob", "digits-l1", namespace, "{.status.phase}", ["Suspended"], seconds=60)
    operator.helm("uninstall", RELEASE, "--namespace", SYSTEM, "--wait")
    assert operator.list("deployments", SYSTEM) == []
    assert operator.get("cjob", "digits-l1", namespace)["status"]["phase"] == "Suspended"
    operator.install("replicas=2")
    suspend(operator, namespace, False)
    assert operator.finished("cjob", "digits-l1", namespace, seconds=600) == "Complete"
