"""A local controller without processes and without waiting: simulated Jobs in an event loop whose time is virtual.

Everything else is real: the reconcile core, the search, the cluster, the journal on disk.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import heapq
import json
import selectors
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelpress.api.load import load_dict
from modelpress.api.v1alpha1 import CompressionSweep
from modelpress.local.cluster import Change, JobRecord, LocalCluster, Root
from modelpress.local.controller import LocalController
from modelpress.local.plan import open_state, plan_run
from modelpress.local.progress import ProgressReader
from modelpress.local.sources import Document
from modelpress.result import RunResult
from modelpress.search import strategy_for

EPOCH = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
NO_PROCESS = 2**22 + 1  # above the largest id that Linux gives
BASELINE = {"default": 1.0, "macs": 1000.0}


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Jumps to the next timer instead of waiting for it."""

    def __init__(self, start: float) -> None:
        selector = selectors.SelectSelector()
        self._now = start
        real = selector.select

        def select(timeout: float | None = None) -> list[Any]:
            if timeout is None:
                raise AssertionError("nothing will ever happen again")
            ready = real(0)
            if not ready and timeout > 0:
                # Reach the timer itself: adding the timeout may round to just before it.
                self._now = max(self._now + timeout, self._next_timer())
            return ready

        selector.select = select  # type: ignore[method-assign]
        super().__init__(selector)

    def _next_timer(self) -> float:
        timers = [handle.when() for handle in self._scheduled if not handle.cancelled()]  # type: ignore[attr-defined]
        return heapq.nsmallest(1, timers)[0] if timers else 0.0

    def time(self) -> float:
        """Seconds of virtual time."""
        return self._now


@dataclass
class World:
    """What outlives a controller: the clock, and the store with its manifests."""

    folder: Path
    now: float = 0.0
    manifests: dict[str, RunResult] = field(default_factory=dict)  # by trial name
    results: dict[str, RunResult] = field(default_factory=dict)  # by Job uid: the result file
    started: Counter[str] = field(default_factory=Counter)  # trial runs that really worked, by name
    most_at_once: int = 0
    recovered: Callable[[float], float] = lambda sparsity: 1 - sparsity / 10  # the score behind a second stage
    curve: Callable[[str], list[float]] = lambda name: []  # scores of a trial on the way, one a second
    wasted: list[str] = field(default_factory=list)  # trials that ran again though their result was there

    def run(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run until done, in virtual time."""
        loop = VirtualTimeLoop(self.now)
        try:
            loop.run_until_complete(work())
        finally:
            self.now = loop.time()
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.close()

    def clock(self) -> dt.datetime:
        """The time of day."""
        return EPOCH + dt.timedelta(seconds=asyncio.get_running_loop().time())


class SimulatedJobs:
    """Stands in for JobProcesses: a Job starts after 1 s, works for some seconds, leaves its result."""

    def __init__(self, world: World, cluster: LocalCluster, exits: dict[str, list[int]] | None = None) -> None:
        self.world, self.cluster, self.exits = world, cluster, exits or {}
        self.changed = asyncio.Event()
        self.failure: BaseException | None = None
        self._running: dict[str, asyncio.Task[None]] = {}
        self._readers: dict[str, ProgressReader] = {}
        cluster.watch(self._on_change)

    @property
    def live(self) -> int:
        """Processes that run."""
        return len(self._running)

    def start_all(self) -> None:
        """Judge what an earlier controller left, as JobProcesses does."""
        for record in list(self.cluster.jobs):
            if record.state == "running":
                self._reap(record)
            elif record.deleting:
                self.cluster.remove_job(record.name, record.uid)
            elif record.state == "pending":
                self._start(record)

    def terminate_all(self) -> None:
        """All of them end at once."""
        for record in list(self.cluster.jobs):
            if record.uid in self._running:
                self._end(record, "terminated")

    def kill_all(self) -> None:
        """They are gone."""
        for task in self._running.values():
            task.cancel()
        self._running.clear()

    async def close(self) -> None:
        """Nothing is left behind."""
        self.kill_all()

    def reader(self, record: JobRecord) -> ProgressReader:
        """What follows the scores that a trial writes."""
        path = self.world.folder / f"progress-{record.uid}.jsonl"
        return self._readers.setdefault(record.uid, ProgressReader(path))

    async def _train(self, record: JobRecord) -> None:
        for step, value in enumerate(self.world.curve(record.owner_name), 1):
            await asyncio.sleep(1)
            with (self.world.folder / f"progress-{record.uid}.jsonl").open("a") as file:
                file.write(json.dumps({"stage": "finetune", "step": step, "total": 9, "value": value}) + "\n")

    def _on_change(self, change: Change) -> None:
        record = change.after
        if not isinstance(record, JobRecord):
            return
        if record.deleting:
            task = self._running.pop(record.uid, None)
            if task is not None:
                task.cancel()
            asyncio.get_running_loop().call_soon(self._forget, record)
        elif change.before is None:
            self._start(record)

    def _forget(self, record: JobRecord) -> None:
        self.cluster.remove_job(record.name, record.uid)
        self.changed.set()

    def _reap(self, record: JobRecord) -> None:
        if record.deleting:
            self.cluster.remove_job(record.name, record.uid)
            return
        result = self.world.results.get(record.uid)
        cause = None if result is not None and result.phase == "Succeeded" else "disrupted"
        self._conclude(record, cause)

    def _start(self, record: JobRecord) -> None:
        self._running[record.uid] = asyncio.get_running_loop().create_task(self._run(record))

    async def _run(self, record: JobRecord) -> None:
        try:
            await asyncio.sleep(1)
            self.cluster.update_job(
                record.name, record.uid, state="running", pid=NO_PROCESS, started_at=self.cluster.clock()
            )
            if record.purpose == "trial":
                self.world.started[record.owner_name] += 1
                if record.owner_name in self.world.manifests:
                    self.world.wasted.append(record.owner_name)
                running = sum(job.state == "running" and job.purpose == "trial" for job in self.cluster.jobs)
                self.world.most_at_once = max(self.world.most_at_once, running)
            if record.purpose == "trial":
                await self._train(record)
            await asyncio.sleep(2 + int(hashlib.sha256(record.name.encode()).hexdigest(), 16) % 5)
            codes = self.exits.get(record.owner_name, [])
            if record.purpose == "trial" and record.attempt <= len(codes):
                self._end(record, "invalid" if codes[record.attempt - 1] == 2 else "error")
                return
            self.world.results[record.uid] = self._work(record)
            self._end(record, None)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self.failure = error
            self._running.pop(record.uid, None)
            self.changed.set()

    def _end(self, record: JobRecord, cause: Any) -> None:
        task = self._running.pop(record.uid, None)
        if task is not None and task is not asyncio.current_task():
            task.cancel()
        self._conclude(record, cause)
        self.changed.set()

    def _conclude(self, record: JobRecord, cause: Any) -> None:
        result = self.world.results.get(record.uid)
        self.cluster.update_job(
            record.name,
            record.uid,
            state="failed" if cause else "succeeded",
            cause=cause,
            detail="it broke" if cause else None,
            message=result.to_message() if result else None,
            finished_at=self.cluster.clock(),
        )

    def _work(self, record: JobRecord) -> RunResult:
        done = {"phase": "Succeeded", "reason": "Committed", "baseline": BASELINE}
        if record.purpose == "prepare":
            return RunResult(**done)
        if record.purpose == "publish":
            return RunResult(**{**done, "manifest_digest": "b" * 64})
        if record.purpose == "collect":
            kept = self.world.manifests.get(record.owner_name)
            return kept or RunResult(phase="NotFound", reason="NotFound")
        trial = next(t for t in (*self.cluster.trials, self.cluster.root) if t.metadata.name == record.owner_name)
        sparsity = trial.spec.stages[0].prune.config_list[0].sparsity
        score = self.world.recovered(sparsity) if len(trial.spec.stages) > 1 else 1 - sparsity / 10
        compressed = {"default": round(score, 6), "macs": round(1000 * (1 - sparsity), 6)}
        digest = hashlib.sha256(json.dumps(compressed).encode()).hexdigest()
        result = RunResult(**done, compressed=compressed, manifest_digest=digest, smaller=True, portable=True)
        return self.world.manifests.setdefault(record.owner_name, result)


def job_dict(**spec: Any) -> dict[str, Any]:
    """A CompressionJob of one prune stage."""
    return {
        "apiVersion": "modelpress.dev/v1alpha1",
        "kind": "CompressionJob",
        "metadata": {"name": "one"},
        "spec": {
            "model": {"entrypoint": "digits:create"},
            "stages": [{"prune": {"configList": [{"opTypes": ["Conv2d"], "sparsity": 0.5}]}}],
            **spec,
        },
    }


def sweep_dict(trials: int = 4, parallelism: int = 2, **spec: Any) -> dict[str, Any]:
    """A sweep over the sparsity of one prune stage, by random search."""
    return {
        "apiVersion": "modelpress.dev/v1alpha1",
        "kind": "CompressionSweep",
        "metadata": {"name": "many"},
        "spec": {
            "template": {"spec": job_dict()["spec"]},
            "searchSpace": [
                {
                    "name": "sparsity",
                    "paths": ["/stages/0/prune/configList/0/sparsity"],
                    "float": {"min": 0.1, "max": 0.8},
                }
            ],
            "objectives": [{"metric": "default"}],
            "algorithm": {"name": "random", "seed": 7},
            "parallelism": parallelism,
            "maxTrials": trials,
            **spec,
        },
    }


def run_once(
    world: World,
    document: dict[str, Any],
    *,
    exits: dict[str, list[int]] | None = None,
    meanwhile: Callable[[LocalController], Any] | None = None,
) -> LocalCluster:
    """One controller from start to end, or to a crash: what `modelpress run` does, over simulated Jobs."""
    plan = plan_run(Document(load_dict(document), world.folder), cwd=world.folder)
    assert [problem for problem in plan.problems if problem.path != "spec.suspend"] == []
    obj, journal = open_state(plan, lambda text: None)
    cluster = LocalCluster(journal, world.clock)

    async def work() -> None:
        cluster.load(obj)
        jobs = SimulatedJobs(world, cluster, exits)
        strategy = strategy_for(cluster.root.spec) if isinstance(cluster.root, CompressionSweep) else None
        controller = LocalController(cluster, jobs, strategy=strategy)  # type: ignore[arg-type]
        if meanwhile is not None:
            meanwhile(controller)
        await controller.run()

    try:
        world.run(work)
    finally:
        journal.close()
    return cluster


def parameters(cluster: LocalCluster) -> dict[str, float]:
    """What each trial was given."""
    return {trial.metadata.name: trial.spec.stages[0].prune.config_list[0].sparsity for trial in cluster.trials}


def phases(cluster: LocalCluster) -> dict[str, str | None]:
    """How the root and each trial ended."""
    objects: tuple[Root, ...] = (cluster.root, *cluster.trials)
    return {obj.metadata.name: obj.status.phase for obj in objects}
