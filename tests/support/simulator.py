"""A cluster in memory around the reconcile core: objects with uid and resourceVersion, child Jobs whose ends are chosen
by the test, two watches that lag, an operator that loses the rest of a plan, and a store that remembers manifests.

What the core relies on, and no more: a watch delivers in order and within its lag, a status patch is refused when the
object has changed, one name is one object, and a runner that finds its manifest reports it and does no work.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from reconcile_objects import NOW, failure, not_found, success

from modelpress.api.v1alpha1 import TERMINAL_PHASES, CompressionJob, CompressionSweep, Stop
from modelpress.reconcile import (
    AdmitTrial,
    CreateJob,
    CreateTrial,
    DeleteJob,
    EmitEvent,
    JobObserved,
    ObservedJob,
    OwnerState,
    PatchStatus,
    Plan,
    StopTrial,
    SweepObserved,
    keeps_records,
    reconcile_job,
    reconcile_sweep,
)
from modelpress.request import RunRequest
from modelpress.results.suggest import answer
from modelpress.trials import HISTORY_ANNOTATION, PARAMETERS_ANNOTATION, History, Strategy

LAG = 9.0  # seconds; what a watch has to tell is never older
Key = tuple[str, str]
Object = CompressionJob | CompressionSweep

# Ends of a runner. The first group is told in a message or by the cause alone, the second leaves the store to ask.
TOLD = ("done", "error", "oom", "terminated", "invalid")
SILENT = ("silent", "silent-empty", "error-silent", "evicted", "evicted-committed", "abandoned")


@dataclass
class SimJob:
    """A child Job as it really is."""

    seen: ObservedJob
    request: RunRequest
    idle: bool = False  # it found the manifest and only reports it
    last_event: str = ""


@dataclass
class Cluster:
    """The truth, and the operator's two views of it."""

    strategy: Strategy | None = None
    now: dt.datetime = NOW
    lagging: bool = False
    objects: dict[Key, Object] = field(default_factory=dict)
    jobs: dict[str, SimJob] = field(default_factory=dict)
    object_view: dict[Key, Object] = field(default_factory=dict)
    job_view: dict[str, ObservedJob] = field(default_factory=dict)
    object_news: deque[tuple[dt.datetime, Key, Object | None]] = field(default_factory=deque)
    job_news: deque[tuple[dt.datetime, str, ObservedJob | None]] = field(default_factory=deque)
    manifests: dict[str, str] = field(default_factory=dict)  # prefix -> name of the Job that committed
    excused: set[str] = field(default_factory=set)  # prefixes whose committed runner could not be heard or asked after
    counted: Counter[str] = field(default_factory=Counter)  # (owner, what really happened)
    births: dict[str, str] = field(default_factory=dict)  # trial -> its parameters and history, for good
    finished: dict[Key, Any] = field(default_factory=dict)  # status of what reached a terminal phase
    problems: list[str] = field(default_factory=list)  # invariants that broke while the world moved
    stalled: list[tuple[Object, object]] = field(default_factory=list)
    late: set[str] = field(default_factory=set)  # uids of jobs for which a former leader created a Job
    writes: Counter[str] = field(default_factory=Counter)
    serial: int = 1

    # The truth -------------------------------------------------------------------------------------------------------

    def put(self, obj: Object) -> None:
        """Create or replace an object, with a new resourceVersion; it goes through JSON as on the wire."""
        self.serial += 1
        meta = obj.metadata.model_copy(
            update={"resource_version": str(self.serial), "uid": obj.metadata.uid or f"uid-{self.serial:08d}-x"}
        )
        stored = type(obj).model_validate(obj.model_copy(update={"metadata": meta}).to_dict())
        key = (obj.kind, obj.metadata.name)
        self.objects[key] = stored
        self.object_news.append((self.now, key, stored))
        self._unless_lagging()

    def change_spec(self, key: Key, **fields: Any) -> None:
        """A user edits the spec."""
        obj = self.objects[key]
        meta = obj.metadata.model_copy(update={"generation": (obj.metadata.generation or 0) + 1})
        self.put(obj.model_copy(update={"metadata": meta, "spec": obj.spec.model_copy(update=fields)}))

    def stop(self, key: Key, reason: str = "BudgetExhausted") -> None:
        """What StopTrial does."""
        obj = self.objects[key]
        assert isinstance(obj, CompressionJob)
        if obj.status.stop is None:
            status = obj.status.model_copy(update={"stop": Stop(reason=reason, time=self.now)})
            self.put(obj.model_copy(update={"status": status}))

    def delete_object(self, key: Key) -> None:
        """Somebody deletes a trial; its Jobs are garbage-collected with it."""
        obj = self.objects.pop(key)
        self.object_news.append((self.now, key, None))
        for name in [name for name, job in self.jobs.items() if job.seen.owner_uid == obj.metadata.uid]:
            self.vanish(name)
        self._unless_lagging()

    def update_job(self, name: str, **changes: Any) -> None:
        """A child Job changes."""
        job = self.jobs[name]
        job.seen = replace(job.seen, **changes)
        self.job_news.append((self.now, name, job.seen))
        self._unless_lagging()

    def vanish(self, name: str) -> None:
        """A child Job is gone, at once and for good."""
        job = self.jobs[name]
        owner = self.objects.get(("CompressionJob", job.request.name))
        attempts = owner.status.attempts if isinstance(owner, CompressionJob) else []
        if job.seen.deleting or not attempts or attempts[-1].start_time is None:
            self.excused.add(job.request.prefix)  # nobody saw it run, or it was being deleted
        del self.jobs[name]
        self.job_news.append((self.now, name, None))
        self._unless_lagging()

    def add_stranger(self, name: str, *, deleting: bool = False) -> None:
        """A Job of somebody else."""
        seen = ObservedJob(name, f"stranger-{name}", "somebody", "trial", 1, "running", deleting=deleting)
        request = RunRequest(purpose="trial", namespace="x", name="x", uid="x", root="x", prefix="x", spec=self._spec())
        self.jobs[name] = SimJob(seen, request)
        self.job_news.append((self.now, name, seen))
        self._unless_lagging()

    # Runners ---------------------------------------------------------------------------------------------------------

    def start(self, name: str) -> None:
        """A pending Job's runner starts; one that finds its manifest does no work."""
        job = self.jobs[name]
        job.idle = job.request.purpose == "trial" and job.request.prefix in self.manifests
        self.update_job(name, state="running", started_at=self.now)

    def commit(self, name: str) -> None:
        """The runner writes its manifest, unless one stands."""
        job = self.jobs[name]
        if job.seen.purpose == "trial":
            self.manifests.setdefault(job.request.prefix, name)

    def end(self, name: str, how: str) -> None:
        """The runner ends that way."""
        job = self.jobs[name]
        owner = job.request.name
        if job.seen.purpose != "trial":
            self._end_other(name, job, how)
            return
        if job.idle and how in TOLD:
            how = "done"
        if how in ("done", "silent", "evicted-committed"):
            self.commit(name)
        ordered = job.seen.deleting
        if ordered or how in ("error", "oom", "terminated", "invalid"):
            self.excused.add(job.request.prefix)
        if how in ("error", "oom", "error-silent", "silent-empty") and not ordered:
            self.counted[f"{owner}/failed"] += 1
        if how in ("terminated", "evicted", "evicted-committed", "abandoned"):
            self.counted[f"{owner}/disrupted"] += 1
        match how:
            case "done":
                score = int(hashlib.sha256(owner.encode()).hexdigest()[:6], 16) / 16**6
                self._finish(name, "succeeded", None, success(compressed={"default": score}))
            case "silent" | "silent-empty":
                self._finish(name, "succeeded", None, None)
            case "error":
                self._finish(name, "failed", "error", failure())
            case "error-silent":
                self._finish(name, "failed", "error", None)
            case "oom":
                self._finish(name, "failed", "oom", None)
            case "invalid":
                self._finish(name, "failed", "invalid", failure("InvalidModel", "stages[0]: no such layer"))
            case "terminated":
                self._finish(name, "failed", "terminated", None)
            case "evicted" | "evicted-committed":
                self._finish(name, "failed", "disrupted", None)
            case "abandoned":  # one of its ranks is gone, and nobody tells the others
                self._finish(name, "failed", "disrupted", None)
                self.update_job(name, abandoned=True)
            case _:
                raise AssertionError(how)

    def _end_other(self, name: str, job: SimJob, how: str) -> None:
        if how != "done":
            self.excused.add(job.request.prefix)
        if how in ("done", "silent"):
            message = success()
            if job.seen.purpose == "suggest":
                message = answer(job.request).to_message()
            if job.seen.purpose == "collect":
                message = success() if job.request.prefix in self.manifests else not_found()
            self._finish(name, "succeeded", None, message if how == "done" else None)
        elif how == "invalid" and job.seen.purpose != "collect":
            self._finish(name, "failed", "invalid", failure("InvalidModel"))
        else:
            lost = dict.fromkeys(("evicted", "evicted-committed", "abandoned"), "disrupted")
            cause = {"terminated": "terminated", **lost}.get(how)
            self._finish(name, "failed", cause or "error", None)

    def _finish(self, name: str, state: str, cause: str | None, message: str | None) -> None:
        self.update_job(name, state=state, cause=cause, message=message, finished_at=self.now)

    # A former leader -------------------------------------------------------------------------------------------------

    def stall(self, key: Key) -> None:
        """An operator writes the status of its plan and then hangs; another one takes over."""
        obj = self.object_view.get(key)
        plan = self.plan(obj) if obj is not None else Plan()
        if obj is not None and plan.actions and self.execute(obj, plan.actions[0]):
            self.stalled = [(obj, action) for action in plan.actions[1:]]

    def wake(self) -> None:
        """It goes on where it was, before it notices that it leads no more."""
        for obj, action in self.stalled:
            if isinstance(action, CreateJob) and action.name not in self.jobs:
                self.late.add(obj.metadata.uid or "")
            if not self.execute(obj, action):
                break
        self.stalled = []

    # The operator ----------------------------------------------------------------------------------------------------

    def reconcile(self, key: Key, keep: int | None = None) -> Plan:
        """Reconcile one object from the views, and carry out the plan's first `keep` actions (None: all)."""
        obj = self.object_view.get(key)
        if obj is None:
            return Plan()
        plan = self.plan(obj)
        if plan.actions and not isinstance(plan.actions[0], PatchStatus):
            self.problems.append(f"{key[1]}: a plan without a fence")
        for action in plan.actions[:keep]:
            if not self.execute(obj, action):
                break
        return plan

    def plan(self, obj: Object) -> Plan:
        """What the core says of an object, from the views."""
        uid, prefix = obj.metadata.uid, f"{obj.metadata.name}-"
        children = tuple(
            job
            for job in self.job_view.values()
            if job.owner_uid == uid or (job.owner_uid == "somebody" and job.name.startswith(prefix))
        )
        if isinstance(obj, CompressionSweep):
            assert self.strategy is not None
            trials = tuple(job for job in self.object_view.values() if isinstance(job, CompressionJob))
            return reconcile_sweep(SweepObserved(obj, trials, children), self.now, self.strategy)
        owner_uid = obj.metadata.controller_uid()
        sweep = next((o for o in self.object_view.values() if o.metadata.uid == owner_uid and owner_uid), None)
        owner = None
        if isinstance(sweep, CompressionSweep):
            metrics = tuple(objective.metric for objective in sweep.spec.objectives)
            owner = OwnerState(
                sweep.metadata.uid or "",
                sweep.metadata.name,
                sweep.spec.suspend,
                metrics,
                keeps_records(sweep.status.trial_records, sweep.status.created),
            )
        return reconcile_job(JobObserved(obj, owner, children), self.now)

    def execute(self, obj: Object, action: object) -> bool:
        """Carry out one action as a controller does; False if the rest must be dropped."""
        key = (obj.kind, obj.metadata.name)
        match action:
            case PatchStatus(status=status):
                real = self.objects.get(key)
                if real is None or real.metadata.resource_version != obj.metadata.resource_version:
                    return False
                if type(status).model_validate(status.to_dict()) != real.status:
                    self.writes[key[1]] += 1
                    self._note(key, real, status)
                    self.put(real.model_copy(update={"status": status}))
            case CreateJob():
                return self._create_job(key, action)
            case DeleteJob(name=name, uid=uid):
                job = self.jobs.get(name)
                if job is not None and job.seen.uid == uid and not job.seen.deleting:
                    self.update_job(name, deleting=True)
            case CreateTrial(job=trial):
                return self._create_trial(trial)
            case AdmitTrial(name=name, uid=uid, record=record):
                trial = self.objects.get(("CompressionJob", name))
                if isinstance(trial, CompressionJob) and trial.metadata.uid == uid and trial.status.trial is None:
                    self.put(trial.model_copy(update={"status": trial.status.model_copy(update={"trial": record})}))
            case StopTrial(name=name, uid=uid, reason=reason):
                trial = self.objects.get(("CompressionJob", name))
                if trial is not None and trial.metadata.uid == uid:
                    self.stop(("CompressionJob", name), reason)
            case EmitEvent():
                pass
            case _:
                raise AssertionError(action)
        return True

    def _create_job(self, key: Key, action: CreateJob) -> bool:
        owner = self.objects.get(key)
        there = self.jobs.get(action.name)
        if owner is None or there is not None:
            return owner is not None and there is not None and there.seen.owner_uid == owner.metadata.uid
        if action.purpose == "trial" and key in self.finished and owner.metadata.uid not in self.late:
            self.problems.append(f"{action.name} was created after {key[1]} had finished")
        prefix = action.request.prefix
        before = owner.status.attempts[-2:-1] if isinstance(owner, CompressionJob) else []
        ordered = any(attempt.outcome == "Suspended" for attempt in before)
        if (
            action.purpose == "trial"
            and prefix in self.manifests
            and not (ordered or prefix in self.excused or owner.metadata.uid in self.late)
        ):
            self.problems.append(f"{action.name} was created though the manifest was there to be found")
        self.serial += 1
        self.writes[key[1]] += 1
        seen = ObservedJob(
            action.name, f"job-{self.serial}", owner.metadata.uid, action.purpose, action.attempt, "pending"
        )
        self.jobs[action.name] = SimJob(seen, action.request)
        self.job_news.append((self.now, action.name, seen))
        self._unless_lagging()
        return True

    def _create_trial(self, trial: CompressionJob) -> bool:
        name = trial.metadata.name
        if ("CompressionJob", name) in self.objects:
            return True
        if name in self.births:
            self.problems.append(f"trial {name} was made twice")
        self.births[name] = self._birth(trial)
        self.put(trial)
        return True

    def _note(self, key: Key, real: Object, status: Any) -> None:
        """Invariants over two versions of one status."""
        old = real.status
        if old.phase in TERMINAL_PHASES and isinstance(real, CompressionJob) and status.phase != old.phase:
            self.problems.append(f"{key[1]} left its terminal phase {old.phase} for {status.phase}")
        if status.phase in TERMINAL_PHASES:
            self.finished[key] = status
        before = {condition.type: condition for condition in old.conditions}
        for condition in status.conditions:
            kept = before.get(condition.type)
            if kept and kept.status == condition.status and kept.last_transition_time != condition.last_transition_time:
                self.problems.append(f"{condition.type} changed its time but not its status")
        grow = (
            ("started", "failures", "disruptions", "active_seconds")
            if isinstance(real, CompressionJob)
            else (
                "created",
                "prepare_attempts",
                "publish_attempts",
                "suspended_seconds",
            )
        )
        for name in grow:
            if getattr(status, name) < getattr(old, name):
                self.problems.append(f"{key[1]}: {name} went down")

    # Watches ---------------------------------------------------------------------------------------------------------

    def deliver(self, objects: int | None = None, jobs: int | None = None) -> None:
        """The watches tell their oldest news, as many as given (None: all)."""
        for _ in range(len(self.object_news) if objects is None else min(objects, len(self.object_news))):
            _, key, obj = self.object_news.popleft()
            if obj is None:
                self.object_view.pop(key, None)
            else:
                self.object_view[key] = obj
        for _ in range(len(self.job_news) if jobs is None else min(jobs, len(self.job_news))):
            _, name, job = self.job_news.popleft()
            if job is None:
                self.job_view.pop(name, None)
            else:
                self.job_view[name] = job

    def turn(self, how: Callable[[Any], str] = lambda job: "done") -> None:
        """Everything is reconciled once; Jobs that wait start, and those that run end as `how` says."""
        for key in list(self.objects):
            self.reconcile(key)
        for name, job in list(self.jobs.items()):
            if job.seen.state == "pending":
                self.start(name)
            elif job.seen.state == "running":
                self.end(name, how(job))

    def advance(self, seconds: float) -> None:
        """Time passes; news older than the lag were told meanwhile."""
        self.now += dt.timedelta(seconds=seconds)
        horizon = self.now - dt.timedelta(seconds=LAG)
        self.deliver(
            objects=sum(when <= horizon for when, *_ in self.object_news),
            jobs=sum(when <= horizon for when, *_ in self.job_news),
        )

    def _unless_lagging(self) -> None:
        if not self.lagging:
            self.deliver()

    # Checks ----------------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """The invariants that hold at every instant."""
        assert not self.problems, self.problems
        live = Counter(
            job.seen.owner_uid
            for job in self.jobs.values()
            if job.seen.purpose == "trial" and not job.seen.terminal and job.seen.owner_uid != "somebody"
        )
        # A former leader can start a second one; the rest of the run shows that it goes again.
        assert all(count == 1 or uid in self.late for uid, count in live.items()), f"two live Jobs: {live}"
        for (kind, name), obj in self.objects.items():
            if isinstance(obj, CompressionJob):
                assert obj.metadata.uid in self.late or obj.status.failures <= self.counted[f"{name}/failed"], (
                    f"{name}: a failure that never was"
                )
                assert len(obj.status.attempts) <= 8
            if kind == "CompressionJob" and name in self.births:
                assert self._birth(obj) == self.births[name], f"{name} changed after its creation"

    def replay(self) -> None:
        """Every trial's recorded history gives its parameters again."""
        assert self.strategy is not None
        trials = {
            int((obj.metadata.labels or {})["modelpress.dev/trial"]): obj
            for (kind, _), obj in self.objects.items()
            if isinstance(obj, CompressionJob)
        }
        for number, trial in trials.items():
            annotations = trial.metadata.annotations or {}
            history = History.decode(annotations[HISTORY_ANNOTATION])
            if {*history.finished, *history.running} <= set(trials):
                again = self.strategy.suggest(number, history, trials)
                assert again.spec is not None
                assert {**again.spec.to_dict(), "suspend": False} == _recipe(trial)

    def settle(self, key: Key) -> None:
        """With all news told and nothing else happening, reconciling twice acts once."""
        self.deliver()
        self.reconcile(key)
        self.deliver()
        again = self.reconcile(key)
        if any(isinstance(action, StopTrial) for action in again.actions):  # of trials whose uid was not known before
            self.deliver()
            again = self.reconcile(key)
        assert again.actions == (), f"{key} is not at rest: {again.actions}"

    def converge(self, limit: int = 600) -> None:
        """No more faults: every runner does its work. Everything must come to an end, and then be at rest."""
        self.lagging = False
        self.deliver()
        for _ in range(limit):
            plans = [self.reconcile(key) for key in list(self.objects)]
            busy = any(plan.actions for plan in plans)
            for name in list(self.jobs):
                job = self.jobs.get(name)
                if job is None or job.seen.owner_uid == "somebody":
                    continue
                if job.seen.deleting:
                    self.vanish(name)
                elif job.seen.state == "pending":
                    self.start(name)
                elif job.seen.state == "running":
                    self.end(name, "done")
                else:
                    continue
                busy = True
            waits = [plan.requeue_after for plan in plans if plan.requeue_after is not None]
            if not busy and all(obj.status.phase in TERMINAL_PHASES for obj in self.objects.values()):
                break
            self.advance(1.0 if busy else min([*waits, 60.0]) + 0.01)
            self.check()
        phases = {key: obj.status.phase for key, obj in self.objects.items()}
        assert all(phase in TERMINAL_PHASES for phase in phases.values()), f"no end: {phases}"
        for key in self.objects:
            assert not self.reconcile(key).actions
        assert not [
            name for name, job in self.jobs.items() if not job.seen.terminal and job.seen.owner_uid != "somebody"
        ]

    def _birth(self, trial: Object) -> str:
        annotations = trial.metadata.annotations or {}
        return f"{annotations[PARAMETERS_ANNOTATION]}|{annotations[HISTORY_ANNOTATION]}|{_recipe(trial)}"

    def _spec(self) -> Any:
        obj = next(iter(self.objects.values()))
        return obj.spec if isinstance(obj, CompressionJob) else obj.spec.template.spec


def _recipe(trial: Object) -> dict[str, Any]:
    """A trial's spec but for the one field that users may change."""
    return {**trial.spec.to_dict(), "suspend": False}
