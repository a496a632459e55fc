"""Ten busy minutes of the operator among hostile objects and floods: a real control plane, pods by a fake kubelet.

Two replicas serve 500 CompressionJobs that come evenly over the time. One in twenty is hostile (too deep, too large,
forged, with edited annotations), and strangers flood the three ports of both replicas, on loopback: deflate bombs,
connections that say nothing, slow and huge headers. The leader is killed once, a follower restarted once, and the
leadership changes once in good order; a process that ends by itself is started again, as a kubelet would.

Reported: honest jobs that completed; the longest time for which no replica was ready ("any", what a Service sees), and
each of them was not (a start of its process among it); the largest resident memory of any of the processes; and what
became of the hostile objects. Exit code 1 unless every honest job completes, some replica is ready again within 30 s at
any time, and memory stays under 300 MiB.

Usage: python benchmarks/operator_hostile.py [--seconds 600] [--jobs 500] [--output FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tools" / "cluster"), str(ROOT / "tests" / "integration" / "cluster")]

import floods  # noqa: E402
from control_plane import ControlPlane  # noqa: E402
from fake_kubelet import FakeKubelet, Fate  # noqa: E402
from hostile import Poster, assortment  # noqa: E402
from operator_cluster import condition, job, sweep  # noqa: E402
from operator_process import OperatorProcess, make_account  # noqa: E402

NAMESPACE = "bench"
API = f"/apis/modelpress.dev/v1alpha1/namespaces/{NAMESPACE}"
HOSTILE_EVERY = 20
TRIALS = 12  # of an honest sweep, to which forged trials claim to belong
FLOOD_EVERY = 20.0  # seconds
MOST_MIB, LONGEST_GAP = 300.0, 30.0
GRACE = 180.0  # seconds for the last jobs


class Watchdog(threading.Thread):
    """Asks every replica's probe twice a second, and notes memory."""

    def __init__(self, replicas: list[OperatorProcess]) -> None:
        super().__init__(daemon=True)
        self._replicas = replicas
        self._ready_at = dict.fromkeys(["any", *(str(n) for n in range(len(replicas)))], time.monotonic())
        self.gaps = dict.fromkeys(self._ready_at, 0.0)
        self.peak = 0.0
        self.restarts: list[str] = []  # of processes that ended by themselves, with the end of their log
        self.leave = set[int]()  # replicas that are being stopped and started by intent
        self.stop = threading.Event()

    def run(self) -> None:
        """Watch until `stop`."""
        while not self.stop.wait(0.5):
            for number, replica in enumerate(self._replicas):
                if number not in self.leave and not replica.running:  # as a kubelet does
                    self.restarts.append(last_words(replica))
                    replica.start()
                ready = self._ready(replica)
                for name in (str(number), "any"):
                    now = time.monotonic()
                    self.gaps[name] = max(self.gaps[name], now - self._ready_at[name])
                    if ready:
                        self._ready_at[name] = now
                with contextlib.suppress(OSError, KeyError, AssertionError):
                    lines = Path(f"/proc/{replica.pid}/status").read_text().splitlines()
                    status = dict(line.split(":", 1) for line in lines)
                    self.peak = max(self.peak, int(status["VmHWM"].split()[0]) / 1024)

    def _ready(self, replica: OperatorProcess) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{replica.probe_port}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


class Flood(threading.Thread):
    """A wave on each port of each replica in turn."""

    def __init__(self, replicas: list[OperatorProcess]) -> None:
        super().__init__(daemon=True)
        self._replicas = replicas
        self.waves = 0
        self.stop = threading.Event()

    def run(self) -> None:
        """Flood until `stop`."""
        while not self.stop.wait(FLOOD_EVERY):
            replica = self._replicas[self.waves % len(self._replicas)]
            ports = (replica.progress_port, replica.probe_port, replica.port)
            with contextlib.suppress(OSError):
                floods.wave(ports[self.waves // len(self._replicas) % 3])
            self.waves += 1


def last_words(replica: OperatorProcess) -> str:
    """The last complaint in its log."""
    complaints = [line["msg"] for line in replica.lines() if line["level"] in ("error", "warning")]
    return complaints[-1][:300] if complaints else "nothing"


def disturb(replicas: list[OperatorProcess], step: int) -> str:
    """What happens to the replicas at a quarter, a half and three quarters of the time."""
    leading = [number for number, one in enumerate(replicas) if one.metric("modelpress_leader") == 1]
    leader = leading[0] if leading else 0
    other = 1 - leader
    if step == 0:
        replicas[leader].kill()
        replicas[leader].start()
        return f"replica {leader}, which led, was killed and started again"
    if step == 1:
        replicas[other].stop()
        replicas[other].start()
        return f"replica {other}, which followed, was stopped and started again"
    replicas[leader].stop()
    deadline = time.monotonic() + 60
    while replicas[other].metric("modelpress_leader") != 1 and time.monotonic() < deadline:
        time.sleep(0.1)
    leads = replicas[other].metric("modelpress_leader") == 1
    replicas[leader].start()
    return f"replica {leader}, which led, was stopped; replica {other} {'leads' if leads else 'does not lead'}"


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The whole time."""
    chance = random.Random(arguments.seed)
    with contextlib.ExitStack() as stack:
        plane = stack.enter_context(ControlPlane(folder / "cluster"))
        plane.kubectl("apply", "--server-side", "-f", str(ROOT / "crds"))
        plane.wait_established()
        plane.kubectl("create", "namespace", NAMESPACE)
        kubeconfig = make_account(plane, NAMESPACE)
        stack.enter_context(FakeKubelet(plane, lambda run: Fate(run=chance.uniform(0.5, 4.0))))
        replicas = [
            stack.enter_context(
                OperatorProcess(kubeconfig, NAMESPACE, folder=folder, identity=f"replica-{number}", apart=True)
            )
            for number in range(2)
        ]
        for replica in replicas:
            replica.wait_ready()
        post = Poster(plane)
        watchdog, flood = Watchdog(replicas), Flood(replicas)
        watchdog.start()
        flood.start()
        uid = plane.request("POST", f"{API}/compressionsweeps", sweep("search", TRIALS, 1))["metadata"]["uid"]
        start, happened, refused = time.monotonic(), [], Counter[int]()
        honest: list[str] = []
        hostile: list[tuple[str, str]] = []
        for number in range(arguments.jobs):
            at = start + number * arguments.seconds / arguments.jobs
            time.sleep(max(0.0, at - time.monotonic()))
            share = (time.monotonic() - start) / arguments.seconds
            if len(happened) < 3 and share >= 0.25 * (len(happened) + 1):
                watchdog.leave = {0, 1}
                happened.append(f"{share * arguments.seconds:.0f} s: {disturb(replicas, len(happened))}")
                watchdog.leave = set()
            if number % HOSTILE_EVERY == HOSTILE_EVERY - 1:
                kind, text = assortment(number // HOSTILE_EVERY, chance, uid)
                status, name = post(NAMESPACE, kind, text)
                hostile += [(kind, name)] if status == 201 else []
            else:
                status, name = post(NAMESPACE, "CompressionJob", json.dumps(job(f"honest-{number}")))
                honest.append(name)
            refused[status] += status != 201
        left = set(honest)
        deadline = time.monotonic() + GRACE
        while left and time.monotonic() < deadline:
            time.sleep(1)
            left = {name for name in left if phase(plane, name) != "Succeeded"}
        seconds = time.monotonic() - start
        time.sleep(5)
        flood.stop.set()
        watchdog.stop.set()
        watchdog.join(15)
        search = plane.request("GET", f"{API}/compressionsweeps/search")["status"]
        stalled = Counter(outcome(plane, kind, name) for kind, name in hostile)
        ready = [replica.get("/readyz")[0] == 200 for replica in replicas]
        errors = [line["error"] for replica in replicas for line in replica.lines() if "error" in line]
    return {
        "seconds": round(seconds, 1),
        "honest": len(honest),
        "honestCompleted": len(honest) - len(left),
        "hostile": len(hostile),
        "hostileOutcomes": dict(sorted(stalled.items())),
        "sweep": {"phase": search["phase"], **search["trials"]},
        "refusedByApiServer": sum(refused.values()),
        "floodWaves": flood.waves,
        "happened": happened,
        "longestGapSeconds": {name: round(gap, 1) for name, gap in watchdog.gaps.items()},
        "readyAtTheEnd": ready,
        "loadAverage": round(os.getloadavg()[2], 1),  # of fifteen minutes, the whole machine's
        "cores": os.cpu_count(),
        "restartedByThemselves": watchdog.restarts,
        "errorsLogged": dict(Counter(error.strip().rpartition("\n")[2][:200] for error in errors)),
        "peakRssMiB": round(watchdog.peak, 1),
    }


def phase(plane: ControlPlane, name: str) -> str | None:
    """The phase of a CompressionJob."""
    found: str | None = plane.request("GET", f"{API}/compressionjobs/{name}").get("status", {}).get("phase")
    return found


def outcome(plane: ControlPlane, kind: str, name: str) -> str:
    """What the status of a hostile object says."""
    plural = kind.lower() + "s"
    try:
        text = plane.kubectl("--namespace", NAMESPACE, "get", plural, name, "--output", "jsonpath={.status}")
    except RuntimeError:
        return "gone"
    stalled = condition({"status": json.loads(text or "{}")}, "Stalled")
    return f"Stalled={stalled.get('status', 'Unknown')}, {stalled.get('reason', 'no status')}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0, help="of run times and hostile objects")
    parser.add_argument("--output", type=Path, help="file that gets the figures as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="modelpress-bench-") as folder:
        figures = measure(arguments, Path(folder))
    text = json.dumps(figures, indent=2)
    print(text)
    if arguments.output is not None:
        arguments.output.write_text(text + "\n")
    sound = figures["honestCompleted"] == figures["honest"] and all(figures["readyAtTheEnd"])
    sound = sound and (figures["sweep"]["phase"], figures["sweep"]["succeeded"]) == ("Succeeded", TRIALS)
    steady = figures["longestGapSeconds"]["any"] <= LONGEST_GAP
    return 0 if sound and steady and figures["peakRssMiB"] < MOST_MIB else 1


if __name__ == "__main__":
    sys.exit(main())
