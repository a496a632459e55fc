"""What the operator takes to start over a fleet of finished trials: memory, CPU time, seconds, and requests that write.

The API server is a stand-in that serves the listings page by page, from a trial, a Job and a pod as a real one gave
them, each with names, times, scores and digests of its own; the operator is the real process with its real watches.

Usage: python benchmarks/operator_fleet.py [--trials 10000] [--output FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiohttp import web

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [
    str(ROOT / "tools" / "cluster"),
    *(str(ROOT / "tests" / kind / "cluster") for kind in ("unit", "integration")),
]

from operator_process import OperatorProcess  # noqa: E402
from operator_sweep import usage  # noqa: E402
from test_fleet import NOW, children, fleet, trial  # noqa: E402
from test_handlers import Server  # noqa: E402

from modelpress_operator.client import apply_merge_patch  # noqa: E402

LIMIT_SECONDS = 600
SAMPLE = 54321
NAMESPACE = fleet()["sweep"]["metadata"]["namespace"]


def like(sample: dict[str, Any]) -> Callable[[int], str]:
    """The text of objects like this one, with a number, times, a score and a digest of their own."""
    moment = (NOW + dt.timedelta(seconds=SAMPLE)).isoformat()[:19]
    parts = re.split(f"({SAMPLE:05d}|{SAMPLE:064x}|0.123456789|{moment}|{moment_of_trial()})", json.dumps(sample))

    def text(number: int) -> str:
        now = (NOW + dt.timedelta(seconds=number)).isoformat()[:19]
        own = {f"{SAMPLE:05d}": f"{number:05d}", f"{SAMPLE:064x}": f"{number:064x}", "0.123456789": f"0.{number:05d}7"}
        return "".join(own.get(part, now if part.startswith("2027-") else part) for part in parts)

    return text


def moment_of_trial() -> str:
    """The time in the sample of a trial."""
    return (NOW + dt.timedelta(seconds=1.37 * SAMPLE)).isoformat()[:19]


class StandIn(Server):
    """Lists a fleet, watches that never tell anything, and a Lease for whoever asks."""

    def __init__(self, trials: int) -> None:
        super().__init__()
        self._trials = trials
        self._lease: dict[str, Any] = {}
        self.writes: list[str] = []
        self.app.router.add_route("*", "/{path:.*}", self._other)

    async def _collection(self, request: web.Request) -> web.StreamResponse:
        plural = request.match_info["plural"]
        if request.query.get("watch") == "true":
            return await self._watch(request, plural)
        make = self._makers()[plural]
        count = 1 if plural == "compressionsweeps" else self._trials
        first = int(request.query.get("continue") or 0)
        last = min(count, first + int(request.query.get("limit") or count))
        meta = {"resourceVersion": "100000000", **({"continue": str(last)} if last < count else {})}
        items = ",".join(map(make, range(first, last)))
        text = f'{{"kind": "List", "apiVersion": "v1", "metadata": {json.dumps(meta)}, "items": [{items}]}}'
        return web.Response(text=text, content_type="application/json")

    def _makers(self) -> dict[str, Callable[[int], str]]:
        return {
            "compressionsweeps": self._sweep,
            "compressionjobs": like(trial(SAMPLE, score=0.123456789)),
            "jobs": like(children(SAMPLE)[0]),
            "pods": like(children(SAMPLE)[1]),
        }

    def _sweep(self, _: int) -> str:
        body = fleet()["sweep"]
        body["spec"]["maxTrials"] = self._trials
        body["status"] |= {"created": self._trials}
        body["status"]["trials"]["succeeded"] = self._trials
        return json.dumps(body)

    async def _other(self, request: web.Request) -> web.Response:
        if "/leases" not in request.path:
            self.writes.append(f"{request.method} {request.path}")
            return web.json_response({"kind": "Status", "message": "this is a stand-in"}, status=404)
        if request.method == "GET" and not self._lease:
            return web.json_response({"kind": "Status", "message": "not found"}, status=404)
        if request.method != "GET":
            self._lease = apply_merge_patch(self._lease, await request.json())
            version = int(self._lease["metadata"].get("resourceVersion") or 0) + 1
            self._lease["metadata"] = {**self._lease["metadata"], "resourceVersion": str(version)}
        return web.json_response(self._lease)


async def measure(trials: int, folder: Path) -> dict[str, Any]:
    """One start."""
    stand_in = StandIn(trials)
    runner = web.AppRunner(stand_in.app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    named = {"name": "x", "cluster": {"server": url}, "user": {"token": "x"}, "context": {"cluster": "x", "user": "x"}}
    config = {"apiVersion": "v1", "kind": "Config", "clusters": [named], "users": [named], "contexts": [named]}
    kubeconfig = folder / "kubeconfig"
    kubeconfig.write_text(json.dumps({**config, "current-context": "x"}))
    with OperatorProcess(kubeconfig, NAMESPACE, folder=folder) as operator:
        began = time.monotonic()
        ready = 0.0
        while (looked := await asyncio.to_thread(operator.metric, "modelpress_reconcile_total")) < trials + 1:
            await asyncio.sleep(0.5)
            if not ready and (await asyncio.to_thread(operator.get, "/readyz"))[0] == 200:
                ready = time.monotonic() - began
            if time.monotonic() - began > LIMIT_SECONDS or not operator.running:
                operator.kill()
                raise SystemExit(f"not done: {looked:g} objects were looked at\n{operator.tail()}")
        seconds = time.monotonic() - began
        await asyncio.sleep(2)
        now, used = resident(operator.pid), usage(operator.pid)
        unchanged = await asyncio.to_thread(operator.metric, "modelpress_reconcile_total", result="unchanged")
        await asyncio.to_thread(operator.stop)
    await runner.cleanup()
    return {
        "trials": trials,
        "readySeconds": round(ready, 1),
        "seconds": round(seconds, 1),
        "unchanged": unchanged,
        "writes": len(stand_in.writes),
        "rssMiB": now,
        "peakRssMiB": used["rssMiB"],
        "cpuSeconds": used["cpuSeconds"],
    }


def resident(process: int) -> float:
    """Resident memory of a process in MiB."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    return round(int(status["VmRSS"].split()[0]) / 1024, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--output", type=Path, help="file that gets the figures as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="modelpress-bench-") as folder:
        text = json.dumps(asyncio.run(measure(arguments.trials, Path(folder))), indent=2)
    print(text)
    if arguments.output is not None:
        arguments.output.write_text(text + "\n")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
