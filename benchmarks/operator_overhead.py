"""What a sweep costs beside a bare Job that does the same work: on a real node, in turn, in one run.

The work: 24 pods that sleep for 2 s, four at a time. As a bare Indexed Job, and as a CompressionSweep whose runner is
the same few lines of Python in the same image, so that nothing but the orchestration differs; a sweep has a prepare and
a publish pod besides. Both are repeated alternately, and the medians compared:

    trials    from the first such pod's start to the last one's end
    whole     from the request that creates the object to its condition Complete

Times are those at which a watcher of the API server hears of them. Linux, as root (tools/cluster/e2e.sh).

Usage: python benchmarks/operator_overhead.py [--trials 24] [--parallelism 4] [--seconds 2] [--repeat 3] [--output FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tools" / "cluster")]

import e2e  # noqa: E402
from running import Running, restricted_pod  # noqa: E402

NAMESPACE = "bench"
PURPOSE = r"{.metadata.labels.modelpress\.dev/purpose}"
# The runner's contract and nothing else: sleep, and report a result. A trial's digest is a function of its prefix, so
# that publish can name the best one's.
RUNNER = """\
import hashlib, json, os, sys, time
def digest(prefix): return hashlib.sha256(prefix.encode()).hexdigest()
if sys.argv[1] == "--bare":
    time.sleep(float(os.environ["BENCH_SECONDS"]))
    sys.exit()
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
request = json.load(open(options["--request"]))
baseline = {"default": 1.0, "macs": 1000.0}
result = {"v": 1, "phase": "Succeeded", "reason": "Committed"}
if request["purpose"] == "trial":
    time.sleep(float(os.environ["BENCH_SECONDS"]))
    keep = 1 - request["spec"]["stages"][0]["prune"]["configList"][0]["sparsity"]
    compressed = {"default": 0.9 + keep / 10, "macs": 1000 * keep}
    result |= {"manifestDigest": digest(request["prefix"]), "baseline": baseline}
    result |= {"compressed": compressed, "smaller": True}
elif request["purpose"] == "prepare":
    result |= {"baseline": baseline}
else:
    best = request["publish"].get("best")
    result |= {"manifestDigest": digest(f"{request['root']}/trials/{best:05d}")}
with open(options["--result"], "w") as file:
    json.dump(result, file)
"""


def pod_parts(arguments: argparse.Namespace) -> dict[str, Any]:
    """What a pod needs to run RUNNER as modelpress_runner.main: a podTemplate's spec."""
    items = [{"key": "empty", "path": "modelpress_runner/__init__.py"}]
    items += [{"key": "main.py", "path": "modelpress_runner/main.py"}]
    variables = [{"name": "PYTHONPATH", "value": "/bench"}]
    variables += [{"name": "BENCH_SECONDS", "value": str(arguments.seconds)}]
    mounts = [{"name": "bench", "mountPath": "/bench", "readOnly": True}]
    return {
        "containers": [{"name": "runner", "env": variables, "volumeMounts": mounts}],
        "volumes": [{"name": "bench", "configMap": {"name": "bench", "items": items}}],
    }


def bare_job(name: str, image: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One Indexed Job that does all of the work."""
    command = ["python", "-m", "modelpress_runner.main", "--bare"]
    spec = restricted_pod(name, NAMESPACE, image, command)["spec"]
    parts = pod_parts(arguments)
    container = spec["containers"][0]
    container["env"] = parts["containers"][0]["env"]
    container["volumeMounts"] += parts["containers"][0]["volumeMounts"]
    spec["volumes"] += parts["volumes"]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "completions": arguments.trials,
            "parallelism": arguments.parallelism,
            "completionMode": "Indexed",
            "backoffLimit": 0,
            "template": {"spec": spec},
        },
    }


def sweep(name: str, image: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The same work as a random search."""
    prune = {"algorithm": "l1", "configList": [{"opTypes": ["Conv2d"], "sparsity": 0.5}]}
    template = {
        "model": {"entrypoint": "bench:none"},
        "stages": [{"prune": prune}],
        "store": {"uri": "s3://models/bench"},
        "runner": {"image": image, "podTemplate": {"spec": pod_parts(arguments)}},
    }
    space = {"name": "sparsity", "paths": ["/stages/0/prune/configList/0/sparsity"], "float": {"min": 0.1, "max": 0.9}}
    return {
        "apiVersion": "modelpress.dev/v1alpha1",
        "kind": "CompressionSweep",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "template": {"spec": template},
            "searchSpace": [space],
            "objectives": [{"metric": "default"}, {"metric": "macs"}],
            "algorithm": {"name": "random", "seed": 7},
            "parallelism": arguments.parallelism,
            "maxTrials": arguments.trials,
        },
    }


class Pods:
    """When each pod was first seen running and first seen over, by the arrival of the watch events."""

    def __init__(self, count: int) -> None:
        self._count = count
        self.complete = threading.Event()  # as many pods as there must be have ended
        self.started: dict[str, float] = {}
        self.ended: dict[str, float] = {}

    def saw(self, line: str) -> None:
        """One line of the watch: name, phase and purpose (none of a bare Job's)."""
        name, phase, *purpose = line.split()
        if purpose not in ([], ["trial"]):
            return
        if phase == "Running":
            self.started.setdefault(name, time.monotonic())
        elif phase in ("Succeeded", "Failed"):
            # A pod that was over before anybody heard that it ran started at that moment at the latest.
            self.started.setdefault(name, time.monotonic())
            self.ended.setdefault(name, time.monotonic())
            if len(self.ended) == self._count:
                self.complete.set()


@contextmanager
def watching(cluster: Running, path: str, saw: Callable[[str], None]) -> Iterator[None]:
    """Hands each line that a JSONPath gives of the namespace's pods to `saw` while the context is open."""
    command = [str(cluster.bin / "kubectl"), "get", "pods", "--namespace", NAMESPACE, "--watch"]
    environment = os.environ | {"KUBECONFIG": str(cluster.kubeconfig)}
    output = ["-o", f'jsonpath={path}{{"\\n"}}']
    with subprocess.Popen([*command, *output], stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        lines = process.stdout

        def read() -> None:
            for line in lines:
                if line.strip():
                    saw(line)

        reader = threading.Thread(target=read)
        reader.start()
        try:
            yield
        finally:
            process.terminate()
            reader.join(10)


def timed(cluster: Running, body: dict[str, Any], arguments: argparse.Namespace) -> dict[str, float]:
    """Creates the object, waits for its end, and deletes it; seconds of its trials and of the whole."""
    kind, name = body["kind"].lower(), body["metadata"]["name"]
    pods = Pods(arguments.trials)
    with watching(cluster, "{.metadata.name} {.status.phase} " + PURPOSE, pods.saw):
        begin = time.monotonic()
        cluster.create(body)
        ending = cluster.finished(kind, name, NAMESPACE, seconds=300)
        whole = time.monotonic() - begin
        pods.complete.wait(10)  # the two watches are not in step
    if ending != "Complete" or len(pods.ended) != arguments.trials:
        raise SystemExit(f"{kind} {name}: {ending}, {len(pods.ended)} pods ended\n{cluster.story(NAMESPACE)}")
    cluster.kubectl("delete", kind, name, "--namespace", NAMESPACE, "--cascade=foreground", seconds=120)
    cluster.kubectl("delete", "pods", "--all", "--namespace", NAMESPACE, "--timeout=120s", seconds=130)
    return {"trials": max(pods.ended.values()) - min(pods.started.values()), "whole": whole}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Both, in turn; inside the cluster's network."""
    cluster = Running.find()
    image = cluster.images["operator"]
    cluster = replace(cluster, images={"operator": image, "runner": image})
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    cluster.apply(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}},
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "bench", "namespace": NAMESPACE},
            "data": {"main.py": RUNNER, "empty": ""},
        },
    )
    cluster.install("replicas=1", f"watchNamespaces={{{NAMESPACE}}}")
    cluster.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
    rounds: dict[str, list[dict[str, float]]] = {"bare": [], "sweep": []}
    for number in range(arguments.repeat):
        rounds["bare"].append(timed(cluster, bare_job(f"bare-{number}", image, arguments), arguments))
        rounds["sweep"].append(timed(cluster, sweep(f"sweep-{number}", image, arguments), arguments))
        print(json.dumps({name: values[-1] for name, values in rounds.items()}), file=sys.stderr, flush=True)
    middle = {
        name: {part: statistics.median(one[part] for one in values) for part in ("trials", "whole")}
        for name, values in rounds.items()
    }
    return {
        "trials": arguments.trials,
        "parallelism": arguments.parallelism,
        "seconds": arguments.seconds,
        "repeat": arguments.repeat,
        "median": {name: {part: round(value, 2) for part, value in parts.items()} for name, parts in middle.items()},
        "ratio": {part: round(middle["sweep"][part] / middle["bare"][part], 3) for part in ("trials", "whole")},
        "rounds": rounds,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--parallelism", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=2, help="how long each pod sleeps")
    parser.add_argument("--repeat", type=int, default=3, help="rounds of both")
    parser.add_argument("--output", type=Path, help="file that gets the figures as JSON")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.inside:
        e2e.up(targets=("operator",), owned=True)
        try:
            return e2e.run_in([sys.executable, str(Path(__file__)), "--inside", *sys.argv[1:]])
        finally:
            e2e.down()
    text = json.dumps(measure(arguments), indent=2)
    print(text)
    if arguments.output is not None:
        arguments.output.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
