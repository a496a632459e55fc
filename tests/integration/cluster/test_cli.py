"""The commands on a cluster against a real API server; the test plays the operator in the status."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from control_plane import ControlPlane

from modelpress.cli.app import entry

API = "/apis/modelpress.dev/v1alpha1"
NOW = "2026-11-21T09:00:00Z"
RECIPE = """\
  model: {entrypoint: 'digits:create'}
  stages:
  - prune: {configList: [{opTypes: [Conv2d], sparsity: 0.5}]}
  store: {uri: 's3://models/out'}
"""
JOB = "apiVersion: modelpress.dev/v1alpha1\nkind: CompressionJob\nmetadata: {name: NAME}\nspec:\n" + RECIPE
SWEEP = (
    "apiVersion: modelpress.dev/v1alpha1\nkind: CompressionSweep\nmetadata: {name: NAME}\nspec:\n"
    + "  template:\n    spec:\n"
    + RECIPE.replace("  ", "      ", 1).replace("\n  ", "\n      ")
    + "  searchSpace: [{name: s, paths: [/stages/0/prune/configList/0/sparsity], float: {min: 0.1, max: 0.9}}]\n"
    + "  objectives: [{metric: default}, {metric: macs}]\n  maxTrials: 8\n"
)


class User:
    """Somebody with a kubeconfig and a namespace of their own."""

    def __init__(self, plane: ControlPlane, folder: Path, namespace: str) -> None:
        self.plane, self.folder, self.namespace = plane, folder, namespace
        self.kubeconfig = plane.kubeconfig

    def environment(self) -> dict[str, str]:
        return {**os.environ, "KUBECONFIG": str(self.kubeconfig), "NO_COLOR": "1", "HOME": str(self.folder)}

    def call(self, *words: str, code: int = 0, stdin: str = "") -> str:
        """Run a command that must end with this code: what it prints, its errors behind it."""
        out, errors = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
        where = () if "-n" in words or "-A" in words else ("-n", self.namespace)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            for name, value in self.environment().items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", ["modelpress", *words, *where])
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", errors)
            with pytest.raises(SystemExit) as ended:
                entry()
        said, wrong = (stream.buffer.getvalue().decode() for stream in (out, errors))  # type: ignore[attr-defined]
        assert ended.value.code == code, said + wrong
        assert "Traceback" not in wrong
        assert "should not have happened" not in wrong
        return said + wrong

    def get(self, plural: str, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.plane.request("GET", f"{API}/namespaces/{self.namespace}/{plural}/{name}")
        return found

    def set_status(self, plural: str, name: str, status: dict[str, Any]) -> None:
        """What the operator would write."""
        self.plane.request(
            "PATCH",
            f"{API}/namespaces/{self.namespace}/{plural}/{name}/status",
            {"status": status},
            content_type="application/merge-patch+json",
        )

    def file(self, text: str, name: str) -> str:
        (self.folder / f"{name}.yaml").write_text(text.replace("NAME", name))
        return f"{name}.yaml"


def condition(type_: str, status: str = "True", reason: str = "Because", message: str = "") -> dict[str, Any]:
    return {"type": type_, "status": status, "reason": reason, "message": message, "lastTransitionTime": NOW}


def pair(score: float, macs: float) -> dict[str, Any]:
    return {"baseline": {"default": 0.98, "macs": 1000.0}, "compressed": {"default": score, "macs": macs}}


DIGEST = "a" * 64


@pytest.fixture
def user(control_plane: ControlPlane, tmp_path: Path, request: pytest.FixtureRequest) -> User:
    """A user with a fresh namespace."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower())[:50].strip("-")
    control_plane.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    return User(control_plane, tmp_path, name)


def test_submitting_creates_what_the_file_says(user: User) -> None:
    """Twice changes nothing; another spec under the name is told with the paths that differ."""
    file = user.file(JOB + "---\n" + SWEEP.replace("NAME", "search"), "one")
    said = user.call("submit", file)
    assert f"cjob/one in {user.namespace}: created" in said
    assert f"csweep/search in {user.namespace}: created" in said
    stored = user.get("compressionjobs", "one")
    assert stored["spec"]["stages"][0]["prune"]["configList"][0]["sparsity"] == 0.5
    assert [entry["manager"] for entry in stored["metadata"]["managedFields"]] == ["modelpress-cli"]
    assert "cjob/one in " in (again := user.call("submit", file))
    assert again.count("is there already, unchanged") == 2
    (user.folder / file).write_text(JOB.replace("NAME", "one").replace("0.5", "0.6"))
    said = user.call("submit", file, code=2)
    assert "another spec already (it differs in spec.stages[0].prune.configList[0].sparsity)" in said


def test_everything_wrong_is_told_before_anything_is_created(user: User) -> None:
    """Schema and semantics with file and line, what no pod can honour included; exit code 2."""
    good = JOB.replace("NAME", "good")
    local = JOB.replace("NAME", "local").replace("s3://models/out", "./out") + "  code: {path: .}\n"
    (user.folder / "bad.yaml").write_text(f"{good}---\n{local}")
    said = user.call("submit", "bad.yaml", code=2)
    assert re.search(r"^bad\.yaml:17: spec\.store\.uri: ", said, re.MULTILINE)
    assert re.search(r"^bad\.yaml:18: spec\.code", said, re.MULTILINE)
    assert "sparsty" in user.call("submit", "-", stdin=good.replace("sparsity", "sparsty"), code=2)
    assert "there are no jobs and no sweeps" in user.call("status")


def test_the_server_has_the_last_word(user: User) -> None:
    """What only the API server knows is wrong is told in one sentence: exit code 2."""
    said = user.call("submit", user.file(JOB.replace("{name: NAME}", "{name: NAME, lables: {a: b}}"), "one"), code=2)
    assert said.count("\n") == 1
    assert "lables" in said
    said = user.call("submit", user.file(JOB, "two"), "-n", "nowhere", code=2)
    assert "nowhere" in said


def test_one_namespace_is_meant(user: User) -> None:
    """A file's own namespace and another one by -n contradict each other."""
    file = user.file(JOB.replace("{name: NAME}", "{name: NAME, namespace: team-a}"), "one")
    assert "metadata.namespace of one is team-a, but -n says" in user.call("submit", file, code=2)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (0, {"phase": "Succeeded", "conditions": [condition("Complete")], "metrics": pair(0.97, 400.0)}),
        (1, {"phase": "Failed", "conditions": [condition("Failed", reason="BackoffLimitExceeded", message="boom")]}),
        (2, {"phase": "Failed", "conditions": [condition("Failed", reason="InvalidModel", message="no")]}),
        (
            3,
            {
                "phase": "Succeeded",
                "conditions": [condition("ConstraintsMet", "False", "ConstraintMissed", "too slow")],
            },
        ),
    ],
)
def test_waiting_ends_as_a_local_run_does(user: User, code: int, status: dict[str, Any]) -> None:
    """Progress while it lasts, the result at the end, and the exit codes of `run`."""
    file = user.file(JOB, "one")
    process = subprocess.Popen(
        (sys.executable, "-m", "modelpress.cli", "submit", file, "--wait", "-n", user.namespace),
        cwd=user.folder,
        env=user.environment(),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    killer = threading.Timer(120, process.kill)
    killer.start()
    assert process.stdout is not None
    lines: list[str] = []

    def until(text: str) -> None:
        while not lines or text not in lines[-1]:
            line = process.stdout.readline() if process.stdout else ""
            assert line, lines
            lines.append(line)

    until("one: Pending")
    progress = {"stage": "finetune", "step": 2, "total": 5, "time": NOW}
    user.set_status("compressionjobs", "one", {"phase": "Running", "started": 1, "progress": progress})
    until("one: Running  finetune 2/5")
    user.set_status("compressionjobs", "one", {"observedGeneration": 1, **status})
    rest = process.stdout.read()
    assert process.wait(60) == code
    killer.cancel()
    process.stdout.close()
    for word in {0: ("-60.0%",), 1: ("BackoffLimitExceeded: boom",), 2: ("InvalidModel: no",), 3: ("too slow",)}[code]:
        assert word in rest


def finished_sweep(user: User) -> None:
    """A sweep of two trials with a best one that is published."""
    user.call("submit", user.file(SWEEP, "search"))
    uid = user.get("compressionsweeps", "search")["metadata"]["uid"]
    for number, (score, macs) in enumerate([(0.97, 400.0), (0.9, 100.0)]):
        body = yaml.safe_load(JOB.replace("NAME", f"search-{number:05d}"))
        body["metadata"] |= {
            "labels": {"modelpress.dev/sweep": "search", "modelpress.dev/trial": str(number)},
            "annotations": {"modelpress.dev/parameters": json.dumps({"s": 0.5 + number / 10})},
            "ownerReferences": [
                {
                    "apiVersion": "modelpress.dev/v1alpha1",
                    "kind": "CompressionSweep",
                    "name": "search",
                    "uid": uid,
                    "controller": True,
                }
            ],
        }
        user.plane.request("POST", f"{API}/namespaces/{user.namespace}/compressionjobs", body)
        artifact = {"uri": f"s3://models/out/x/trials/{number:05d}", "manifestDigest": DIGEST}
        status = {"phase": "Succeeded", "metrics": pair(score, macs), "artifact": artifact}
        user.set_status("compressionjobs", f"search-{number:05d}", status)
    best = {
        "number": 0,
        "name": "search-00000",
        "parameters": {"s": 0.5},
        "metrics": pair(0.97, 400.0)["compressed"],
        "feasible": True,
    }
    counts = {"succeeded": 2, "running": 1}
    artifact = {"uri": "s3://models/out/x/best", "manifestDigest": DIGEST}
    status = {"phase": "Running", "created": 3, "trials": counts, "best": best, "front": [0, 1], "artifact": artifact}
    user.set_status("compressionsweeps", "search", status)


def test_status_of_all_and_of_one(user: User) -> None:
    """Trials are listed with their sweep only; JSON has the objects as they are."""
    finished_sweep(user)
    user.call("submit", user.file(JOB, "alone"))
    said = user.call("status")
    assert re.search(r"CompressionSweep +search +Running +2/8 trials, 1 running +trial 0  default 0\.97", said)
    assert re.search(r"CompressionJob +alone +Pending", said)
    assert "search-00000" not in said
    said = user.call("status", "search")
    assert re.search(r"0 +Succeeded +s=0\.5 +0\.97 \(-1\.0%\) +400 \(-60\.0%\) .*best front", said)
    assert re.search(r"1 +Succeeded +s=0\.6 +0\.9 \(-8\.2%\) +100 \(-90\.0%\) .*front", said)
    kinds = [item["kind"] for item in json.loads(user.call("status", "-o", "json"))["items"]]
    assert sorted(kinds) == ["CompressionJob"] * 3 + ["CompressionSweep"]
    assert yaml.safe_load(user.call("status", "cjob/alone", "-o", "yaml"))["metadata"]["name"] == "alone"
    assert user.namespace in user.call("status", "-A")


def test_the_best_is_ready_to_be_loaded(user: User) -> None:
    """Parameters, numbers, URI and the line to paste; of a job its own result."""
    finished_sweep(user)
    said = user.call("best", "search")
    assert said.startswith("search, trial 0  s=0.5\n")
    assert "  import modelpress as mp; model = mp.load('s3://models/out/x/best')\n" in said
    found = json.loads(user.call("best", "search", "-o", "json"))
    assert found["metrics"] == pair(0.97, 400.0)
    assert found["manifestDigest"] == DIGEST
    user.call("submit", user.file(JOB, "alone"))
    assert "alone has no model yet: Pending" in user.call("best", "alone", code=2)
    assert "s3://models/out/x/trials/00001" in user.call("best", "search-00001")


def test_suspending_and_resuming(user: User) -> None:
    """Only spec.suspend changes; what is so already is said; a finished object can be neither."""
    user.call("submit", user.file(JOB, "one"))
    before = user.get("compressionjobs", "one")["spec"]
    assert user.call("suspend", "one") == "cjob/one: suspended\n"
    assert user.get("compressionjobs", "one")["spec"] == {**before, "suspend": True}
    assert "suspended already" in user.call("suspend", "cjob/one")
    assert user.call("resume", "one") == "cjob/one: resumed\n"
    assert user.get("compressionjobs", "one")["spec"]["suspend"] is False
    user.set_status("compressionjobs", "one", {"phase": "Failed"})
    assert "has finished (Failed), so it cannot be suspended" in user.call("suspend", "one", code=2)


def pod(name: str, labels: dict[str, str]) -> dict[str, Any]:
    container = {"name": "runner", "image": "none"}
    meta = {"name": name, "labels": labels}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {"containers": [container]}}


def test_logs_are_those_of_the_newest_attempt(user: User) -> None:
    """Without a pod, or before it starts, it says why; without a kubelet the API server has nothing more to give."""
    user.call("submit", user.file(JOB, "one"))
    assert "one is Pending, and it has no pod yet" in user.call("logs", "one", code=2)
    pods = f"/api/v1/namespaces/{user.namespace}/pods"
    for attempt in (1, 2):
        labels = {"modelpress.dev/job": "one", "modelpress.dev/attempt": str(attempt)}
        user.plane.request("POST", pods, pod(f"one-{attempt}", labels))
    waiting = {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}
    entry = {"name": "runner", "image": "x", "imageID": "", "ready": False, "restartCount": 0, "state": waiting}
    patch, merge = {"status": {"containerStatuses": [entry]}}, "application/merge-patch+json"
    user.plane.request("PATCH", f"{pods}/one-2/status", patch, content_type=merge)
    assert "the pod one-2 has no log yet: no such image" in user.call("logs", "one", code=2)
    entry["state"] = {"running": {"startedAt": NOW}}
    user.plane.request("PATCH", f"{pods}/one-2/status", patch, content_type=merge)
    assert user.call("logs", "one") == "==> one-2 <==\n"
    assert "--trial: one is a CompressionJob" in user.call("logs", "one", "--trial", "1", code=2)


# Errors --------------------------------------------------------------------------------------------------------------


def test_a_name_that_is_not_there(user: User) -> None:
    """Near names, then all names, then how to look elsewhere."""
    assert "another namespace is named with -n" in user.call("status", "digits", code=2)
    user.call("submit", user.file(JOB, "digits-l1"))
    said = user.call("status", "digits-l2", code=2)
    assert "there is no CompressionJob or CompressionSweep digits-l2 in the namespace" in said
    assert "did you mean digits-l1?" in said
    assert "there are digits-l1; another namespace" in user.call("best", "cjob/x", code=2)
    user.call("submit", user.file(SWEEP, "digits-l1"))
    assert "write cjob/digits-l1 or csweep/digits-l1" in user.call("status", "digits-l1", code=2)
    assert "'pod' is no kind of ours" in user.call("status", "pod/x", code=2)


def test_permissions_that_lack_are_named(user: User) -> None:
    """Which user may not do what with which resource, and where."""
    base = f"/api/v1/namespaces/{user.namespace}/serviceaccounts"
    user.plane.request("POST", base, {"metadata": {"name": "nobody"}})
    token = user.plane.request("POST", f"{base}/nobody/token", {"spec": {}})["status"]["token"]
    user.kubeconfig = user.plane.write_kubeconfig(f"nobody-{user.namespace}", token=token)
    said = user.call("status", code=1)
    assert (
        f"the user system:serviceaccount:{user.namespace}:nobody may not list compressionsweeps.modelpress.dev" in said
    )
    assert f"in the namespace {user.namespace} of the cluster {user.plane.url}; ask for a Role" in said
    assert "may not create compressionjobs.modelpress.dev" in user.call("submit", user.file(JOB, "one"), code=1)
    user.kubeconfig = user.plane.write_kubeconfig(f"bad-{user.namespace}", token="nonsense")
    assert "does not accept your credentials" in user.call("status", code=1)


def test_a_cluster_without_the_definitions(user: User) -> None:
    """It says how to install them."""
    proxy = user.folder / "other.kubeconfig"
    config = json.loads(user.plane.kubeconfig.read_text())
    # The server takes a path before its own; below this one there is no API.
    config["clusters"][0]["cluster"]["server"] += "/apis/nothing.example"
    proxy.write_text(json.dumps(config))
    user.kubeconfig = proxy
    said = user.call("status", code=1)
    assert "does not know compressionsweeps.modelpress.dev; install the definitions: modelpress crd |" in said


@pytest.mark.parametrize(
    ("change", "words", "code", "said"),
    [
        (lambda c: c["clusters"][0]["cluster"].update(server="https://127.0.0.1:1"), (), 1, "cannot be reached"),
        (lambda c: c["clusters"][0]["cluster"].pop("certificate-authority-data"), (), 1, "certificate"),
        (lambda c: c.update({"current-context": "gone"}), (), 2, "is not usable"),
        (lambda c: None, ("--context", "tset"), 2, "has no context 'tset'; did you mean test?"),
        (lambda c: None, ("--kubeconfig", "none.yaml"), 2, "there is no kubeconfig (none.yaml)"),
        (lambda c: c.update(users="x"), (), 2, "kubeconfig"),
    ],
)
def test_no_way_to_a_cluster(
    user: User, change: Callable[[dict[str, Any]], Any], words: tuple[str, ...], code: int, said: str
) -> None:
    """One sentence each."""
    config = json.loads(user.plane.kubeconfig.read_text())
    change(config)
    user.kubeconfig = user.folder / "config"
    user.kubeconfig.write_text(json.dumps(config))
    found = user.call("status", *words, code=code)
    assert said in found
    assert found.count("\n") == 1, found


def test_kubectl_finds_the_plugin(user: User) -> None:
    """`kubectl modelpress status` is the same command."""
    folder = user.folder / "bin"
    folder.mkdir()
    plugin = folder / "kubectl-modelpress"
    plugin.write_text(f"#!{sys.executable}\nfrom modelpress.cli.cluster import main\nmain()\n")
    plugin.chmod(0o755)
    done = subprocess.run(
        (str(user.plane.bin / "kubectl"), "modelpress", "status", "-n", user.namespace),
        env={**user.environment(), "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"},
        text=True,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"there are no jobs and no sweeps in the namespace {user.namespace}" in done.stdout
