"""The operator's loop: changes of the cache -> work queue -> snapshot -> reconcile core -> actions.

The same loop as the local controller's, around the same core. Changes that need no answer, such as a runner's start or
one more running trial in a sweep's counters, wait a moment, so that several become one write.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import math
import random
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from modelpress.api.errors import SpecError
from modelpress.api.semantic import job_problems, sweep_problems
from modelpress.api.v1alpha1 import TERMINAL_PHASES, CompressionSweepSpec
from modelpress.api.v1alpha1 import reasons as r
from modelpress.reconcile import Plan, reconcile_job, reconcile_sweep
from modelpress.reconcile.conditions import Verdict, cut, merge, stamp, summary
from modelpress.search import SpaceError, strategy_for
from modelpress.trials import Strategy
from modelpress.workqueue import WorkQueue

from .cache import Cache
from .client import ClusterClient, ClusterError, ConflictError, NotFoundError, merge_patch
from .coalesce import FIRST_STATUS_SECONDS, defer_first_status
from .compact import UNREAD
from .execute import Executor, InvalidChildError, NameTakenError
from .failed_create import FailedCreateEvents
from .lease import LeaseLostError
from .logs import about
from .metrics import Metrics
from .observe import LOST_SECONDS
from .resources import (
    COMPRESSION_JOBS,
    COMPRESSION_SWEEPS,
    JOBS,
    PODS,
    Key,
    RawObject,
    Resource,
    controller_of,
    controller_uid,
    is_deleting,
    is_trial,
    meta_of,
)
from .snapshot import Problems, Snapshots

log = logging.getLogger(__name__)
# Seconds that a start waits to be reconciled, more for each other start that waits, and at most: a short run is then
# written down once, and a fifth of a second passes for each that is written down.
START_LAG, START_SHARE, START_LAG_MOST = 2.0, 0.2, 10.0
END_LAG = 0.05  # seconds that a sweep waits for further trials to end: at one time, one write
COUNT_LAG = 10.0  # seconds that a sweep's counters wait for something else that changes
COUNT_INTERVAL = 30.0  # least seconds between two writes of counters alone
BACKOFF = (0.25, 60.0)  # seconds after the first failure, and at most
CONFLICT_SECONDS = 0.1  # until a stale view is looked at again
NAME_SECONDS = 10.0  # until a name that somebody else has is looked at again
STOP_SECONDS = 10  # to finish what is under way
PARSED_AT_ONCE = 100
CRASHES = 5  # in a row, after which an object's status says so
SEARCH_THREADS = 2  # a sampler's suggestion may take seconds of CPU


@dataclass
class _Memory:
    """What is known of one object in one generation, worked out once."""

    generation: int
    problems: Problems  # with those that are found only when a child is to be created
    strategy: Strategy | None = None
    since: float = field(default_factory=time.monotonic)


class Controller:
    """Reconciles while it runs; `workers` objects at a time. `lost_after`: see observe.observed_job."""

    def __init__(
        self,
        client: ClusterClient,
        cache: Cache,
        executor: Executor,
        metrics: Metrics,
        *,
        clock: Callable[[], dt.datetime] | None = None,
        lost_after: float = LOST_SECONDS,
    ) -> None:
        self._client = client
        self._cache = cache
        self._executor = executor
        self._metrics = metrics
        self._clock = clock or (lambda: dt.datetime.now(dt.UTC))
        self._failed_creates = FailedCreateEvents(client)
        self._snapshots = Snapshots(cache, self._failed_creates, lost_after, executor.made)
        self._memories: dict[str, _Memory] = {}
        self._failures: dict[Key, int] = {}
        self._crashes: dict[Key, int] = {}  # in a row
        self._starting: set[Key] = set()  # to be looked at for a start
        self._counts: dict[Key, float] = {}  # when a sweep is to be looked at for its counters alone
        self._queue: WorkQueue[Key] = WorkQueue()
        self._threads = ThreadPoolExecutor(SEARCH_THREADS, "search")
        self._busy: set[asyncio.Task[Any]] = set()
        self._active = False
        cache.listener = self._on_change
        metrics.queue_depth.set_function(lambda: self._queue.depth)
        metrics.watch_phases(cache.phases)

    async def run(self, workers: int) -> None:
        """Reconcile everything once, then what changes, until cancelled; what is under way is finished first."""
        self._active = True
        for resource in (COMPRESSION_SWEEPS, COMPRESSION_JOBS):
            for obj in self._cache.all(resource):
                self._queue.add(_key(resource, obj))
        tasks = [asyncio.create_task(self._work(), name=f"worker-{number}") for number in range(workers)]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._active = False
            self._queue.close()
            for task in tasks:
                if task not in self._busy:
                    task.cancel()
            _, late = await asyncio.wait(tasks, timeout=STOP_SECONDS)
            for task in late:
                task.cancel()
            self._threads.shutdown(wait=False, cancel_futures=True)
        for task in tasks:
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                raise error

    async def _work(self) -> None:
        me = asyncio.current_task()
        assert me is not None
        while self._active:
            key, waited = await self._queue.take()
            self._busy.add(me)
            self._metrics.queue_seconds.observe(waited)
            try:
                await self._process(key)
            finally:
                self._busy.discard(me)
                self._queue.done(key)

    # What changed, and who must look ---------------------------------------------------------------------------------

    def _on_change(self, resource: Resource, before: RawObject | None, after: RawObject | None, ours: bool) -> None:
        obj = after or before
        assert obj is not None
        if after is None and resource in (COMPRESSION_JOBS, COMPRESSION_SWEEPS):
            self._forget(resource, obj)
        if after is None and resource is JOBS:
            self._failed_creates.forget(meta_of(obj).get("uid") or "")
        if not self._active:
            return
        if resource is COMPRESSION_SWEEPS:
            self._sweep_changed(before, after, ours)
        elif resource is COMPRESSION_JOBS:
            self._job_changed(before, after, ours)
        elif resource is JOBS:
            self._child_changed(obj, before, after, ours)
        elif resource is PODS:
            self._pod_changed(obj, before, after)

    def _sweep_changed(self, before: RawObject | None, after: RawObject | None, ours: bool) -> None:
        if after is None:
            return
        if not ours:
            self._queue.add(_key(COMPRESSION_SWEEPS, after))
        if before is None or _spec(before).get("suspend") != _spec(after).get("suspend"):
            for trial in self._cache.owned(meta_of(after)["uid"], COMPRESSION_JOBS):
                if _phase(trial) not in TERMINAL_PHASES:
                    self._queue.add(_key(COMPRESSION_JOBS, trial))

    def _job_changed(self, before: RawObject | None, after: RawObject | None, ours: bool) -> None:
        obj = after or before
        assert obj is not None
        if after is not None and (before is None or not ours):
            self._queue.add(_key(COMPRESSION_JOBS, after))
        sweep = self._owner(obj)
        if sweep is None:
            return
        urgent = after is None or is_deleting(after) or (before is not None and _phase(after) in TERMINAL_PHASES)
        if urgent:
            self._queue.add_after(sweep, END_LAG)
        elif before is not None and _intermediate(before) != _intermediate(after):
            self._queue.add_after(sweep, START_LAG)
        elif before is None or _phase(before) != _phase(after):
            self._count_soon(sweep)

    def _child_changed(self, obj: RawObject, before: RawObject | None, after: RawObject | None, ours: bool) -> None:
        owner = self._owner(obj)
        if owner is None or (ours and after is not None):
            return
        if after is None or is_deleting(after) or _ended(after):
            self._queue.add(owner)
        else:
            self._wait_soon(owner)

    def _pod_changed(self, obj: RawObject, before: RawObject | None, after: RawObject | None) -> None:
        ref = controller_of(obj)
        if ref is None:
            return
        job = self._cache.get(JOBS, meta_of(obj)["namespace"], ref["name"])
        if job is None or meta_of(job).get("uid") != ref.get("uid"):
            return
        owner = self._owner(job)
        if owner is None:
            return
        if _ended(job):  # the Job's end was told first; this may be the message that it waits for
            self._queue.add(owner)
        elif _phase(obj) in (None, "Pending"):
            self._wait_soon(owner)
        else:
            self._start_soon(owner)

    def _wait_soon(self, key: Key) -> None:
        """Look at an object whose runner waits; a trial's says so only if nothing else comes (coalesce.py)."""
        raw = self._cache.get(*key)
        self._queue.add_after(key, FIRST_STATUS_SECONDS if raw is not None and is_trial(raw) else START_LAG)

    def _start_soon(self, key: Key) -> None:
        """Look at an object whose runner starts, the later the more of them do; its end comes at once."""
        self._starting.add(key)
        self._queue.add_after(key, min(START_LAG + START_SHARE * (len(self._starting) - 1), START_LAG_MOST))

    def _count_soon(self, sweep: Key) -> None:
        """Look at a sweep whose counters alone have changed, unless something else makes it look sooner."""
        now = time.monotonic()
        due = self._counts.get(sweep, -math.inf)
        if due <= now:
            due = self._counts[sweep] = max(now + COUNT_LAG, due + COUNT_INTERVAL)
        self._queue.add_after(sweep, due - now)

    def _owner(self, obj: RawObject) -> Key | None:
        ref = controller_of(obj)
        if ref is None:
            return None
        resource = {one.kind: one for one in (COMPRESSION_JOBS, COMPRESSION_SWEEPS)}.get(ref.get("kind", ""))
        return None if resource is None else Key(resource, meta_of(obj)["namespace"], ref["name"])

    def _forget(self, resource: Resource, obj: RawObject) -> None:
        uid = meta_of(obj).get("uid") or ""
        self._memories.pop(uid, None)
        self._executor.made.pop(uid, None)
        self._snapshots.forget(uid)
        self._failures.pop(_key(resource, obj), None)
        self._crashes.pop(_key(resource, obj), None)
        self._counts.pop(_key(resource, obj), None)

    # One object ------------------------------------------------------------------------------------------------------

    async def _process(self, key: Key) -> None:
        self._starting.discard(key)
        raw = self._cache.get(*key)
        if raw is None or is_deleting(raw):
            return
        meta, controller = meta_of(raw), key.resource.kind.lower()
        what = {"controller": controller, "namespace": key.namespace, "name": key.name, "uid": meta.get("uid")}
        labels = meta.get("labels") or {}
        more = {"generation": meta.get("generation"), "trial": labels.get("modelpress.dev/trial")}
        with about(**what, **more, reconcile_id=uuid.uuid4().hex[:12]):
            began = time.monotonic()
            try:
                result = await self._reconcile(key, raw)
            except LeaseLostError:
                raise
            except Exception as error:
                result = await self._crashed(key, raw, error)
            else:
                self._crashes.pop(key, None)
            self._metrics.reconcile_seconds.labels(controller).observe(time.monotonic() - began)
            self._metrics.reconciles.labels(controller, result).inc()

    async def _reconcile(self, key: Key, raw: RawObject) -> str:
        """Decide and do. What goes wrong decides when to look again; only a lost Lease ends the process."""
        if UNREAD in raw:
            return await self._not_understood(key, raw, raw[UNREAD]["message"], raw[UNREAD]["reason"])
        try:
            look = await self._ask_why(raw)
            plan = await self._plan(key, raw)
            if plan is None:
                return "skipped"
            await self._executor.execute(key, raw, plan)
        except LeaseLostError:
            raise
        except SpecError as error:
            text = f"This version of the operator does not understand the object: {error}".replace("\n", "; ")
            return await self._not_understood(key, raw, text, r.INVALID_SPEC)
        except InvalidChildError as error:
            log.warning("%s", error)
            memory = self._memories[meta_of(raw)["uid"]]
            memory.problems = memory.problems.also(str(error), error.reason)
            self._queue.add(key)
            return "unfit"
        except NameTakenError as error:
            log.info("%s", error)
            if error.foreign:
                self._queue.add(key)
            self._later(key)
            return "name_taken"
        except ConflictError as error:
            log.debug("observed too early: %s", error)
            self._queue.add_after(key, CONFLICT_SECONDS * (1 + random.random()))
            return "conflict"
        except ClusterError as error:
            wait = self._later(key, error.retry_after)
            log.warning("%s; again in %.1f s", error, wait)
            return "error"
        self._failures.pop(key, None)
        if plan.actions:
            log.info("%s", ", ".join(type(action).__name__ for action in plan.actions))
        for seconds in (plan.requeue_after, self._snapshots.recheck_after(raw, self._clock()), look):
            if seconds is not None:
                self._queue.add_after(key, seconds)
        await self._recheck_name_conflicts(key, raw)
        return "acted" if plan.actions else "unchanged"

    async def _plan(self, key: Key, raw: RawObject) -> Plan | None:
        now = self._clock()
        if key.resource is COMPRESSION_JOBS:
            memory = self._memory(raw)
            if memory is None:
                job = self._snapshots.job(raw)
                memory = self._remember(raw, Problems.of(job_problems(job.spec, cluster=True)))
            observed = self._snapshots.observe_job(raw, memory.problems, now)
            if observed is None:
                return None
            return defer_first_status(raw, reconcile_job(observed, now), time.monotonic() - memory.since)
        sweep = self._snapshots.sweep(raw)
        memory = self._memory(raw)
        loop = asyncio.get_running_loop()
        if memory is None:
            problems, strategy = await loop.run_in_executor(self._threads, _study, sweep.spec)
            memory = self._remember(raw, problems, strategy)
        for number, trial in enumerate(self._cache.owned(meta_of(raw)["uid"], COMPRESSION_JOBS)):
            self._snapshots.trial(trial, raw)  # after a start none is parsed yet; 10,000 at once would stall the Lease
            if number % PARSED_AT_ONCE == PARSED_AT_ONCE - 1:
                await asyncio.sleep(0)
        seen = self._snapshots.observe_sweep(raw, memory.problems, now)
        strategy = memory.strategy or _NoSearch()
        return await loop.run_in_executor(self._threads, reconcile_sweep, seen, now, strategy)

    async def _ask_why(self, raw: RawObject) -> float | None:
        """Ask why Jobs of this object have no pods, before anything is decided; seconds until the next look."""
        waits = [await self._failed_creates.look(job) for job in self._snapshots.jobs_missing_pods(raw)]
        return min(waits, default=None)

    def _memory(self, raw: RawObject) -> _Memory | None:
        memory = self._memories.get(meta_of(raw)["uid"])
        return memory if memory is not None and memory.generation == meta_of(raw).get("generation") else None

    def _remember(self, raw: RawObject, problems: Problems, strategy: Strategy | None = None) -> _Memory:
        memory = _Memory(int(meta_of(raw).get("generation") or 0), problems, strategy)
        self._memories[meta_of(raw)["uid"]] = memory
        return memory

    def _later(self, key: Key, least: float | None = None) -> float:
        """Look again after a wait that doubles with each failure in a row."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        doubled: float = min(BACKOFF[1], BACKOFF[0] * 2.0 ** min(failures - 1, 20))
        wait = max(doubled * (0.75 + random.random() / 2), least or 0.0)
        self._queue.add_after(key, wait)
        return wait

    async def _recheck_name_conflicts(self, key: Key, raw: RawObject) -> None:
        """Whether somebody else's object still has a name that this one wants; nothing else would tell."""
        for resource, namespace, name in self._cache.name_conflicts:
            if namespace != key.namespace or not name.startswith(f"{key.name}-"):
                continue
            try:
                other = await self._client.get(resource, namespace, name)
            except NotFoundError:
                self._cache.note_name_conflict(resource, namespace, name, None)
                self._queue.add(key)
                return
            except ClusterError as error:
                log.warning("%s", error)
            else:
                if controller_uid(other) == meta_of(raw).get("uid"):
                    self._cache.put(resource, other)
            self._queue.add_after(key, NAME_SECONDS)

    async def _crashed(self, key: Key, raw: RawObject, error: Exception) -> str:
        """An error of ours. After several in a row the object's status says so, until one goes well."""
        wait = self._later(key)
        log.error("reconciling failed; again in %.1f s", wait, exc_info=error)
        crashes = self._crashes[key] = self._crashes.get(key, 0) + 1
        if crashes >= CRASHES:
            text = f"The operator has failed on this object {CRASHES} times in a row: {type(error).__name__}."
            try:
                await self._stall(key, raw, r.OPERATOR_FAILED, f"{text} Its log says more; it goes on trying.")
            except LeaseLostError:
                raise
            except Exception:
                log.exception("that could not be written into its status")
        return "crash"

    async def _not_understood(self, key: Key, raw: RawObject, text: str, reason: str) -> str:
        """Say so in its status: nobody checked it, or another version of modelpress wrote or accepted it."""
        log.warning("%s", cut(text))
        try:
            await self._stall(key, raw, reason, text)
        except ConflictError as error:
            log.debug("observed too early: %s", error)
            self._queue.add_after(key, CONFLICT_SECONDS * (1 + random.random()))
        except ClusterError as error:
            log.warning("%s; again in %.1f s", error, self._later(key))
        return "not_understood"

    async def _stall(self, key: Key, raw: RawObject, reason: str, text: str) -> None:
        """Write the condition Stalled: a person must act. A finished object keeps its status."""
        old: dict[str, Any] = dict(raw.get("status") or {})
        if old.get("phase") in TERMINAL_PHASES:
            return
        generation = int(meta_of(raw).get("generation") or 0)
        verdict = Verdict("Pending", reason, cut(text), stalled=True)
        known = {item.get("type"): item for item in old.get("conditions") or ()}
        conditions = []
        for new in merge([], summary(verdict, None, []), stamp(self._clock()), generation):
            was = known.get(new.type) or {}
            item = new.to_dict()
            if was.get("status") == new.status:
                item["lastTransitionTime"] = was.get("lastTransitionTime")
            conditions.append(item)
        status = {"phase": "Pending", **old, "conditions": conditions, "observedGeneration": generation}
        patch = merge_patch(old, status)
        if not patch:
            return
        self._executor.check()
        version = str(meta_of(raw)["resourceVersion"])
        answer = await self._client.patch_status(key.resource, key.namespace, key.name, patch, version)
        self._cache.put(key.resource, answer, ours=True)


class _NoSearch:
    """Stands in where a sweep is refused, so that nothing is ever asked of it but the ranking of old trials."""

    def suggest(self, *_: Any) -> Any:
        raise AssertionError("a refused sweep has no search")

    def answered(self, *_: Any) -> Any:
        raise AssertionError("a refused sweep has no search")

    def ranking(self, trials: Any) -> tuple[None, list[int]]:
        return None, []

    def promoted(self, trials: Any) -> list[int]:
        return []

    def promotion(self, *_: Any) -> None:
        return None

    def rungs(self, *_: Any) -> None:
        return None

    def stopped_early(self, trials: Any) -> list[int]:
        return []


def _study(spec: CompressionSweepSpec) -> tuple[Problems, Strategy | None]:
    problems = Problems.of(sweep_problems(spec, cluster=True))
    if problems.texts:
        return problems, None
    try:
        return problems, strategy_for(spec)
    except SpaceError as error:
        return problems.also(str(error), r.INVALID_SPEC), None


def _key(resource: Resource, obj: RawObject) -> Key:
    return Key(resource, meta_of(obj)["namespace"], meta_of(obj)["name"])


def _spec(obj: RawObject) -> dict[str, Any]:
    return obj.get("spec") or {}


def _phase(obj: RawObject | None) -> str | None:
    return ((obj or {}).get("status") or {}).get("phase")


def _intermediate(obj: RawObject | None) -> Any:
    return ((obj or {}).get("status") or {}).get("intermediate")


def _ended(job: RawObject) -> bool:
    conditions = (job.get("status") or {}).get("conditions") or ()
    return any(item.get("type") in ("Complete", "Failed") and item.get("status") == "True" for item in conditions)
