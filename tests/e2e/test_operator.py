"""The installed operator: what it does with running jobs when pods, replicas, releases and users come and go."""

from __future__ import annotations

import json

import pytest
from example import PRUNE, apply, conditions, documents, patch, pod_of, score, steps
from running import RELEASE, SYSTEM, Running

NAME = "digits-l1"
LONG = [PRUNE, {"finetune": {"epochs": 300}}]
SHORT = [PRUNE, {"finetune": {"epochs": 1}}]
SPACE = [
    {
        "name": "sparsity",
        "paths": ["/stages/0/prune/configList/0/sparsity"],
        "float": {"min": 0.3, "max": 0.7, "step": 0.05},
    }
]


@pytest.mark.alone
def test_a_sweep_outlives_its_leader_and_an_upgrade(operator: Running, namespace: str) -> None:
    """The leader is killed, then `helm upgrade` replaces every pod of the operator: no trial runs twice."""
    template = {**documents()["CompressionSweep"]["spec"]["template"]["spec"], "stages": SHORT}
    apply(operator, namespace, "CompressionSweep", template={"spec": template}, searchSpace=SPACE, maxTrials=8)
    succeeded = "{.status.trials.succeeded}"
    operator.watch("csweep", "digits-sweep", namespace, succeeded, [str(n) for n in range(1, 8)], seconds=300)
    leader = leading_pod(operator)
    operator.kubectl("delete", "pod", leader, "--namespace", SYSTEM, "--grace-period=0", "--force")
    operator.watch("csweep", "digits-sweep", namespace, succeeded, [str(n) for n in range(3, 8)], seconds=300)
    assert leading_pod(operator) != leader
    before = operator_pods(operator)
    operator.install("replicas=2", "logLevel=debug")
    assert operator.get("csweep", "digits-sweep", namespace)["status"]["phase"] == "Running"
    assert operator_pods(operator) & before == set()

    ending = operator.finished("csweep", "digits-sweep", namespace, seconds=600)

    status = operator.get("csweep", "digits-sweep", namespace)["status"]
    assert ending == "Complete", json.dumps(status, indent=1) + operator.story(namespace)
    trials = operator.list("cjob", namespace)
    assert [trial["status"]["phase"] for trial in trials] == ["Succeeded"] * 8
    assert [[one["outcome"] for one in trial["status"]["attempts"]] for trial in trials] == [["Succeeded"]] * 8
    assert [len(operator.list("pods", namespace, f"modelpress.dev/trial={number}")) for number in range(8)] == [1] * 8
    operator.install("replicas=2")


def leading_pod(cluster: Running) -> str:
    """The replica that holds the Lease."""
    holder: str = cluster.get("lease", "modelpress-operator", SYSTEM)["spec"]["holderIdentity"]
    return holder.partition("_")[0]


def operator_pods(cluster: Running) -> set[str]:
    """The operator's pods that are not on their way out."""
    pods = cluster.list("pods", SYSTEM, "app.kubernetes.io/component=operator")
    return {pod["metadata"]["name"] for pod in pods if "deletionTimestamp" not in pod["metadata"]}


def test_a_deleted_pod_is_followed_by_one_that_goes_on(operator: Running, namespace: str) -> None:
    """The pod gets SIGTERM and leaves a checkpoint; the next attempt does the steps after it."""
    apply(operator, namespace, stages=LONG)
    first = pod_of(operator, namespace, NAME, 1)
    done = max(steps(operator.log_until(first, namespace, ": step ")))
    operator.kubectl("delete", "pod", first, "--namespace", namespace, seconds=150)
    operator.watch("cjob", NAME, namespace, "{.status.started}", ["2"], seconds=60)
    second = pod_of(operator, namespace, NAME, 2)

    ending = operator.finished("cjob", NAME, namespace, seconds=600)

    status = operator.get("cjob", NAME, namespace)["status"]
    story = json.dumps(status, indent=1) + operator.story(namespace)
    assert ending == "Complete", story
    assert [one["outcome"] for one in status["attempts"]] == ["Disrupted", "Succeeded"], story
    assert status.get("failures", 0) == 0
    again = steps(operator.kubectl("logs", second, "--namespace", namespace).splitlines())
    assert min(again) >= done


def test_scores_show_up_while_a_job_runs(operator: Running, namespace: str) -> None:
    """The runner's progress arrives with its projected token, through the Service and at the leader, in the status."""
    apply(operator, namespace, stages=[PRUNE, {"finetune": {"epochs": 3000}}])
    operator.watch("cjob", NAME, namespace, "{.status.progress.stage}", ["1-finetune"], seconds=180)
    status = operator.get("cjob", NAME, namespace)["status"]
    assert status["phase"] == "Running"
    assert status["progress"]["step"] > 0
    points = status["intermediate"]
    assert len(points) > 1
    assert [one["step"] for one in points] == sorted({one["step"] for one in points})
    assert all(0.0 <= one["value"] <= 1.0 for one in points)


def test_suspending_frees_the_node_and_resuming_goes_on(operator: Running, namespace: str) -> None:
    """A suspended job has no pod and counts no attempt as failed; resumed, it goes on after its checkpoint."""
    apply(operator, namespace, stages=LONG)
    first = pod_of(operator, namespace, NAME, 1)
    done = max(steps(operator.log_until(first, namespace, ": step ")))

    patch(operator, namespace, "cjob", NAME, suspend=True)
    operator.watch("cjob", NAME, namespace, "{.status.phase}", ["Suspended"], seconds=10)
    operator.kubectl("wait", "--for=delete", f"pod/{first}", "-n", namespace, "--timeout=130s", seconds=140)
    assert operator.list("pods", namespace) == []
    assert conditions(operator.get("cjob", NAME, namespace))["Suspended"] == "True"

    patch(operator, namespace, "cjob", NAME, suspend=False)
    operator.watch("cjob", NAME, namespace, "{.status.started}", ["2"], seconds=10)
    second = pod_of(operator, namespace, NAME, 2)
    ending = operator.finished("cjob", NAME, namespace, seconds=600)

    status = operator.get("cjob", NAME, namespace)["status"]
    assert ending == "Complete", json.dumps(status, indent=1) + operator.story(namespace)
    assert (status.get("failures", 0), status.get("disruptions", 0)) == (0, 0)
    assert min(steps(operator.kubectl("logs", second, "--namespace", namespace).splitlines())) >= done


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
    apply(operator, namespace, stages=[PRUNE], store=store)

    ending = operator.finished("cjob", "digits-l1", namespace, seconds=600)

    status = operator.get("cjob", "digits-l1", namespace)["status"]
    assert ending == "Complete", json.dumps(status, indent=1) + operator.story(namespace)
    uri = status["artifact"]["uri"]
    assert uri.startswith("file:///models/")
    local = str(folder / uri.removeprefix("file:///models/"))
    assert score(operator, local)[0] == status["metrics"]["compressed"]["default"]
    operator.kubectl("delete", "pv", namespace, "--wait=false")


@pytest.mark.alone
def test_uninstalling_leaves_jobs_and_their_kinds(operator: Running, namespace: str) -> None:
    """`helm uninstall` takes the operator and its rights; the CRDs and what users made stay for the next release."""
    apply(operator, namespace, stages=[PRUNE], suspend=True)
    operator.watch("cjob", NAME, namespace, "{.status.phase}", ["Suspended"], seconds=60)
    operator.helm("uninstall", RELEASE, "--namespace", SYSTEM, "--wait")
    kinds = "deployments,services,serviceaccounts,roles,rolebindings,configmaps,secrets,poddisruptionbudgets"
    left = {f"{one['kind']}/{one['metadata']['name']}" for one in operator.list(kinds, SYSTEM)}
    assert left == {"ServiceAccount/default", "ConfigMap/kube-root-ca.crt"}
    assert operator.list("clusterroles,clusterrolebindings", SYSTEM, "app.kubernetes.io/part-of=modelpress") == []
    crds = {one["metadata"]["name"] for one in operator.list("crds", SYSTEM)}
    assert crds == {"compressionjobs.modelpress.dev", "compressionsweeps.modelpress.dev"}
    assert operator.get("cjob", NAME, namespace)["status"]["phase"] == "Suspended"
    operator.install("replicas=2")
    patch(operator, namespace, "cjob", NAME, suspend=False)
    assert operator.finished("cjob", NAME, namespace, seconds=600) == "Complete"
