"""The local controller: watches the in-memory cluster, calls the reconcile core, executes its plans.

    change -> work queue -> observed = snapshot(cluster, key) -> reconcile(observed, now) -> actions, in order

The same loop as the operator's, around the same core.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import uuid
from collections.abc import Callable
from typing import Protocol

from modelpress.api.semantic import job_problems
from modelpress.api.v1alpha1 import TERMINAL_PHASES, CompressionJob, CompressionSweep, Point, Progress
from modelpress.reconcile import (
    Action,
    AdmitTrial,
    CreateJob,
    CreateTrial,
    DeleteJob,
    EmitEvent,
    JobObserved,
    OwnerState,
    PatchStatus,
    Plan,
    StopTrial,
    SweepObserved,
    keeps_records,
    reconcile_job,
    reconcile_sweep,
)
from modelpress.reconcile.conditions import stamp
from modelpress.trials import Strategy
from modelpress.workqueue import WorkQueue

from .cluster import Change, JobRecord, Key, LocalCluster, Root
from .errors import AlreadyExistsError, ConflictError, LocalError
from .jobs import JobProcesses

log = logging.getLogger(__name__)
CONFLICT_SECONDS = 1.0  # until a name that is taken is tried again
PROGRESS_SECONDS = 2.0  # between two looks at what runners say of their progress
MAX_STAGE = 1024  # characters of status.progress.stage


class Observer(Protocol):
    """Callbacks for displays of a run. Called in the event loop, so each must be quick."""

    def changed(self, change: Change) -> None:
        """An object or a child Job was created, has changed or is gone."""

    def event(self, key: Key, event: EmitEvent) -> None:
        """The core emitted an Event on an object."""


class LocalController:
    """Runs one root object to its end. `strategy` is the search behind a sweep."""

    def __init__(
        self,
        cluster: LocalCluster,
        jobs: JobProcesses,
        *,
        code_path: str | None = None,
        base_path: str | None = None,
        strategy: Strategy | None = None,
        problems: tuple[str, ...] = (),
        observer: Observer | None = None,
        clock: Callable[[], dt.datetime] | None = None,
    ) -> None:
        self.cluster = cluster
        self.jobs = jobs
        self._code_path, self._base_path = code_path, base_path
        self._strategy = strategy
        self._problems = problems
        self._trial_problems: dict[str, tuple[str, ...]] = {}
        self._observer = observer
        self._clock = clock or cluster.clock
        self._queue: WorkQueue[Key] = WorkQueue()
        self._stopping = False
        self._killed = False
        self._working = asyncio.Event()  # some Job runs
        cluster.watch(self._on_change)

    # From outside ----------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Stop cleanly: suspend the root object, so that every process is told to write its checkpoint and end."""
        if self._stopping:
            return
        self._stopping = True
        root = self.cluster.root
        if not is_finished(root):
            self.cluster.update_spec(root.spec.model_copy(update={"suspend": True}))
        self._queue.wake.set()

    def kill(self) -> None:
        """Stop at once: kill every process; the journal knows where to go on."""
        self._stopping = self._killed = True
        self.jobs.kill_all()
        self._queue.wake.set()

    @property
    def stopping(self) -> bool:
        return self._stopping

    async def run(self) -> None:
        """Until the root object is finished, or stop() was called and every process has ended.

        Raises:
            LocalError: nothing is left to do though the object is not finished, or the journal cannot be written.
        """
        self.jobs.changed = self._queue.wake
        looking = asyncio.get_running_loop().create_task(self._follow())
        looking.add_done_callback(lambda _: self._queue.wake.set())
        try:
            self.jobs.start_all()
            self._working.set()
            self._queue.add(self.cluster.root_key)
            for trial in self.cluster.trials:
                self._queue.add(Key("CompressionJob", trial.metadata.name))
            while not self._killed:
                await self._drain()
                if self.jobs.failure is not None:
                    raise self.jobs.failure
                if looking.done():
                    looking.result()
                if self._over():
                    break
                await self._queue.wake.wait()
        finally:
            looking.cancel()
            self._queue.close()
            await self.jobs.close()

    async def _follow(self) -> None:
        """Tells scores of running jobs, and what stage they are in, as long as it runs."""
        while True:
            await self._working.wait()
            await asyncio.sleep(PROGRESS_SECONDS)
            running = [item for item in self.cluster.jobs if item.state == "running"]
            if not running:
                self._working.clear()
            for record in running:
                self._tell_progress(record)

    def _tell_progress(self, record: JobRecord) -> None:
        """Status follows where there are new scores, or another stage."""
        reader = self.jobs.reader(record)
        job = self.cluster.get(record.owner) if record.purpose == "trial" else None
        if not isinstance(job, CompressionJob) or not reader.look() or reader.latest is None:
            return
        said, points = reader.latest, [Point.model_validate(point) for point in reader.scores.points()]
        old = job.status.progress
        if old is not None and said.stage == old.stage and points == (job.status.intermediate or []):
            return
        progress = Progress(
            stage=said.stage[:MAX_STAGE],
            step=max(0, said.step or 0),
            total=max(0, said.total or 0),
            time=stamp(self._clock()),
        )
        self.cluster.tell_progress(job.metadata.name, progress, points)

    def _over(self) -> bool:
        finished = is_finished(self.cluster.root)
        if finished or self._stopping:
            if self.jobs.live == 0:
                return True
            self.jobs.terminate_all()  # those that the core has no reason to delete
            return False
        if self.jobs.live == 0 and self._queue.waiting == 0 and not self._queue.wake.is_set():
            raise LocalError(f"nothing is left to do, but {describe_stall(self.cluster.root)}")
        return False

    async def _drain(self) -> None:
        while not self._killed and (key := self._queue.pop()) is not None:
            self._reconcile(key)
            await asyncio.sleep(0)  # signals, timers and the display have their turn

    # The loop's body -------------------------------------------------------------------------------------------------

    def _on_change(self, change: Change) -> None:
        self._queue.add(change.key)
        if isinstance(change.after, JobRecord) and change.after.state == "running":
            self._working.set()
        if isinstance(change.after, CompressionJob):
            owner = change.after.metadata.controller_uid()
            if owner is not None and owner == self.cluster.root.metadata.uid:
                self._queue.add(self.cluster.root_key)
        elif isinstance(change.after, CompressionSweep):
            before = change.before
            if isinstance(before, CompressionSweep) and before.spec.suspend != change.after.spec.suspend:
                for trial in self.cluster.trials:
                    if trial.status.phase not in TERMINAL_PHASES:
                        self._queue.add(Key("CompressionJob", trial.metadata.name))
        if self._observer is not None:
            self._observer.changed(change)

    def _reconcile(self, key: Key) -> None:
        obj = self.cluster.get(key)
        if isinstance(obj, CompressionJob) and obj.status.phase not in TERMINAL_PHASES:
            for record in self.cluster.jobs_of(obj.metadata.uid or "")[-1:]:
                self._tell_progress(record)  # a job that has ended keeps its last scores, however short it was
            obj = self.cluster.get(key)
        if obj is None:
            return
        plan = self._plan(obj)
        try:
            self._execute_plan(obj, plan)
        except ConflictError:
            self._queue.add(key)
        except AlreadyExistsError as error:
            log.info("%s %s: %s", key.kind, key.name, error)
            self._queue.add_after(key, CONFLICT_SECONDS)
        else:
            if plan.requeue_after is not None:
                self._queue.add_after(key, plan.requeue_after)

    def _execute_plan(self, obj: Root, plan: Plan) -> None:
        """In order, stopping at the first action that fails. A crash keeps all of it or none: no trial gets lost."""
        failed: Exception | None = None
        with self.cluster.together():
            try:
                for action in plan.actions:
                    self._execute_action(obj, action)
            except (ConflictError, AlreadyExistsError) as error:
                failed = error
        if failed is not None:
            raise failed

    def _plan(self, obj: Root) -> Plan:
        children = tuple(record.observed() for record in self.cluster.jobs_of(obj.metadata.uid or ""))
        now = self._clock()
        if isinstance(obj, CompressionSweep):
            assert self._strategy is not None, "a sweep needs its strategy"
            sweep = SweepObserved(obj, self.cluster.trials, children, self._problems)
            return reconcile_sweep(sweep, now, self._strategy)
        return reconcile_job(JobObserved(obj, self._owner(obj), children, self._problems_of(obj)), now)

    def _owner(self, job: CompressionJob) -> OwnerState | None:
        root = self.cluster.root
        if not isinstance(root, CompressionSweep) or root.metadata.uid is None:
            return None
        metrics = tuple(objective.metric for objective in root.spec.objectives)
        records = keeps_records(root.status.trial_records, root.status.created)
        return OwnerState(root.metadata.uid, root.metadata.name, root.spec.suspend, metrics, records)

    def _problems_of(self, job: CompressionJob) -> tuple[str, ...]:
        if job is self.cluster.root:
            return self._problems
        name = job.metadata.name
        if name not in self._trial_problems:  # once: a trial's spec never changes
            self._trial_problems[name] = tuple(str(problem) for problem in job_problems(job.spec))
        return self._trial_problems[name]

    def _execute_action(self, obj: Root, action: Action) -> None:
        cluster, meta = self.cluster, obj.metadata
        match action:
            case CreateJob():
                self._create_job(obj, action)
            case DeleteJob(name=name, uid=uid):
                cluster.update_job(name, uid, deleting=True)
            case CreateTrial(job=job):
                cluster.create_trial(job)
            case AdmitTrial(name=name, uid=uid, record=record):
                cluster.admit_trial(name, uid, record)
            case StopTrial(name=name, uid=uid, reason=reason):
                cluster.stop_trial(name, uid, reason)
            case PatchStatus(status=status):
                cluster.patch_status(Key(obj.kind, meta.name), status, meta.resource_version)
            case EmitEvent(type=type_, reason=reason, message=message):
                at = self._clock().isoformat()
                cluster.journal.append_event(
                    {
                        "time": at,
                        "kind": obj.kind,
                        "name": meta.name,
                        "type": type_,
                        "reason": reason,
                        "message": message,
                    }
                )
                if self._observer is not None:
                    self._observer.event(Key(obj.kind, meta.name), action)

    def _create_job(self, obj: Root, action: CreateJob) -> None:
        there = self.cluster.job(action.name)
        uid = str(uuid.uuid4())
        record = JobRecord(
            name=action.name,
            uid=uid,
            owner_kind=obj.kind,
            owner_name=obj.metadata.name,
            owner_uid=obj.metadata.uid or "",
            purpose=action.purpose,
            attempt=action.attempt,
        )
        if there is None:
            request = action.request.model_copy(
                update={"run_uid": uid, "code_path": self._code_path, "base_path": self._base_path}
            )
            folder = self.cluster.journal.run_folder(action.name, uid).relative_to(self.cluster.journal.root)
            self.cluster.journal.write_text(f"{folder}/request.json", request.to_json())
        self.cluster.create_job(record)


def is_finished(obj: Root) -> bool:
    """Whether the object, in its present generation, has come to its end."""
    status = obj.status
    return status.phase in TERMINAL_PHASES and status.observed_generation >= (obj.metadata.generation or 0)


def describe_stall(obj: Root) -> str:
    """Why an object that nothing happens to any more is not finished, as far as its conditions say."""
    for wanted, status in (("Stalled", "True"), ("Suspended", "True"), ("Reconciling", "True"), ("Ready", "False")):
        for condition in obj.status.conditions:
            if condition.type == wanted and condition.status == status:
                return f"{obj.kind} {obj.metadata.name} is {wanted} ({condition.reason}): {condition.message}"
    return f"{obj.kind} {obj.metadata.name} is {obj.status.phase or 'not accepted'}"
