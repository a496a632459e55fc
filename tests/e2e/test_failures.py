"""What goes wrong with a pod on a real kubelet, and what the status says of it: soon, and with what to do."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from example import PRUNE, apply, condition, documents, pod_of, seconds_between, steps
from running import Running

NAME = "digits-l1"
SOON = 10.0  # seconds from when the cluster shows the cause until the status names it
GPU = "nvidia.com/gpu"


def says(cluster: Running, namespace: str, type_: str, reason: str, *, seconds: float = SOON) -> dict[str, Any]:
    """The status, once a condition of the job has a reason."""
    path = f'{{.status.conditions[?(@.type=="{type_}")].reason}}'
    cluster.watch("cjob", NAME, namespace, path, [reason], seconds=seconds)
    status: dict[str, Any] = cluster.get("cjob", NAME, namespace)["status"]
    return status


def failed(cluster: Running, namespace: str, *, seconds: float = 180) -> dict[str, Any]:
    """The status of a job that fails, which it says soon after the end of its last pod."""
    ending = cluster.finished("cjob", NAME, namespace, seconds=seconds)
    found = cluster.get("cjob", NAME, namespace)
    status: dict[str, Any] = found["status"]
    assert (ending, status["phase"]) == ("Failed", "Failed"), cluster.story(namespace)
    ended = status["attempts"][-1]["finishTime"]
    assert seconds_between(ended, condition(found, "Failed")["lastTransitionTime"]) <= SOON
    return status


def runner(**changes: Any) -> dict[str, Any]:
    """The example's runner with changes."""
    return {**documents()["CompressionJob"]["spec"]["runner"], **changes}


def test_an_image_that_cannot_be_pulled_is_named(operator: Running, namespace: str) -> None:
    """The job waits, says that it does and for which image, and goes when it is deleted."""
    image = "registry.example.com/modelpress/nothing:0"
    apply(operator, namespace, runner=runner(image=image))
    pod = pod_waiting(operator, namespace, ["ErrImagePull", "ImagePullBackOff"])
    status = says(operator, namespace, "Ready", "ImageUnavailable")
    assert status["phase"] == "Pending"
    message = condition({"status": status}, "Ready")["message"]
    assert image in message
    operator.kubectl("delete", "cjob", NAME, "--namespace", namespace)
    operator.kubectl("wait", "--for=delete", f"pod/{pod}", "--namespace", namespace, "--timeout=60s", seconds=70)


def pod_waiting(cluster: Running, namespace: str, reasons: list[str]) -> str:
    """Name of the first attempt's pod, once its container waits for one of these reasons."""
    cluster.watch("job", f"{NAME}-1", namespace, "{.status.active}", ["1"], seconds=60)
    (pod,) = cluster.list("pods", namespace)
    name: str = pod["metadata"]["name"]
    path = "{.status.containerStatuses[0].state.waiting.reason}"
    cluster.watch("pod", name, namespace, path, reasons, seconds=120)
    return name


def test_too_little_memory_is_named(operator: Running, namespace: str) -> None:
    """A runner that the kernel kills for memory counts as an attempt, and the status names the cause."""
    apply(operator, namespace, runner=runner(resources={"limits": {"memory": "100Mi"}}), backoffLimit=1)
    status = failed(operator, namespace)
    assert [one["reason"] for one in status["attempts"]] == ["RunnerOOMKilled"] * 2
    assert status["failures"] == 2
    found = condition({"status": status}, "Failed")
    assert found["reason"] == "BackoffLimitExceeded"
    assert "memory" in found["message"]


# A model that needs some 900 MiB more than the example's: too much for 1 GiB, whatever torch takes, and well within 2.
HUNGRY = """
from digits import create

HELD = bytearray(b"x") * (900 * 2**20)  # written to, so that it counts
"""


def test_a_killed_runner_comes_back_with_more_memory_once(operator: Running, namespace: str) -> None:
    """With maxMemory the attempt behind an OOM kill has twice the limit, says so, and counts as no failure."""
    code = documents()["ConfigMap"]
    code["metadata"] |= {"name": "hungry-code", "namespace": namespace}
    code["data"]["hungry.py"] = HUNGRY
    operator.create(code)
    apply(
        operator,
        namespace,
        model={"entrypoint": "hungry:create", "args": {"width": 8, "epochs": 1}},
        code={"configMap": {"name": "hungry-code"}},
        stages=[PRUNE],
        constraints=None,
        target={"format": "eager"},
        runner=runner(resources={"limits": {"memory": "1Gi"}}, maxMemory="4Gi"),
        backoffLimit=0,
    )
    assert operator.finished("cjob", NAME, namespace, seconds=600) == "Complete", operator.story(namespace)
    status = operator.get("cjob", NAME, namespace)["status"]
    assert [one["reason"] for one in status["attempts"]] == ["RunnerOOMKilled", "Succeeded"]
    assert status["memory"] == "2Gi"
    assert status.get("failures", 0) == 0
    (second,) = operator.list("pods", namespace, "modelpress.dev/attempt=2,modelpress.dev/purpose=trial")
    resources = second["spec"]["containers"][0]["resources"]
    assert (resources["limits"]["memory"], resources["requests"]["memory"]) == ("2Gi", "2Gi")
    events = [one["message"] for one in operator.list("events", namespace)]
    assert any("It gets 2Gi of memory in place of 1Gi." in message for message in events)


def test_a_wrong_entrypoint_is_not_tried_again(operator: Running, namespace: str) -> None:
    """Exit code 2 ends the job by the pod failure policy, after one pod, and the message names the mistake."""
    apply(operator, namespace, model={"entrypoint": "digits:nothing"})
    status = failed(operator, namespace)
    (attempt,) = status["attempts"]
    assert (attempt["outcome"], attempt["reason"]) == ("Invalid", "InvalidModel")
    found = condition({"status": status}, "Failed")
    assert found["reason"] == "InvalidModel"
    assert "nothing" in found["message"]
    (job,) = operator.list("jobs", namespace)
    reasons = {one["reason"] for one in job["status"]["conditions"] if one["type"] == "Failed"}
    assert reasons == {"PodFailurePolicy"}


def test_a_missing_secret_is_named_and_taken_up_when_it_is_there(operator: Running, namespace: str) -> None:
    """The runner says which Secret it lacks; once somebody makes it, the next attempt completes."""
    (secret,) = operator.list("secrets", namespace)
    operator.kubectl("delete", "secret", "models-s3", "--namespace", namespace)
    apply(operator, namespace, stages=[PRUNE], backoffLimit=100)
    operator.watch("cjob", NAME, namespace, "{.status.attempts[0].reason}", ["RunnerFailed"], seconds=120)
    operator.create({**secret, "metadata": {"name": "models-s3", "namespace": namespace}})
    assert operator.finished("cjob", NAME, namespace, seconds=600) == "Complete", operator.story(namespace)
    status = operator.get("cjob", NAME, namespace)["status"]
    assert status["failures"] >= 1
    assert "there is no Secret models-s3" in status["attempts"][0]["message"]


@contextmanager
def s3_refuses(cluster: Running) -> Iterator[None]:
    """For a while nobody can connect to the S3 server."""
    rule = ["INPUT", "-p", "tcp", "-d", cluster.node_address, "--dport", cluster.s3.endpoint.rpartition(":")[2]]
    rule += ["-j", "REJECT", "--reject-with", "tcp-reset"]
    cluster.on_node("iptables", "-I", *rule)
    try:
        yield
    finally:
        cluster.on_node("iptables", "-D", *rule)


@pytest.mark.alone
def test_an_outage_of_the_store_costs_an_attempt_and_no_work(operator: Running, namespace: str) -> None:
    """The S3 server refuses connections while a job trains; when it is back, the next attempt goes on."""
    apply(operator, namespace, stages=[PRUNE, {"finetune": {"epochs": 300}}], backoffLimit=20)
    first = pod_of(operator, namespace, NAME, 1)
    operator.log_until(first, namespace, ": step ")
    time.sleep(15)  # checkpoints take at most a hundredth of the time
    with s3_refuses(operator):
        operator.watch("cjob", NAME, namespace, "{.status.attempts[0].reason}", ["RunnerFailed"], seconds=240)
    assert operator.finished("cjob", NAME, namespace, seconds=600) == "Complete", operator.story(namespace)
    status = operator.get("cjob", NAME, namespace)["status"]
    assert status["failures"] >= 1
    assert "models/digits" in status["attempts"][0]["message"]
    last = status["attempts"][-1]["number"]
    selector = f"modelpress.dev/attempt={last},modelpress.dev/purpose=trial"
    (pod,) = operator.list("pods", namespace, selector)
    again = steps(operator.kubectl("logs", pod["metadata"]["name"], "--namespace", namespace).splitlines())
    assert min(again) > 0


def test_a_full_store_is_named_and_used_when_it_has_room(operator: Running, namespace: str) -> None:
    """A bucket without room fails the attempt with what the server says; with room the next one completes."""
    bucket = f"full-{namespace}"
    folder = str(operator.folder / "buckets" / bucket)
    operator.on_node("mkdir", folder)
    operator.on_node("mount", "-t", "tmpfs", "-o", "size=300k", "small", folder)
    try:
        store = {"uri": f"s3://{bucket}/out", "endpoint": operator.s3.endpoint, "secretRef": {"name": "models-s3"}}
        apply(operator, namespace, stages=[PRUNE], store=store, backoffLimit=20)
        operator.watch("cjob", NAME, namespace, "{.status.attempts[0].reason}", ["RunnerFailed"], seconds=240)
        operator.on_node("mount", "-o", "remount,size=100m", folder)
        assert operator.finished("cjob", NAME, namespace, seconds=600) == "Complete", operator.story(namespace)
        status = operator.get("cjob", NAME, namespace)["status"]
        assert status["failures"] >= 1
        assert bucket in status["attempts"][0]["message"]
    finally:
        operator.on_node("umount", "--lazy", folder)


def test_wrong_credentials_are_named(operator: Running, namespace: str) -> None:
    """A Secret with a key that the server does not know: the message says that it refuses, for which store."""
    wrong = json.dumps({"stringData": {"AWS_SECRET_ACCESS_KEY": "wrong"}})
    operator.kubectl("patch", "secret", "models-s3", "--namespace", namespace, "--type=merge", "-p", wrong)
    apply(operator, namespace, stages=[PRUNE], backoffLimit=0)
    status = failed(operator, namespace)
    (attempt,) = status["attempts"]
    assert attempt["reason"] == "RunnerFailed"
    assert "s3://models/digits" in attempt["message"]
    assert "403" in attempt["message"]
    assert "AWS_SECRET_ACCESS_KEY" in attempt["message"]


def test_a_deadline_ends_the_pod(operator: Running, namespace: str) -> None:
    """A job that runs longer than activeDeadlineSeconds fails by that name, and its pod is gone."""
    apply(operator, namespace, stages=[{"finetune": {"epochs": 100_000}}], activeDeadlineSeconds=20)
    status = failed(operator, namespace)
    (attempt,) = status["attempts"]
    assert (attempt["outcome"], attempt["reason"]) == ("Failed", "DeadlineExceeded")
    found = condition({"status": status}, "Failed")
    assert found["reason"] == "DeadlineExceeded"
    assert "spec.activeDeadlineSeconds is 20" in found["message"]
    assert 20 <= seconds_between(attempt["startTime"], attempt["finishTime"]) < 20 + 60
    assert operator.list("jobs", namespace) == []
    assert operator.list("pods", namespace) == []


def test_a_gpu_is_waited_for_and_used(operator: Running, namespace: str) -> None:
    """A job with runner.gpus is told to fit no node, with the scheduler's words, until a node advertises the device."""
    apply(operator, namespace, stages=[PRUNE], runner=runner(gpus=1))
    status = says(operator, namespace, "Ready", "NoNodeFits", seconds=60)
    assert status["phase"] == "Pending"
    assert f"Insufficient {GPU}" in condition({"status": status}, "Ready")["message"]
    node = ["patch", "node", operator.node, "--subresource=status", "--type=merge", "-p"]
    try:
        operator.kubectl(*node, json.dumps({"status": {"capacity": {GPU: "1"}, "allocatable": {GPU: "1"}}}))
        name = pod_of(operator, namespace, NAME, 1)
        pod = operator.get("pod", name, namespace)
        assert pod["spec"]["nodeName"] == operator.node
        assert pod["spec"]["containers"][0]["resources"]["limits"][GPU] == "1"
        assert operator.finished("cjob", NAME, namespace, seconds=600) == "Complete", operator.story(namespace)
    finally:
        operator.kubectl(*node, json.dumps({"status": {"capacity": {GPU: None}, "allocatable": {GPU: None}}}))


@pytest.mark.alone
def test_draining_the_node_moves_the_job_on_without_a_failure(operator: Running, namespace: str) -> None:
    """`kubectl drain` evicts the pod; the next attempt waits for a node, and goes on after the checkpoint."""
    apply(operator, namespace, stages=[PRUNE, {"finetune": {"epochs": 300}}], backoffLimit=0)
    first = pod_of(operator, namespace, NAME, 1)
    done = max(steps(operator.log_until(first, namespace, ": step ")))
    drain = ["--force", "--delete-emptydir-data", "--timeout=150s", f"--pod-selector=modelpress.dev/job={NAME}"]
    try:
        operator.kubectl("drain", operator.node, *drain, seconds=160)
        status = says(operator, namespace, "Ready", "Unschedulable", seconds=3 * SOON)
        assert status["phase"] == "Pending"
    finally:
        operator.kubectl("uncordon", operator.node)
    second = pod_of(operator, namespace, NAME, 2)
    assert operator.finished("cjob", NAME, namespace, seconds=600) == "Complete", operator.story(namespace)
    status = operator.get("cjob", NAME, namespace)["status"]
    assert [one["outcome"] for one in status["attempts"]] == ["Disrupted", "Succeeded"]
    assert (status.get("failures", 0), status["disruptions"]) == (0, 1)
    assert min(steps(operator.kubectl("logs", second, "--namespace", namespace).splitlines())) >= done


@pytest.mark.alone
def test_a_job_moves_on_from_a_node_that_fell_silent(operator: Running, namespace: str) -> None:
    """The kubelet stands still, so the evicted pod cannot end: it is given up, and the next one goes on."""
    operator.install("replicas=2", "lostPodSeconds=5", "runner.graceSeconds=5")
    # Ten seconds: a node that is back sheds these taints one after the other, and its new pods must bear the last.
    away = [
        {"key": f"node.kubernetes.io/{key}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 10}
        for key in ("unreachable", "not-ready")
    ]
    stages = [PRUNE, {"finetune": {"epochs": 100_000}}]  # it must not end while the node is silent
    apply(operator, namespace, stages=stages, runner=runner(tolerations=away), backoffLimit=0)
    first = pod_of(operator, namespace, NAME, 1)
    done = max(steps(operator.log_until(first, namespace, ": step ")))
    operator.on_node("pkill", "--signal", "STOP", "--exact", "kubelet")
    try:
        path = '{.status.conditions[?(@.type=="Ready")].status}'
        operator.watch("node", operator.node, "default", path, ["Unknown"], seconds=120)
        # Whether the lost runner left a result is asked of the store, by a pod that must wait for the node, too.
        path = '{.status.conditions[?(@.type=="ArtifactAvailable")].reason}'
        operator.watch("cjob", NAME, namespace, path, ["Collecting"], seconds=90)
    finally:
        operator.on_node("pkill", "--signal", "CONT", "--exact", "kubelet")
    operator.watch("cjob", NAME, namespace, "{.status.started}", ["2"], seconds=120)
    second = pod_of(operator, namespace, NAME, 2)
    assert min(steps(operator.log_until(second, namespace, ": step "))) >= done
    status = operator.get("cjob", NAME, namespace)["status"]
    assert [one["outcome"] for one in status["attempts"]] == ["Disrupted", "Running"]
    # Back again, the kubelet may still say how the first runner ended.
    assert status["attempts"][0]["reason"] in ("RunnerDisrupted", "RunnerTerminated")
    assert (status.get("failures", 0), status["disruptions"]) == (0, 1)
    operator.install("replicas=2")
