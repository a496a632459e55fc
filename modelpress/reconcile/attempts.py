"""What became of the latest attempt: an ordered chain of policies over one child Job; the first that applies decides.

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
from .conditions import Verdict, Wanted, cut, find, seconds, soonest, stamp
from .ends import End, read, reported
from .facts import MESSAGE_PATIENCE, WATCH_LAG, JobFacts
from .model import Action, CreateJob, DeleteJob, ObservedJob
from .requests import run_request
from .waiting import waiting

COLLECT_ROUNDS = 3  # collect Jobs that may fail before the next attempt starts, whose runner finds a manifest itself


@dataclass(frozen=True)
class Step:
    """What a policy says of the latest attempt.

    Open: `verdict` and `actions` say how it goes on. Over: `end` is set. Vacant: its Job is not there and may be made.
    """

    attempt: Attempt
    verdict: Verdict | None = None
    end: End | None = None
    vacant: bool = False
    actions: tuple[Action, ...] = ()
    conditions: tuple[Wanted, ...] = ()
    wait: float | None = None
    ran: float = 0.0  # seconds of running time that ended with this step
    result: RunResult | None = None


Policy = Callable[[JobFacts, Attempt], Step | None]


def settle(facts: JobFacts) -> Step | None:
    """The first policy's word on the latest attempt; None if there is no attempt yet."""
    if facts.attempt is None:
        return None
    for policy in CHAIN:
        step = policy(facts, facts.attempt)
        if step is not None:
            return step
    raise AssertionError("the chain ends with a policy that always applies")


def pending(facts: JobFacts, number: int, child: ObservedJob | None = None) -> Verdict:
    """The verdict while an attempt's Job waits for its runner to start."""
    reason, text = waiting(f"Attempt {number}", child)
    before = next((old for old in (*facts.past, facts.attempt) if old and old.number == number - 1), None)
    if before is not None and before.outcome in ("Failed", "Disrupted", "Lost"):
        return Verdict("Pending", reason or r.RETRYING, f"{text} {described(before)}", between=True)
    return Verdict("Pending", reason or r.PENDING, text, between=True)


def described(attempt: Attempt) -> str:
    """How an attempt ended, as a sentence."""
    return cut(f"Attempt {attempt.number} ended with {attempt.reason or attempt.outcome}: {attempt.message or '-'}")


# The chain -----------------------------------------------------------------------------------------------------------


def _closed(facts: JobFacts, attempt: Attempt) -> Step | None:
    if attempt.finish_time is None:
        return None
    return Step(attempt, end=End(attempt.outcome, attempt.reason or attempt.outcome, attempt.message or ""))


def _succeeded(facts: JobFacts, attempt: Attempt) -> Step | None:
    """A committed manifest is a success, whatever else was ordered or went wrong meanwhile."""
    if facts.child is not None and facts.child.terminal:
        end = read(facts.child, started=attempt.start_time is not None)
        if end.outcome == "Succeeded":
            return _close(facts, attempt, end)
    return None


def _ended_as_ordered(facts: JobFacts, attempt: Attempt) -> Step | None:
    """Its end was ours: neither a failure nor a disruption."""
    if not ordered(attempt) or (facts.child is not None and not facts.child.terminal):
        return None
    if facts.child is None and attempt.start_time is None:
        return Step(attempt, vacant=True)
    return _close(facts, attempt, End(attempt.outcome, attempt.reason or attempt.outcome, attempt.message or ""))


def _ended(facts: JobFacts, attempt: Attempt) -> Step | None:
    if facts.child is None or not facts.child.terminal:
        return None
    end = read(facts.child, started=attempt.start_time is not None)
    if end.certain:
        return _close(facts, attempt, end)
    late = _remaining(facts, facts.child, MESSAGE_PATIENCE)
    if late > 0 and not _collecting(facts.status.conditions):
        return Step(_begun(facts, attempt, facts.child), verdict=_running(attempt), wait=late)
    return _collect(facts, attempt, end)


def _missing(facts: JobFacts, attempt: Attempt) -> Step | None:
    if facts.child is not None:
        return None
    if attempt.start_time is not None:
        text = "Its Job was deleted while it ran."
        return _collect(facts, attempt, End("Lost", r.RUNNER_DISRUPTED, text))
    unseen = WATCH_LAG - seconds(attempt.create_time, facts.now) if attempt.create_time else 0.0
    if unseen > 0 and naming.attempt_name(facts.name, attempt.number) not in facts.foreign:
        return Step(attempt, verdict=pending(facts, attempt.number), wait=unseen)
    return Step(attempt, vacant=True)


def _deleting(facts: JobFacts, attempt: Attempt) -> Step | None:
    if facts.child is None or not facts.child.deleting:
        return None
    return _live(facts, attempt, facts.child)


def _ordered_before(facts: JobFacts, attempt: Attempt) -> Step | None:
    """The order stands, also when its reason is gone: nobody knows whether the deletion was carried out already."""
    if facts.child is None or not ordered(attempt):
        return None
    return replace(_live(facts, attempt, facts.child), actions=(DeleteJob(facts.child.name, facts.child.uid),))


def _stop(facts: JobFacts, attempt: Attempt) -> Step | None:
    stop = facts.status.stop
    return _order(facts, attempt, "Stopped", r.STOPPED_BY_SWEEP, stop.reason) if stop else None


def _suspend(facts: JobFacts, attempt: Attempt) -> Step | None:
    why = facts.suspended
    return _order(facts, attempt, "Suspended", why.reason, why.message) if why else None


def _deadline(facts: JobFacts, attempt: Attempt) -> Step | None:
    left = _deadline_left(facts, attempt)
    if left is None or left > 0:
        return None
    limit = facts.job.spec.active_deadline_seconds
    return _order(facts, attempt, "Failed", r.DEADLINE_EXCEEDED, f"It ran longer than {limit} s in all.")


def _goes_on(facts: JobFacts, attempt: Attempt) -> Step | None:
    assert facts.child is not None
    return _live(facts, attempt, facts.child)


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


# Steps ---------------------------------------------------------------------------------------------------------------


def ordered(attempt: Attempt) -> bool:
    """Whether we ordered the attempt's end; recorded before its Job is deleted."""
    return attempt.outcome in ("Suspended", "Stopped") or attempt.reason == r.DEADLINE_EXCEEDED


def _close(facts: JobFacts, attempt: Attempt, end: End) -> Step:
    child = facts.child
    start = stamp(child.started_at) if child and child.started_at else attempt.start_time
    finish = stamp(child.finished_at) if child and child.finished_at else facts.now
    closed = attempt.model_copy(
        update={
            "outcome": end.outcome,
            "reason": end.reason,
            "message": cut(end.message) or None,
            "start_time": start,
            "finish_time": finish,
        }
    )
    return Step(closed, end=end, ran=seconds(start, finish) if start else 0.0, result=end.result)


def _order(facts: JobFacts, attempt: Attempt, outcome: AttemptOutcome, reason: str, message: str) -> Step:
    assert facts.child is not None
    update = {"outcome": outcome, "reason": reason, "message": cut(message)}
    step = _live(facts, attempt.model_copy(update=update), facts.child)
    return replace(step, actions=(DeleteJob(facts.child.name, facts.child.uid),))


def _live(facts: JobFacts, attempt: Attempt, child: ObservedJob) -> Step:
    """An attempt whose Job is there, ordered to end or not."""
    ran = 0.0
    if child.state == "running":
        attempt = _begun(facts, attempt, child)
    elif attempt.start_time is not None:  # a queue took its runner away; it starts again in the same Job
        ran = seconds(attempt.start_time, facts.now)
        attempt = attempt.model_copy(update={"start_time": None})
    verdict = _running(attempt) if child.state == "running" else pending(facts, attempt.number, child)
    wait = None
    if attempt.outcome == "Suspended":
        ending = f"Attempt {attempt.number} is being stopped."
        if facts.suspended:
            verdict = Verdict("Suspended", r.SUSPENDED_BY_USER, facts.suspended.message)
        else:
            verdict = Verdict("Pending", r.RESUMED, f"{ending} The next one goes on from its checkpoint.", between=True)
    elif ordered(attempt):
        text = f"Attempt {attempt.number} is being stopped: {attempt.message}"
        verdict = Verdict("Running", attempt.reason or r.STOPPED_BY_SWEEP, text, between=True)
    elif child.state == "running":
        wait = _deadline_left(facts, attempt)
    return Step(attempt, verdict=verdict, wait=wait, ran=ran)


def _collect(facts: JobFacts, attempt: Attempt, otherwise: End) -> Step:
    """Ask the store: a manifest is a success; without one the attempt ended as it looked."""
    since = _collecting(facts.status.conditions)
    attempt = _begun(facts, attempt, facts.child) if facts.child else attempt
    for round_ in range(1, COLLECT_ROUNDS + 1):
        name = naming.collect_name(facts.name, attempt.number, round_)
        if name in facts.foreign:
            break
        collect = facts.collect(round_)
        if collect is None:
            fresh = since is not None and round_ == 1 and seconds(since, facts.now) < WATCH_LAG
            request = run_request(facts.job, "collect", attempt.number, facts.owner)
            create = CreateJob(name, "collect", attempt.number, request)
            return _looking(facts, attempt, since, () if fresh else (create,))
        if not collect.terminal or collect.deleting:
            return _looking(facts, attempt, since, child=collect)
        result = reported(collect)
        if result is None and (late := _remaining(facts, collect, MESSAGE_PATIENCE)) > 0:
            return _looking(facts, attempt, since, late=late)
        if result is None:
            continue
        if result.phase == "Succeeded":
            return _close(facts, attempt, End("Succeeded", r.SUCCEEDED, result.message, result=result))
        if result.phase == "NotFound":
            return _close(facts, attempt, otherwise)
        end = read(collect, started=True)
        if end.outcome == "Invalid":
            return _close(facts, attempt, end)
    if (
        otherwise.reason == r.NOT_FOUND
    ):  # exit code 0 says that there is a manifest, and nothing says that there is none
        otherwise = End(
            "Lost", r.RUNNER_DISRUPTED, "It ended with exit code 0, but its manifest could not be looked for."
        )
    return _close(facts, attempt, otherwise)


def _looking(
    facts: JobFacts,
    attempt: Attempt,
    since: dt.datetime | None,
    actions: tuple[Action, ...] = (),
    late: float | None = None,
    child: ObservedJob | None = None,
) -> Step:
    text = f"The runner of attempt {attempt.number} ended without a message; its manifest is being looked for."
    why, hindrance = waiting("The collect Job", child)
    text = text if why is None else f"{text} {hindrance}"
    spent = seconds(since, facts.now) if since else 0.0
    unseen = WATCH_LAG - spent if spent < WATCH_LAG else None
    return Step(
        attempt,
        verdict=Verdict("Suspended" if facts.suspended else "Running", r.COLLECTING, text, between=True),
        actions=actions,
        conditions=(Wanted(r.ARTIFACT_AVAILABLE, "Unknown", r.COLLECTING, text),),
        wait=soonest(late, unseen),
    )


def _collecting(conditions: list[Condition]) -> dt.datetime | None:
    condition = find(conditions, r.ARTIFACT_AVAILABLE)
    return condition.last_transition_time if condition and condition.reason == r.COLLECTING else None


def _running(attempt: Attempt) -> Verdict:
    return Verdict("Running", r.RUNNING, f"Attempt {attempt.number} runs.")


def _begun(facts: JobFacts, attempt: Attempt, child: ObservedJob) -> Attempt:
    start = stamp(child.started_at) if child.started_at else attempt.start_time or facts.now
    return attempt.model_copy(update={"start_time": start})


def _remaining(facts: JobFacts, child: ObservedJob, patience: float) -> float:
    return patience - seconds(stamp(child.finished_at), facts.now) if child.finished_at else 0.0


def _deadline_left(facts: JobFacts, attempt: Attempt) -> float | None:
    limit = facts.job.spec.active_deadline_seconds
    if limit is None or facts.child is None or facts.child.state != "running":
        return None
    start = _begun(facts, attempt, facts.child).start_time
    return limit - facts.status.active_seconds - (seconds(start, facts.now) if start else 0.0)
