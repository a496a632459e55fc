"""Reconcile a CompressionSweep: prepare once, keep `parallelism` trials going until something ends it, publish once.

As for a job, every plan that does anything begins with PatchStatus: `created` counts a trial before it exists, so that
whatever is lost behind it, no trial is ever made twice. Only trials that were all seen, or given up after a while, let
the next ones start: a trial that the watch has not told yet is neither lost nor forgotten in a history.
"""

from __future__ import annotations

import datetime as dt
import functools
from collections.abc import Callable
from dataclasses import replace

from modelpress.api.v1alpha1 import (
    TERMINAL_PHASES,
    CompressionJob,
)
from modelpress.api.v1alpha1 import reasons as r
from modelpress.request import PublishRequest
from modelpress.trials import (
    SWEEP_LABEL,
    Strategy,
)

from . import suggesting
from .admission import MAX_REPLAYED, keeps_records, replayed, unproven
from .auxiliary_jobs import run_auxiliary_job
from .conditions import ConditionUpdate, Verdict, cut, find, merge, seconds, soonest, summary, transition
from .model import AdmitTrial, DeleteJob, Plan, StopTrial, SweepObserved
from .precondition import conditional_plan, tidied
from .sweep_draft import StatusDraft, end_of_search
from .sweep_results import front_of, judged, settle_publication
from .sweep_snapshot import SweepSnapshot, code_digest, sweep_snapshot
from .sweep_trials import fill

MAX_FRONT = 500  # numbers of the front in status; the publish Job gets all
_CONTINUABLE = frozenset({r.TRIALS_FINISHED, r.BUDGET_EXHAUSTED, r.NO_RESULT})


def reconcile_sweep(observed: SweepObserved, now: dt.datetime, strategy: Strategy) -> Plan:
    """What to do about a CompressionSweep: create, stop, record.

    A plan's actions are to be carried out in order, and none after one that failed. Any number of them may be lost: the
    next call, on what was observed then, makes up for it. Reconciling the outcome of a plan gives no further actions.
    """
    if observed.sweep.metadata.deletion_timestamp is not None:
        return Plan()  # its children go with it
    snapshot = sweep_snapshot(observed, now)
    if snapshot.status.phase in TERMINAL_PHASES and not _continues(snapshot):
        return _tidy(snapshot)
    if admitted := _admitted(snapshot, strategy):
        trials = [_recorded(job, admitted.get(job.metadata.name)) for job in observed.trials]
        snapshot = sweep_snapshot(replace(observed, trials=tuple(trials)), now)
    if snapshot.status.phase in TERMINAL_PHASES:
        snapshot = _continued(snapshot)
    return _advance(snapshot, strategy, list(admitted.values()))


def _admitted(snapshot: SweepSnapshot, strategy: Strategy) -> dict[str, AdmitTrial]:
    """The jobs without a record that are trials all the same, by name."""
    if snapshot.problems or not keeps_records(snapshot.status.trial_records, snapshot.status.created):
        return {}
    jobs = {
        number: job for job in snapshot.foreign_trials.values() if (number := unproven(job, snapshot.sweep)) is not None
    }
    last = snapshot.created + snapshot.sweep.spec.parallelism
    trials, admitted = dict(snapshot.trials), dict[str, AdmitTrial]()
    for number in [number for number in sorted(jobs) if number < last and number not in trials][:MAX_REPLAYED]:
        job = jobs[number]
        asking = functools.partial(suggesting.suggest, snapshot, strategy)
        record = replayed(job, number, snapshot.sweep, asking, strategy, trials)
        if record is not None:
            admitted[job.metadata.name] = AdmitTrial(job.metadata.name, job.metadata.uid or "", record)
            trials[number] = _recorded(job, admitted[job.metadata.name])
    return admitted


def _recorded(job: CompressionJob, admitted: AdmitTrial | None) -> CompressionJob:
    """The job as it is once it was admitted."""
    if admitted is None:
        return job
    return job.model_copy(update={"status": job.status.model_copy(update={"trial": admitted.record})})


Policy = Callable[[StatusDraft], Verdict | None]


# The chain: the first that applies says where the sweep stands -------------------------------------------------------


def _invalid_spec(draft: StatusDraft) -> Verdict | None:
    problems = draft.snapshot.problems
    if not problems:
        return None
    more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
    return Verdict("Pending", draft.snapshot.problems_reason, cut("; ".join(problems[:8]) + more), stalled=True)


def _suspended(draft: StatusDraft) -> Verdict | None:
    """Trials see the sweep's suspension themselves; its own Jobs go, and come again on resumption."""
    if not draft.snapshot.sweep.spec.suspend:
        return None
    draft.actions += [
        DeleteJob(child.name, child.uid) for child in draft.snapshot.ours if not child.terminal and not child.deleting
    ]
    return suspension()


def _prepare(draft: StatusDraft) -> Verdict | None:
    """One dense model and one baseline for all trials, unless the search changes the model itself."""
    snapshot = draft.snapshot
    if snapshot.created > 0 or not needs_prepare(snapshot):
        return None
    auxiliary = run_auxiliary_job(snapshot, "prepare", snapshot.status.prepare_attempts)
    draft.take_over(auxiliary, "prepare_attempts")
    if auxiliary.failed is not None:
        invalid = auxiliary.failed.outcome == "Invalid"
        draft.conditions.append(ConditionUpdate(r.ARTIFACT_AVAILABLE, "False", r.PREPARE_FAILED))
        return Verdict(
            "Failed",
            auxiliary.failed.reason if invalid else r.PREPARE_FAILED,
            auxiliary.failed.message
            if invalid
            else cut(f"The dense model could not be made: {auxiliary.failed.message}"),
        )
    if auxiliary.result is not None and auxiliary.result.baseline:
        draft.update["baseline"] = dict(list(auxiliary.result.baseline.items())[:64])
    return auxiliary.verdict


def _trials(draft: StatusDraft) -> Verdict | None:
    """Trials run or start; None when the last one is over."""
    snapshot = draft.snapshot
    ending = end_of_search(draft)
    if ending is None and snapshot.awaited == 0 and (conflict := fill(draft)):
        return conflict
    ending = ending or end_of_search(draft)
    limit = snapshot.sweep.spec.max_trials
    going = Verdict("Running", r.RUNNING, _progress(draft, limit))
    budget = snapshot.budget_left(snapshot.now)
    left = budget[0] if budget is not None else None
    if ending is not None and ending.reason in (r.BUDGET_EXHAUSTED, r.TOO_MANY_FAILED_TRIALS):
        draft.actions += [
            StopTrial(trial.metadata.name, trial.metadata.uid or "", ending.reason)
            for trial in (snapshot.trials[number] for number in snapshot.live)
            if trial.status.stop is None
        ]
        going = Verdict(
            "Running", ending.reason, f"{ending.message} Running trials are being stopped.", reconciling=True
        )
        left = None
    elif snapshot.sweep.spec.early_stopping is not None:
        draft.actions += _behind(draft)
    draft.actions += suggesting.settled(snapshot)
    draft.wait = soonest(draft.wait, snapshot.awaited_wait, left)
    if draft.asking is not None and not draft.new and (not snapshot.live or draft.asking.phase == "Running"):
        return replace(draft.asking, message=cut(f"{going.message} {draft.asking.message}"))
    return going if snapshot.live or snapshot.awaited or draft.new else None


def _progress(draft: StatusDraft, limit: int) -> str:
    finished = draft.snapshot.finished
    if draft.snapshot.sweep.spec.screening is None:
        return f"{len(finished)} trials finished of {limit}."
    second = sum(number in draft.going_on for number in finished)
    first = f"{len(finished) - second} trials of {limit} went through the first stages"
    return f"{first}; {second} of {len(draft.going_on)} that go on finished." if draft.going_on else f"{first}."


def _behind(draft: StatusDraft) -> list[StopTrial]:
    """Stops of the running trials that are too far behind."""
    snapshot = draft.snapshot
    numbers = draft.strategy.stopped_early(snapshot.trials)
    trials = [snapshot.trials[number] for number in numbers if number in snapshot.live]
    return [
        StopTrial(trial.metadata.name, trial.metadata.uid or "", r.STOPPED_EARLY)
        for trial in trials
        if trial.status.stop is None and trial.status.phase == "Running"
    ]


def _publish(draft: StatusDraft) -> Verdict | None:
    """The report and the best model, once, after the last trial. A failure is told and changes nothing else."""
    snapshot = draft.snapshot
    ending = end_of_search(draft)
    failed = ending is not None and ending.reason == r.TOO_MANY_FAILED_TRIALS
    if not snapshot.succeeded or (failed and draft.winner is None):
        draft.conditions.append(ConditionUpdate(r.ARTIFACT_AVAILABLE, "False", r.NO_RESULT))
        return None
    request = PublishRequest(
        objectives=snapshot.sweep.spec.objectives,
        best=draft.winner.number if draft.winner else None,
        front=front_of(draft),
        keep=snapshot.sweep.spec.artifacts.keep,
        screening=draft.strategy.rungs(snapshot.succeeded, draft.going_on) if draft.going_on else None,
    )
    auxiliary = run_auxiliary_job(
        snapshot, "publish", snapshot.status.publish_attempts, snapshot.status.publish_base, request
    )
    draft.take_over(auxiliary, "publish_attempts")
    if auxiliary.verdict is not None:
        return auxiliary.verdict
    settle_publication(draft, auxiliary)
    return None


def _ended(draft: StatusDraft) -> Verdict:
    """The final verdict on the sweep."""
    snapshot, ending = draft.snapshot, end_of_search(draft)
    assert ending is not None, "a search without running trials either goes on or has ended"
    if ending.reason == r.TOO_MANY_FAILED_TRIALS:
        return ending
    if not snapshot.succeeded:
        return Verdict("Failed", r.NO_RESULT, f"No trial succeeded. {ending.message}")
    draft.conditions += judged(draft)
    return ending


CHAIN: tuple[Policy, ...] = (_invalid_spec, _suspended, _prepare, _trials, _publish, _ended)


def needs_prepare(snapshot: SweepSnapshot) -> bool:
    """Whether all trials start from one dense model."""
    paths = (path for parameter in snapshot.sweep.spec.search_space for path in parameter.paths)
    return not any(path == "/model" or path.startswith("/model/") for path in paths)


# Plans ---------------------------------------------------------------------------------------------------------------


def suspension() -> Verdict:
    """The verdict on a suspended sweep."""
    return Verdict("Suspended", r.SUSPENDED_BY_USER, "spec.suspend is true; set it to false to go on.")


def _advance(snapshot: SweepSnapshot, strategy: Strategy, admitted: list[AdmitTrial]) -> Plan:
    status = snapshot.status
    if snapshot.problems:  # a spec that was accepted before, by an operator that asked for less: what was found stands
        best, front = status.best, list(status.front)
    else:
        best, front = strategy.ranking(snapshot.succeeded) if snapshot.succeeded else (None, [])
    counted = snapshot.created, status.trials.refused, status.exhausted
    draft = StatusDraft(snapshot, strategy, best, front, *counted, dict(snapshot.going_on))
    draft.actions += admitted
    if keeps_records(status.trial_records, status.created):
        draft.update["trial_records"] = True
    if status.start_time is None and not snapshot.problems and not snapshot.sweep.spec.suspend:
        draft.update["start_time"] = snapshot.now
    verdict = next(verdict for policy in CHAIN if (verdict := policy(draft)) is not None)
    return _plan(draft, verdict)


def _plan(draft: StatusDraft, verdict: Verdict) -> Plan:
    snapshot, old = draft.snapshot, draft.snapshot.status
    terminal = verdict.phase in TERMINAL_PHASES
    suspended = suspension() if snapshot.sweep.spec.suspend and not terminal else None
    digest, code = code_digest(snapshot)
    counts = snapshot.counts(draft.created, draft.refused, draft.new)
    wanted = [*summary(verdict, suspended, old.conditions), *code, *draft.conditions]
    if not terminal and old.artifact is not None and (kept := find(old.conditions, r.ARTIFACT_AVAILABLE)):
        wanted.append(ConditionUpdate(kept.type, kept.status, kept.reason, kept.message))
    update: dict[str, object] = {
        "observed_generation": snapshot.generation,
        "phase": verdict.phase,
        "conditions": merge(old.conditions, wanted, snapshot.now, snapshot.generation),
        "created": draft.created,
        "active": counts.pending + counts.running,
        "selector": f"{SWEEP_LABEL}={snapshot.sweep.metadata.name}",
        "trials": counts,
        "exhausted": draft.exhausted,
        "best": draft.best,
        "front": front_of(draft)[:MAX_FRONT],
        "screening": old.screening
        if snapshot.problems or not draft.going_on
        else draft.strategy.rungs(snapshot.succeeded, draft.going_on),
        "code_digest": digest,
        "baseline": old.baseline or _baseline(snapshot),
        "gpu_seconds": snapshot.gpu_seconds,
        "suspended_seconds": old.suspended_seconds if snapshot.sweep.spec.suspend else snapshot.suspended_seconds,
        **draft.update,
    }
    wait = draft.wait
    if terminal:
        update["completion_time"] = snapshot.now
        ttl = snapshot.sweep.spec.template.spec.ttl_seconds_after_finished
        wait = float(ttl) if ttl and snapshot.ours else None
        draft.actions += [
            DeleteJob(child.name, child.uid)
            for child in snapshot.ours
            if not child.deleting and (not child.terminal or ttl == 0)
        ]
    events = [*draft.events, *transition(old.conditions, snapshot.observed_status.phase, verdict)]
    return conditional_plan(snapshot.observed_status, old.model_copy(update=update), draft.actions, events, wait)


def _baseline(snapshot: SweepSnapshot) -> dict[str, float] | None:
    for job in snapshot.succeeded:
        if job.status.metrics is not None and job.status.metrics.baseline:
            return dict(job.status.metrics.baseline)
    return None


def _continues(snapshot: SweepSnapshot) -> bool:
    """Whether maxTrials or the budget were raised on a finished sweep, so that there is more to do."""
    status, spec = snapshot.status, snapshot.sweep.spec
    ready = find(status.conditions, r.READY)
    if spec.suspend or snapshot.problems or ready is None or ready.reason not in _CONTINUABLE:
        return False
    budget = snapshot.budget_left(status.completion_time or snapshot.now)
    return (
        snapshot.created - len(snapshot.going_on) < spec.max_trials
        and not status.exhausted
        and snapshot.seen.failed + status.trials.refused <= spec.max_failed_trials
        and (budget is None or budget[0] > 0)
    )


def _continued(snapshot: SweepSnapshot) -> SweepSnapshot:
    """The sweep as if it had been suspended since it finished; what it published before is published anew."""
    status = snapshot.status
    idle = seconds(status.completion_time, snapshot.now) if status.completion_time else 0.0
    return replace(
        snapshot,
        status=status.model_copy(
            update={
                "completion_time": None,
                "suspended_seconds": round(status.suspended_seconds + idle, 3),
                "publish_base": status.publish_attempts,
            }
        ),
    )


def _tidy(snapshot: SweepSnapshot) -> Plan:
    """A finished sweep: nothing of it may run on, and its finished Jobs go after ttlSecondsAfterFinished."""
    status = snapshot.status
    ttl = snapshot.sweep.spec.template.spec.ttl_seconds_after_finished
    left = None if ttl is None else ttl - seconds(status.completion_time or snapshot.now, snapshot.now)
    due = [
        child
        for child in snapshot.ours
        if not child.deleting and (not child.terminal or (left is not None and left <= 0))
    ]
    return tidied(snapshot.observed_status, status, snapshot.generation, snapshot.ours, due, left)
