"""What the operator adds to a sweep: a random search on a real control plane, its pods played by a fake kubelet.

Reported: trials per second, the operator's writes per trial (from the API server's audit log, Events and Lease apart)
and reads, its memory and CPU time, the size of the sweep's object, and the time from the end of a trial's Job
to the creation of the Job that takes its place, median and 99th percentile, as a watcher of Jobs sees both. The Job
controller collects news of pods for about a second before a Job ends; that is Kubernetes' share and not in the last
figure.

With --kills the operator is killed by SIGKILL at that many random moments, and the sweep must come out as an
undisturbed one: every trial once, with its own parameters. Exit code 1 if it does not.

Usage: python benchmarks/operator_sweep.py [--trials 1000] [--parallelism 50] [--run 0.5] [--kills 0] [--output FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import statistics
import sys
import tempfile
import threading
import time
import urllib.parse
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tools" / "cluster"), str(ROOT / "tests" / "integration" / "cluster")]

from control_plane import ControlPlane  # noqa: E402
from fake_kubelet import SELECTOR, Connection, FakeKubelet, Fate  # noqa: E402
from operator_process import ACCOUNT, OperatorProcess, make_account  # noqa: E402

from modelpress.api.load import load_dict  # noqa: E402
from modelpress.api.v1alpha1 import CompressionSweep  # noqa: E402
from modelpress.search import strategy_for  # noqa: E402
from modelpress.trials import History  # noqa: E402

NAMESPACE = "bench"
API = f"/apis/modelpress.dev/v1alpha1/namespaces/{NAMESPACE}"
WRITES = ("create", "patch", "update", "delete")


def sweep(trials: int, parallelism: int) -> dict[str, Any]:
    """A random search for a sparsity."""
    prune = {"algorithm": "l1", "configList": [{"opTypes": ["Conv2d"], "sparsity": 0.5}]}
    spec = {"model": {"entrypoint": "digits:create"}, "stages": [{"prune": prune}], "store": {"uri": "s3://models/out"}}
    space = {"name": "sparsity", "paths": ["/stages/0/prune/configList/0/sparsity"], "float": {"min": 0.1, "max": 0.9}}
    return {
        "apiVersion": "modelpress.dev/v1alpha1",
        "kind": "CompressionSweep",
        "metadata": {"name": "search", "namespace": NAMESPACE},
        "spec": {
            "template": {"spec": spec},
            "searchSpace": [space],
            "objectives": [{"metric": "default"}, {"metric": "macs"}],
            "algorithm": {"name": "random", "seed": 7},
            "parallelism": parallelism,
            "maxTrials": trials,
        },
    }


def expected_parameters(body: dict[str, Any]) -> list[str]:
    """What each trial's parameters must be."""
    loaded = load_dict(body)
    assert isinstance(loaded, CompressionSweep)
    strategy, numbers = strategy_for(loaded.spec), range(loaded.spec.max_trials)
    return [json.dumps(dict(strategy.suggest(n, History(), {}).parameters), sort_keys=True) for n in numbers]


class JobClock(threading.Thread):
    """When each trial's Job was created and when it ended, by the arrival of the watch events."""

    def __init__(self, cluster: ControlPlane) -> None:
        super().__init__(daemon=True)
        self._cluster = cluster
        self.created: dict[str, float] = {}
        self.ended: dict[str, float] = {}
        self.stop = threading.Event()

    def run(self) -> None:
        """Watch until `stop`."""
        query = {"labelSelector": f"{SELECTOR},modelpress.dev/purpose=trial", "watch": "true", "timeoutSeconds": "2"}
        version = "0"
        with contextlib.closing(Connection(self._cluster)) as talk:
            while not self.stop.is_set():
                path = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs?"
                for event in talk.stream(path + urllib.parse.urlencode({**query, "resourceVersion": version})):
                    job, now = event["object"], time.monotonic()
                    version, name = job["metadata"]["resourceVersion"], job["metadata"]["name"]
                    self.created.setdefault(name, now)
                    if any(c["type"] in ("Complete", "Failed") for c in job["status"].get("conditions", [])):
                        self.ended.setdefault(name, now)

    def turnovers(self, parallelism: int) -> list[float]:
        """Seconds from each end to the creation that it made room for."""
        created, ended = sorted(self.created.values()), sorted(self.ended.values())
        return [max(0.0, new - old) for new, old in zip(created[parallelism:], ended, strict=False)]


def usage(process: int) -> dict[str, float]:
    """Largest resident memory in MiB and CPU seconds of a process."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    times = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    seconds = (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")
    return {"rssMiB": round(int(status["VmHWM"].split()[0]) / 1024, 1), "cpuSeconds": round(seconds, 2)}


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One sweep."""
    chance = random.Random(arguments.seed)
    body = sweep(arguments.trials, arguments.parallelism)
    with ControlPlane(folder / "cluster", audit=True) as cluster:
        cluster.kubectl("apply", "--server-side", "-f", str(ROOT / "crds"))
        cluster.wait_established()
        cluster.kubectl("create", "namespace", NAMESPACE)
        kubeconfig = make_account(cluster, NAMESPACE)
        clock = JobClock(cluster)

        def fate(request: dict[str, Any]) -> Fate:
            return Fate(run=chance.uniform(0.5, 1.5) * arguments.run)

        with FakeKubelet(cluster, fate) as kubelet, OperatorProcess(kubeconfig, NAMESPACE, folder=folder) as operator:
            operator.wait_ready()
            clock.start()
            start = time.monotonic()
            cluster.request("POST", f"{API}/compressionsweeps", body)
            kills, status = 0, {}
            while status.get("phase") not in ("Succeeded", "Failed"):
                if kills < arguments.kills:
                    time.sleep(chance.uniform(0.02, 0.6))
                    operator.kill()
                    operator.start()
                    operator.wait_ready()
                    kills += 1
                else:
                    time.sleep(0.2)
                status = cluster.request("GET", f"{API}/compressionsweeps/search").get("status", {})
                if time.monotonic() - start > arguments.limit:
                    raise SystemExit(f"not done after {arguments.limit} s: {status.get('trials')}\n{operator.tail()}")
            seconds = time.monotonic() - start
            used = usage(operator.pid)
            clock.stop.set()
            clock.join(10)
            trials = cluster.request("GET", f"{API}/compressionjobs")["items"]
            object_ = cluster.request("GET", f"{API}/compressionsweeps/search")
            asked = requests(cluster)
        found = {
            trial["metadata"]["name"]: trial["metadata"]["annotations"]["modelpress.dev/parameters"] for trial in trials
        }
        runs = Counter(run.request["name"] for run in kubelet.of(NAMESPACE))
    turnovers = clock.turnovers(arguments.parallelism)
    writes = sum(count for (verb, what), count in asked.items() if verb in WRITES and what != "events")
    return {
        "trials": arguments.trials,
        "parallelism": arguments.parallelism,
        "runSeconds": arguments.run,
        "kills": kills,
        "phase": status["phase"],
        "counts": status["trials"],
        "asUndisturbed": [found[name] for name in sorted(found)] == expected_parameters(body),
        "eachTrialOnce": runs == Counter(dict.fromkeys(found, 1)) and len(found) == arguments.trials,
        "seconds": round(seconds, 2),
        "trialsPerSecond": round(arguments.trials / seconds, 2),
        "writesPerTrial": round(writes / arguments.trials, 3),
        "getsAndLists": sum(count for (verb, _), count in asked.items() if verb in ("get", "list")),
        # As etcd holds it; what the API server adds for each manager of fields is in it.
        "sweepBytes": len(json.dumps(object_, separators=(",", ":"))),
        "requests": {f"{verb} {what}": count for (verb, what), count in sorted(asked.items())},
        "turnoverP50": round(statistics.median(turnovers), 3) if turnovers else None,
        "turnoverP99": round(sorted(turnovers)[int(len(turnovers) * 0.99)], 3) if turnovers else None,
        **used,
    }


def requests(cluster: ControlPlane) -> Counter[tuple[str, str]]:
    """What the operator asked of the API server, but for its Lease, from the audit log."""
    assert cluster.audit_log is not None
    user = f"system:serviceaccount:{NAMESPACE}:{ACCOUNT}"
    counts: Counter[tuple[str, str]] = Counter()
    with cluster.audit_log.open() as log:
        for event in map(json.loads, log):
            what = event.get("objectRef", {})
            if event["user"]["username"] == user and what.get("resource") not in (None, "leases"):
                counts[event["verb"], "/".join(filter(None, (what["resource"], what.get("subresource"))))] += 1
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--parallelism", type=int, default=50)
    parser.add_argument("--run", type=float, default=0.5, help="seconds that a pod runs, on average")
    parser.add_argument("--kills", type=int, default=0, help="times that the operator is killed")
    parser.add_argument("--seed", type=int, default=0, help="of run times and kills")
    parser.add_argument("--limit", type=float, default=1800, help="seconds after which it is given up")
    parser.add_argument("--output", type=Path, help="file that gets the figures as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="modelpress-bench-") as folder:
        figures = measure(arguments, Path(folder))
    text = json.dumps(figures, indent=2)
    print(text)
    if arguments.output is not None:
        arguments.output.write_text(text + "\n")
    return 0 if figures["asUndisturbed"] and figures["eachTrialOnce"] and figures["phase"] == "Succeeded" else 1


if __name__ == "__main__":
    sys.exit(main())
