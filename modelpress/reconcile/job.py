"""Reconcile a CompressionJob: resolve the latest attempt, then let an ordered chain of policies say what comes next.

Every plan that does anything begins with PatchStatus, also when the status stays the same: the patch is refused when
the object changed since it was observed, and the controller then drops the rest. So nothing is done on an old view of
the object, and what a child is for is written down before it exists.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from modelpress.api.v1alpha1 import TERMINAL_PHASES, Artifact, Attempt, CompressionJob, MetricsPair
from modelpress.api.v1alpha1 import reasons as r
from modelpress.result import RunResult

from . import naming
from .attempts import AttemptResolution, described, pending, resolve_attempt
from .conditions import ConditionUpdate, Verdict, cut, merge, seconds, stamp, summary, transition
from .job_snapshot import WATCH_LAG, JobSnapshot, job_snapshot
from .memory import more_memory, raised_memory, with_memory
from .model import Action, CreateJob, DeleteJob, JobObserved, ObservedJob, Plan
from .precondition import conditional_plan, tidied
from .requests import artifact_uri, kept_metrics, request_problem, resolved, run_request, store_location

MAX_ATTEMPTS = 8  # attempts that status lists
MAX_METRICS = 64  # metrics that status lists on either side


def reconcile_job(observed: JobObserved, now: dt.datetime) -> Plan:
    """What to do about a CompressionJob: create, delete, record.

    A plan's actions are to be carried out in order, and none after one that failed. Any number of them may be lost: the
    next call, on what was observed then, makes up for it. Reconciling the outcome of a plan gives no further actions.
    """
    if observed.job.metadata.deletion_timestamp is not None:
        return Plan()  # its children go with it
    snapshot = job_snapshot(observed, now)
    if snapshot.status.phase in TERMINAL_PHASES:
        return _tidy(snapshot)
    return _advance(snapshot)


@dataclass(frozen=True)
class Accounting:
    """Counters and latest attempt of a job, after that attempt was resolved; input of the policies."""

    snapshot: JobSnapshot
    resolution: AttemptResolution | None
    failures: int
    disruptions: int
    active_seconds: float
    orphans: tuple[ObservedJob, ...]
    memory: str | None = None  # the limit that attempts have from now on; None: the specification's

    @property
    def job(self) -> CompressionJob:
        """The job as its next attempt runs it."""
        return with_memory(self.snapshot.job, self.memory)

    @property
    def attempt(self) -> Attempt | None:
        """The latest attempt as it is recorded from now on."""
        return self.resolution.attempt if self.resolution else None

    @property
    def number(self) -> int:
        """The number that the next Job of the job gets: an unstarted attempt's own, else a new one."""
        return self.snapshot.started if self.resolution and self.resolution.unstarted else self.snapshot.started + 1

    @property
    def last(self) -> str:
        """How the latest attempt ended, as a sentence."""
        return described(self.attempt) if self.attempt else ""


Policy = Callable[[Accounting], Verdict | None]


# Final policies: the first that applies ends the job ------------------------------------------------------------------


def _succeeded(accounting: Accounting) -> Verdict | None:
    if (
        accounting.resolution is None
        or accounting.resolution.end is None
        or accounting.resolution.end.outcome != "Succeeded"
    ):
        return None
    return Verdict("Succeeded", r.SUCCEEDED, f"Attempt {accounting.snapshot.started} committed its manifest.")


def _invalid(accounting: Accounting) -> Verdict | None:
    if (
        accounting.resolution is None
        or accounting.resolution.end is None
        or accounting.resolution.end.outcome != "Invalid"
    ):
        return None
    return Verdict("Failed", accounting.resolution.end.reason, accounting.resolution.end.message)


def _stopped(accounting: Accounting) -> Verdict | None:
    stop = accounting.snapshot.status.stop
    return Verdict("Stopped", r.STOPPED_BY_SWEEP, f"The sweep stopped this trial: {stop.reason}.") if stop else None


def _past_deadline(accounting: Accounting) -> Verdict | None:
    limit = accounting.snapshot.job.spec.active_deadline_seconds
    ordered = accounting.attempt is not None and accounting.attempt.reason == r.DEADLINE_EXCEEDED
    if limit is None or (accounting.active_seconds < limit and not ordered):
        return None
    ran = f"The runners ran {accounting.active_seconds:.0f} s"
    text = f"{ran}, spec.activeDeadlineSeconds is {limit}; raise it in a new job."
    return Verdict("Failed", r.DEADLINE_EXCEEDED, text)


def _past_backoff(accounting: Accounting) -> Verdict | None:
    limit = accounting.snapshot.job.spec.backoff_limit
    if accounting.failures <= limit:
        return None
    return Verdict(
        "Failed",
        r.BACKOFF_LIMIT_EXCEEDED,
        f"Attempts that failed: {accounting.failures}, spec.backoffLimit is {limit}. {accounting.last}",
    )


def _past_disruptions(accounting: Accounting) -> Verdict | None:
    limit = accounting.snapshot.job.spec.max_disruptions
    if accounting.disruptions <= limit:
        return None
    text = f"Attempts that were disrupted: {accounting.disruptions}, spec.maxDisruptions is {limit}. {accounting.last}"
    return Verdict("Failed", r.TOO_MANY_DISRUPTIONS, text)


FINAL_POLICIES: tuple[Policy, ...] = (_succeeded, _invalid, _stopped, _past_deadline, _past_backoff, _past_disruptions)


# Hold policies: the first that applies keeps the next attempt from starting -------------------------------------------


def _forged(accounting: Accounting) -> Verdict | None:
    """A job that says that it is a sweep's and is not known as that sweep's trial."""
    snapshot, owner = accounting.snapshot, accounting.snapshot.owner
    record = snapshot.status.trial
    if owner is None or (record.sweep == owner.uid if record is not None else not owner.records):
        return None
    made = snapshot.job.metadata.creation_timestamp
    if record is None and made is not None and seconds(stamp(made), snapshot.now) < WATCH_LAG:
        text = f"The CompressionSweep {owner.name} has yet to take it up as a trial."
        return Verdict("Pending", r.PENDING, text, reconciling=True)
    text = f"It names the CompressionSweep {owner.name} as its controller, and is no trial of it; delete it."
    return Verdict("Pending", r.FORGED_TRIAL, text, stalled=True)


def _suspended(accounting: Accounting) -> Verdict | None:
    return accounting.snapshot.suspended


def _invalid_spec(accounting: Accounting) -> Verdict | None:
    problems = accounting.snapshot.problems
    if not problems:
        return None
    return Verdict("Pending", accounting.snapshot.problems_reason, _problems(problems), stalled=True)


def _invalid_request(accounting: Accounting) -> Verdict | None:
    why = request_problem(run_request(accounting.job, "trial", accounting.number, accounting.snapshot.owner))
    return Verdict("Pending", why[0], why[1], stalled=True) if why else None


def _name_conflict(accounting: Accounting) -> Verdict | None:
    name = naming.attempt_name(accounting.snapshot.name, accounting.number)
    other = accounting.snapshot.foreign.get(name)
    if other is None:
        return None
    if other.deleting:
        return Verdict("Pending", r.PENDING, f"The Job {name} of a former owner is being deleted.", reconciling=True)
    text = f"The Job {name} belongs to somebody else; delete it, or give this job another name."
    return Verdict("Pending", r.NAME_CONFLICT, text, stalled=True)


def _orphans(accounting: Accounting) -> Verdict | None:
    """One live runner at a time: a Job that should not run must be gone before another one starts."""
    trials = [child for child in accounting.orphans if child.purpose == "trial"]
    if not trials:
        return None
    text = f"The Job {trials[0].name} still runs and is being deleted."
    return Verdict("Pending", r.PENDING, text, reconciling=True)


HOLD_POLICIES: tuple[Policy, ...] = (_forged, _suspended, _invalid_spec, _invalid_request, _name_conflict, _orphans)


def _accounting(snapshot: JobSnapshot, resolution: AttemptResolution | None) -> Accounting:
    status = snapshot.status
    failures, disruptions, active = status.failures, status.disruptions, status.active_seconds
    memory = status.memory
    if resolution is not None:
        active += resolution.ran
        closes = snapshot.attempt is not None and snapshot.attempt.finish_time is None
        if resolution.end is not None and closes and resolution.end.reason != r.DEADLINE_EXCEEDED:
            if resolution.end.reason == r.RUNNER_OOM_KILLED and memory is None:
                memory = raised_memory(snapshot.job.spec)
            failures += resolution.end.outcome == "Failed" and memory == status.memory
            disruptions += resolution.end.outcome in ("Disrupted", "Lost")
    orphans = _orphaned(snapshot, resolution)
    return Accounting(snapshot, resolution, failures, disruptions, round(active, 3), orphans, memory)


def _first(chain: tuple[Policy, ...], accounting: Accounting) -> Verdict | None:
    return next((verdict for policy in chain if (verdict := policy(accounting)) is not None), None)


# Plans ---------------------------------------------------------------------------------------------------------------


def _advance(snapshot: JobSnapshot) -> Plan:
    resolution = resolve_attempt(snapshot)
    accounting = _accounting(snapshot, resolution)
    ending = [*accounting.orphans, *(child for child in snapshot.ours if child.abandoned)]
    actions: list[Action] = [DeleteJob(child.name, child.uid) for child in ending if not child.deleting]
    attempt, started, wait = accounting.attempt, snapshot.started, None
    extra: list[ConditionUpdate] = []
    if resolution is not None and resolution.verdict is not None:
        verdict, wait = resolution.verdict, resolution.wait
        actions += resolution.actions
        extra += resolution.conditions
    elif final := _first(FINAL_POLICIES, accounting):
        verdict = final
        attempt = _abandoned(accounting, final)
        extra += _outcome(snapshot, resolution.result if resolution else None, final)
    elif hold := _first(HOLD_POLICIES, accounting):
        verdict = hold
        wait = WATCH_LAG if hold.reconciling else None
        if resolution is not None and resolution.unstarted and hold.phase == "Suspended":
            attempt = resolution.attempt.model_copy(update={"outcome": "Suspended", "reason": hold.reason})
    else:
        number = accounting.number
        name = naming.attempt_name(snapshot.name, number)
        verdict = pending(_after(snapshot, accounting), number)
        if accounting.memory is not None and accounting.memory != snapshot.status.memory:
            told = more_memory(snapshot.job.spec, accounting.memory)
            verdict = replace(verdict, message=cut(f"{verdict.message} {told}"))
        actions.append(CreateJob(name, "trial", number, run_request(accounting.job, "trial", number, snapshot.owner)))
        new = Attempt(number=number, outcome="Running", create_time=snapshot.now)
        past = snapshot.past if resolution is None or resolution.unstarted else (*snapshot.past, resolution.attempt)
        return _plan(snapshot, accounting, verdict, (*past, new), number, actions, extra, WATCH_LAG)
    attempts = (*snapshot.past, attempt) if attempt else snapshot.past
    return _plan(snapshot, accounting, verdict, attempts, started, actions, extra, wait)


def _plan(
    snapshot: JobSnapshot,
    accounting: Accounting,
    verdict: Verdict,
    attempts: tuple[Attempt, ...],
    started: int,
    actions: list[Action],
    extra: list[ConditionUpdate],
    wait: float | None,
) -> Plan:
    old = snapshot.status
    terminal = verdict.phase in TERMINAL_PHASES
    wanted = [*summary(verdict, None if terminal else snapshot.suspended, old.conditions), *extra]
    update: dict[str, object] = {
        "observed_generation": snapshot.generation,
        "phase": verdict.phase,
        "conditions": merge(old.conditions, wanted, snapshot.now, snapshot.generation),
        "attempts": list(attempts[-MAX_ATTEMPTS:]),
        "started": started,
        "failures": accounting.failures,
        "disruptions": accounting.disruptions,
        "memory": accounting.memory,
        "active_seconds": accounting.active_seconds,
        "start_time": old.start_time or (_first_start(attempts) or snapshot.now if started else None),
    }
    if terminal:
        update["completion_time"] = snapshot.now
        update |= _recorded(snapshot, accounting)
        ttl = snapshot.job.spec.ttl_seconds_after_finished
        wait = float(ttl) if ttl and snapshot.ours else None
        if ttl == 0:  # recorded above, so that nothing keeps them
            actions = [
                *actions,
                *(DeleteJob(job.name, job.uid) for job in snapshot.ours if job.terminal and not job.deleting),
            ]
    return conditional_plan(
        snapshot.status, old.model_copy(update=update), actions, transition(old.conditions, old.phase, verdict), wait
    )


def _first_start(attempts: tuple[Attempt, ...]) -> dt.datetime | None:
    """When the first attempt was decided on, or began: its Job may be older than the first status."""
    return attempts[0].create_time or attempts[0].start_time


def _tidy(snapshot: JobSnapshot) -> Plan:
    """A finished job: nothing of it may run on, and its finished Jobs go after ttlSecondsAfterFinished."""
    status = snapshot.status
    ttl = snapshot.job.spec.ttl_seconds_after_finished
    left = (
        None
        if ttl is None
        else ttl - (seconds(status.completion_time, snapshot.now) if status.completion_time else ttl)
    )
    late = left is not None and left <= 0
    due = [child for child in snapshot.ours if not child.deleting and (not child.terminal or child.abandoned or late)]
    return tidied(status, status, snapshot.generation, snapshot.ours, due, left)


def _orphaned(snapshot: JobSnapshot, resolution: AttemptResolution | None) -> tuple[ObservedJob, ...]:
    """Live children of no open attempt: of a closed or another one, or collect Jobs whose answer is known."""
    live = [child for child in snapshot.ours if not child.terminal]
    if resolution is None or resolution.end is not None:
        return tuple(live)
    looking = any(condition.reason == r.COLLECTING for condition in resolution.conditions)
    return tuple(
        child
        for child in live
        if child is not snapshot.child
        and not (child.purpose == "collect" and looking and child.attempt == snapshot.started)
    )


def _after(snapshot: JobSnapshot, accounting: Accounting) -> JobSnapshot:
    """The facts as the next attempt sees them, for the sentence about the one before."""
    if accounting.resolution is None or accounting.resolution.unstarted:
        return snapshot
    return JobSnapshot(**{**vars(snapshot), "past": (*snapshot.past, accounting.resolution.attempt), "attempt": None})


def _abandoned(accounting: Accounting, final: Verdict) -> Attempt | None:
    """The latest attempt of a job that ends: one that never ran ends with it."""
    if accounting.resolution is None or not accounting.resolution.unstarted:
        return accounting.attempt
    update = {
        "outcome": "Stopped" if final.phase == "Stopped" else "Failed",
        "reason": final.reason,
        "finish_time": accounting.snapshot.now,
    }
    return accounting.resolution.attempt.model_copy(update=update)


# What a finished job's status says -----------------------------------------------------------------------------------


def _recorded(snapshot: JobSnapshot, accounting: Accounting) -> dict[str, object]:
    result = accounting.resolution.result if accounting.resolution else None
    if result is None or result.phase != "Succeeded" or result.manifest_digest is None:
        return {}
    uri = artifact_uri(resolved(snapshot.job.spec), store_location(snapshot.job).prefix)
    return {
        "metrics": MetricsPair(
            baseline=_listed(result.baseline, kept_metrics(snapshot.job, snapshot.owner)),
            compressed=_listed(result.compressed, kept_metrics(snapshot.job, snapshot.owner)),
        ),
        "code_digest": result.code_digest[:64] if result.code_digest else None,
        "artifact": Artifact(uri=uri, manifest_digest=result.manifest_digest),
    }


def _listed(metrics: Mapping[str, float], keep: Sequence[str]) -> dict[str, float]:
    """As many as a status lists, those that must be there first."""
    ordered = {name: metrics[name] for name in keep if name in metrics} | dict(metrics)
    return dict(list(ordered.items())[:MAX_METRICS])


def _outcome(snapshot: JobSnapshot, result: RunResult | None, final: Verdict) -> list[ConditionUpdate]:
    """The conditions that only a finished job has."""
    if final.phase != "Succeeded" or result is None:
        return [ConditionUpdate(r.ARTIFACT_AVAILABLE, "False", final.reason)]
    uri = artifact_uri(resolved(snapshot.job.spec), store_location(snapshot.job).prefix)
    out = [ConditionUpdate(r.ARTIFACT_AVAILABLE, "True", r.COMMITTED, f"The model is at {uri}.")]
    match result.constraints_met:
        case None:
            out.append(ConditionUpdate(r.CONSTRAINTS_MET, "True", r.NO_CONSTRAINTS))
        case True:
            out.append(ConditionUpdate(r.CONSTRAINTS_MET, "True", r.CONSTRAINTS_SATISFIED))
        case False if result.uncertain and not result.unmet:
            text = cut(" ".join(result.uncertain))
            out.append(ConditionUpdate(r.CONSTRAINTS_MET, "Unknown", r.LATENCY_UNCERTAIN, text))
        case False:
            out.append(ConditionUpdate(r.CONSTRAINTS_MET, "False", r.CONSTRAINT_MISSED, cut(" ".join(result.unmet))))
    if result.smaller is not None:
        reason = r.SMALLER_OR_FASTER if result.smaller else r.NOTHING_SMALLER
        text = "" if result.smaller else "No measured number is smaller or faster than the dense model's."
        out.append(ConditionUpdate(r.COMPRESSED, "True" if result.smaller else "False", reason, text))
    if result.portable is not None:
        reason = r.EXPORTED if result.portable else r.EXPORT_FAILED
        text = "" if result.portable else result.portable_reason or "The model does not export."
        out.append(ConditionUpdate(r.PORTABLE, "True" if result.portable else "False", reason, text))
    return out


def _problems(problems: tuple[str, ...]) -> str:
    return cut("; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else ""))
