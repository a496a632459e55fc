"""State of the latest attempt: an ordered chain of policies over one child Job; the first that applies decides.

An attempt is open until its Job is gone or has ended for good. While it is open no other one starts, so that a job
never has two live runners. An attempt whose runner was never seen to run is not given up when its Job is missing but
made again under the same name: one name is one Job, whatever the watch has not told yet.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, replace

from modelpress.api.v1alpha1 import Attempt, Condition
from modelpress.api.v1alpha1 import reasons as r
from modelpress.api.v1alpha1.job import AttemptOutcome
from modelpress.result import RunResult

from . import naming
from .conditions import ConditionUpdate, Verdict, cut, find, seconds, soonest, stamp
from .job_snapshot import MESSAGE_GRACE, WATCH_LAG, JobSnapshot
from .model import Action, CreateJob, DeleteJob, ObservedJob
from .pending_reason import pending_reason
from .requests import run_request
from .termination import Termination, read_result, read_termination

COLLECT_ROUNDS = 3  # collect Jobs that may fail before the next attempt starts, whose runner finds a manifest itself


@dataclass(frozen=True)
class AttemptResolution:
    """State of the latest attempt, as a policy resolved it.

    Open: `verdict` and `actions` say how it goes on. Over: `end` is set. `unstarted`: it has no Job, and may get
    one.
    """

    attempt: Attempt
    verdict: Verdict | None = None
    end: Termination | None = None
    unstarted: bool = False
    actions: tuple[Action, ...] = ()
    conditions: tuple[ConditionUpdate, ...] = ()
    wait: float | None = None
    ran: float = 0.0  # seconds of running time that ended with this step
    result: RunResult | None = None


Policy = Callable[[JobSnapshot, Attempt], AttemptResolution | None]


def resolve_attempt(snapshot: JobSnapshot) -> AttemptResolution | None:
    """The latest attempt as the first policy that applies resolves it; None if there is no attempt yet."""
    if snapshot.attempt is None:
        return None
    for policy in CHAIN:
        resolution = policy(snapshot, snapshot.attempt)
        if resolution is not None:
            return resolution
    raise AssertionError("the chain ends with a policy that always applies")


def pending(snapshot: JobSnapshot, number: int, child: ObservedJob | None = None) -> Verdict:
    """The verdict while an attempt's Job waits for its runner to start."""
    reason, text = pending_reason(f"Attempt {number}", child)
    before = next((old for old in (*snapshot.past, snapshot.attempt) if old and old.number == number - 1), None)
    if before is not None and before.outcome in ("Failed", "Disrupted", "Lost"):
        return Verdict("Pending", reason or r.RETRYING, f"{text} {described(before)}", reconciling=True)
    return Verdict("Pending", reason or r.PENDING, text, reconciling=True)


def described(attempt: Attempt) -> str:
    """How an attempt ended, as a sentence."""
    return cut(f"Attempt {attempt.number} ended with {attempt.reason or attempt.outcome}: {attempt.message or '-'}")


# The chain -----------------------------------------------------------------------------------------------------------


def _closed(snapshot: JobSnapshot, attempt: Attempt) -> AttemptResolution | None:
    if attempt.finish_time is None:
        return None
    return AttemptResolution(
        attempt, end=Termination(attempt.outcome, attempt.reason or attempt.outcome, attempt.message or "")
    )


def _succeeded(snapshot: JobSnapshot, attempt: Attempt) -> AttemptResolution | None:
    """A committed manifest is a success, whatever else was ordered or went wrong meanwhile."""
    if snapshot.child is not None and snapshot.child.terminal:
        end = read_termination(snapshot.child, started=attempt.start_time is not None)
        if end.outcome == "Succeeded":
            return _close(snapshot, attempt, end)
    return None


def _ended_as_ordered(snapshot: JobSnapshot, attempt: Attempt) -> AttemptResolution | None:
    """Its end was ours: neither a failure nor a disruption."""
    if not ordered(attempt) or (snapshot.child is not None and not snapshot.child.terminal):
        return None
    if snapshot.child is None and attempt.start_time is None:
        return AttemptResolution(attempt, unstarted=True)
    return _close(
        snapshot, attempt, Termination(attempt.outcome, attempt.reason or attempt.outcome, attempt.message or "")
    )


def _ended(snapshot: JobSnapshot, attempt: Attempt) -> AttemptResolution | None:
    if snapshot.child is None or not snapshot.child.terminal:
        return None
    end = read_termination(snapshot.child, started=attempt.start_time is not None)
    if end.certain:
        return _close(snapshot, attempt, end)
    late = _remaining(snapshot, snapshot.child, MESSAGE_GRACE)
    if late > 0 and not _collecting(snapshot.status.conditions):
        return AttemptResolution(_begun(snapshot, attempt, snapshot.child), verdict=_running(attempt), wait=late)
    return _collect(snapshot, attempt, end)


def _missing(snapshot: JobSnapshot, attempt: Attempt) -> AttemptResolution | None:
    if snapshot.child is not None:
        return None
    if attempt.start_time is not None:
        text = "Its Job was deleted while it ran."
        return _collect(snapshot, attempt, Termination("Lost", r.RUNNER_DISRUPTED, text))
    unseen = WATCH_LAG - seconds(attempt.create_time, snapshot.now) if attempt.create_time else 0.0
    if unseen > 0 and naming.attempt_name(snapshot.name, attempt.number) not in snapshot.foreign:
        return AttemptResolution(attempt, verdict=pending(snapshot, attempt.number), wait=unseen)
    return AttemptResolution(attempt, unstarted=True)


def _deleting(snapshot: JobSnapshot, attempt: Attempt) -> AttemptResolution | None:
    if snapshot.child is None or not snapshot.child.deleting:
        return None
    return _live(snapshot, attempt, snapshot.child)


def _ordered_before(snapshot: JobSnapshot, attempt: Attempt) -> AttemptResolution | None:
    """The order stands, also when its reason is gone: nobody knows whether the deletion was carried out already."""
    if snapshot.child is None or not ordered(attempt):
        return None
    return replace(
        _live(snapshot, attempt, snapshot.child), actions=(DeleteJob(snapshot.child.name, snapshot.child.uid),)
    )


def _stop(snapshot: JobSnapshot, attempt: Attempt) -> AttemptResolution | None:
    stop = snapshot.status.stop
    return _order(snapshot, attempt, "Stopped", r.STOPPED_BY_SWEEP, stop.reason) if stop else None


def _suspend(snapshot: JobSnapshot, attempt: Attempt) -> AttemptResolution | None:
    why = snapshot.suspended
    return _order(snapshot, attempt, "Suspended", why.reason, why.message) if why else None


def _deadline(snapshot: JobSnapshot, attempt: Attempt) -> AttemptResolution | None:
    left = _deadline_left(snapshot, attempt)
    if left is None or left > 0:
        return None
    limit = snapshot.job.spec.active_deadline_seconds
    return _order(snapshot, attempt, "Failed", r.DEADLINE_EXCEEDED, f"It ran longer than {limit} s in all.")


def _goes_on(snapshot: JobSnapshot, attempt: Attempt) -> AttemptResolution | None:
    assert snapshot.child is not None
    return _live(snapshot, attempt, snapshot.child)


CHAIN: tuple[Policy, ...] = (
    _closed,
    _succeeded,
    _ended_as_ordered,
    _ended,
    _missing,
    # From here on its Job is there and has not ended.
    _deleting,
    _ordered_before,
    _stop,
    _suspend,
    _deadline,
    _goes_on,
)


# Resolutions ---------------------------------------------------------------------------------------------------------


def ordered(attempt: Attempt) -> bool:
    """Whether we ordered the attempt's end; recorded before its Job is deleted."""
    return attempt.outcome in ("Suspended", "Stopped") or attempt.reason == r.DEADLINE_EXCEEDED


def _close(snapshot: JobSnapshot, attempt: Attempt, end: Termination) -> AttemptResolution:
    child = snapshot.child
    start = stamp(child.started_at) if child and child.started_at else attempt.start_time
    finish = stamp(child.finished_at) if child and child.finished_at else snapshot.now
    closed = attempt.model_copy(
        update={
            "outcome": end.outcome,
            "reason": end.reason,
            "message": cut(end.message) or None,
            "start_time": start,
            "finish_time": finish,
        }
    )
    return AttemptResolution(closed, end=end, ran=seconds(start, finish) if start else 0.0, result=end.result)


def _order(
    snapshot: JobSnapshot, attempt: Attempt, outcome: AttemptOutcome, reason: str, message: str
) -> AttemptResolution:
    assert snapshot.child is not None
    update = {"outcome": outcome, "reason": reason, "message": cut(message)}
    resolution = _live(snapshot, attempt.model_copy(update=update), snapshot.child)
    return replace(resolution, actions=(DeleteJob(snapshot.child.name, snapshot.child.uid),))


def _live(snapshot: JobSnapshot, attempt: Attempt, child: ObservedJob) -> AttemptResolution:
    """An attempt whose Job is there, ordered to end or not."""
    ran = 0.0
    if child.state == "running":
        attempt = _begun(snapshot, attempt, child)
    elif attempt.start_time is not None and not (child.deleting or ordered(attempt)):
        # A queue took its runner away; it starts again in the same Job. One that goes has run: it does not start anew.
        ran = seconds(attempt.start_time, snapshot.now)
        attempt = attempt.model_copy(update={"start_time": None})
    verdict = _running(attempt) if child.state == "running" else pending(snapshot, attempt.number, child)
    wait = None
    if attempt.outcome == "Suspended":
        ending = f"Attempt {attempt.number} is being stopped."
        if snapshot.suspended:
            verdict = Verdict("Suspended", r.SUSPENDED_BY_USER, snapshot.suspended.message)
        else:
            verdict = Verdict(
                "Pending", r.RESUMED, f"{ending} The next one goes on from its checkpoint.", reconciling=True
            )
    elif ordered(attempt):
        text = f"Attempt {attempt.number} is being stopped: {attempt.message}"
        verdict = Verdict("Running", attempt.reason or r.STOPPED_BY_SWEEP, text, reconciling=True)
    elif child.state == "running":
        wait = _deadline_left(snapshot, attempt)
    return AttemptResolution(attempt, verdict=verdict, wait=wait, ran=ran)


def _collect(snapshot: JobSnapshot, attempt: Attempt, otherwise: Termination) -> AttemptResolution:
    """Ask the store: a manifest is a success; without one the attempt ended as it looked."""
    since = _collecting(snapshot.status.conditions)
    attempt = _begun(snapshot, attempt, snapshot.child) if snapshot.child else attempt
    for round_ in range(1, COLLECT_ROUNDS + 1):
        name = naming.collect_name(snapshot.name, attempt.number, round_)
        if name in snapshot.foreign:
            break
        collect = snapshot.collect(round_)
        if collect is None:
            fresh = since is not None and round_ == 1 and seconds(since, snapshot.now) < WATCH_LAG
            request = run_request(snapshot.job, "collect", attempt.number, snapshot.owner)
            create = CreateJob(name, "collect", attempt.number, request)
            return _looking(snapshot, attempt, since, () if fresh else (create,))
        if not collect.terminal or collect.deleting:
            return _looking(snapshot, attempt, since, child=collect)
        result = read_result(collect)
        if result is None and (late := _remaining(snapshot, collect, MESSAGE_GRACE)) > 0:
            return _looking(snapshot, attempt, since, late=late)
        if result is None:
            continue
        if result.phase == "Succeeded":
            return _close(snapshot, attempt, Termination("Succeeded", r.SUCCEEDED, result.message, result=result))
        if result.phase == "NotFound":
            return _close(snapshot, attempt, otherwise)
        end = read_termination(collect, started=True)
        if end.outcome == "Invalid":
            return _close(snapshot, attempt, end)
    if (
        otherwise.reason == r.NOT_FOUND
    ):  # exit code 0 says that there is a manifest, and nothing says that there is none
        otherwise = Termination(
            "Lost", r.RUNNER_DISRUPTED, "It ended with exit code 0, but its manifest could not be looked for."
        )
    return _close(snapshot, attempt, otherwise)


def _looking(
    snapshot: JobSnapshot,
    attempt: Attempt,
    since: dt.datetime | None,
    actions: tuple[Action, ...] = (),
    late: float | None = None,
    child: ObservedJob | None = None,
) -> AttemptResolution:
    text = f"The runner of attempt {attempt.number} ended without a message; its manifest is being looked for."
    why, hindrance = pending_reason("The collect Job", child)
    text = text if why is None else f"{text} {hindrance}"
    spent = seconds(since, snapshot.now) if since else 0.0
    unseen = WATCH_LAG - spent if spent < WATCH_LAG else None
    return AttemptResolution(
        attempt,
        verdict=Verdict("Suspended" if snapshot.suspended else "Running", r.COLLECTING, text, reconciling=True),
        actions=actions,
        conditions=(ConditionUpdate(r.ARTIFACT_AVAILABLE, "Unknown", r.COLLECTING, text),),
        wait=soonest(late, unseen),
    )


def _collecting(conditions: list[Condition]) -> dt.datetime | None:
    condition = find(conditions, r.ARTIFACT_AVAILABLE)
    return condition.last_transition_time if condition and condition.reason == r.COLLECTING else None


def _running(attempt: Attempt) -> Verdict:
    return Verdict("Running", r.RUNNING, f"Attempt {attempt.number} runs.")


def _begun(snapshot: JobSnapshot, attempt: Attempt, child: ObservedJob) -> Attempt:
    start = stamp(child.started_at) if child.started_at else attempt.start_time or snapshot.now
    return attempt.model_copy(update={"start_time": start})


def _remaining(snapshot: JobSnapshot, child: ObservedJob, grace: float) -> float:
    return grace - seconds(stamp(child.finished_at), snapshot.now) if child.finished_at else 0.0


def _deadline_left(snapshot: JobSnapshot, attempt: Attempt) -> float | None:
    limit = snapshot.job.spec.active_deadline_seconds
    if limit is None or snapshot.child is None or snapshot.child.state != "running":
        return None
    start = _begun(snapshot, attempt, snapshot.child).start_time
    return limit - snapshot.status.active_seconds - (seconds(start, snapshot.now) if start else 0.0)
