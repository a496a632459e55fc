"""Reconcile a CompressionJob: settle the latest attempt, then let an ordered chain of policies say what comes next.

Every plan that does anything begins with PatchStatus, also when the status stays the same: the patch is refused when
the object changed since it was observed, and the shell then drops the rest. So nothing is done on an old view of the
object, and what a child is for is written down before it exists.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from modelpress.api.v1alpha1 import TERMINAL_PHASES, Artifact, Attempt, MetricsPair
from modelpress.api.v1alpha1 import reasons as r
from modelpress.result import RunResult

from . import naming
from .attempts import Step, described, pending, settle
from .conditions import Verdict, Wanted, cut, merge, seconds, stamp, summary, transition
from .facts import WATCH_LAG, JobFacts, job_facts
from .fence import fenced
from .model import Action, CreateJob, DeleteJob, JobObserved, ObservedJob, Plan
from .requests import artifact_uri, kept_metrics, place, resolved, run_request, unfit

MAX_ATTEMPTS = 8  # attempts that status lists
MAX_METRICS = 64  # metrics that status lists on either side


def reconcile_job(observed: JobObserved, now: dt.datetime) -> Plan:
    """What to do about a CompressionJob: create, delete, record.

    A plan's actions are to be carried out in order, and none after one that failed. Any number of them may be lost: the
    next call, on what was observed then, makes up for it. Reconciling the outcome of a plan gives no further actions.
    """
    if observed.job.metadata.deletion_timestamp is not None:
        return Plan()  # its children go with it
    facts = job_facts(observed, now)
    if facts.status.phase in TERMINAL_PHASES:
        return _tidy(facts)
    return _advance(facts)


@dataclass(frozen=True)
class Books:
    """The job's account after its latest attempt was settled."""

    facts: JobFacts
    step: Step | None
    failures: int
    disruptions: int
    active_seconds: float
    strays: tuple[ObservedJob, ...]

    @property
    def attempt(self) -> Attempt | None:
        """The latest attempt as it is recorded from now on."""
        return self.step.attempt if self.step else None

    @property
    def number(self) -> int:
        """The number that the next Job of the job gets: a vacant attempt's own, else a new one."""
        return self.facts.started if self.step and self.step.vacant else self.facts.started + 1

    @property
    def last(self) -> str:
        """How the latest attempt ended, as a sentence."""
        return described(self.attempt) if self.attempt else ""


Policy = Callable[[Books], Verdict | None]


# Ends: the first that applies is the job's last word -----------------------------------------------------------------


def _succeeded(books: Books) -> Verdict | None:
    if books.step is None or books.step.end is None or books.step.end.outcome != "Succeeded":
        return None
    return Verdict("Succeeded", r.SUCCEEDED, f"Attempt {books.facts.started} committed its manifest.")


def _invalid(books: Books) -> Verdict | None:
    if books.step is None or books.step.end is None or books.step.end.outcome != "Invalid":
        return None
    return Verdict("Failed", books.step.end.reason, books.step.end.message)


def _stopped(books: Books) -> Verdict | None:
    stop = books.facts.status.stop
    return Verdict("Stopped", r.STOPPED_BY_SWEEP, f"The sweep stopped this trial: {stop.reason}.") if stop else None


def _past_deadline(books: Books) -> Verdict | None:
    limit = books.facts.job.spec.active_deadline_seconds
    ordered = books.attempt is not None and books.attempt.reason == r.DEADLINE_EXCEEDED
    if limit is None or (books.active_seconds < limit and not ordered):
        return None
    text = (
        f"The runners ran {books.active_seconds:.0f} s, spec.activeDeadlineSeconds is {limit}; raise it in a new job."
    )
    return Verdict("Failed", r.DEADLINE_EXCEEDED, text)


def _past_backoff(books: Books) -> Verdict | None:
    limit = books.facts.job.spec.backoff_limit
    if books.failures <= limit:
        return None
    return Verdict(
        "Failed",
        r.BACKOFF_LIMIT_EXCEEDED,
        f"Attempts that failed: {books.failures}, spec.backoffLimit is {limit}. {books.last}",
    )


def _past_disruptions(books: Books) -> Verdict | None:
    limit = books.facts.job.spec.max_disruptions
    if books.disruptions <= limit:
        return None
    text = f"Attempts that were disrupted: {books.disruptions}, spec.maxDisruptions is {limit}. {books.last}"
    return Verdict("Failed", r.TOO_MANY_DISRUPTIONS, text)


ENDS: tuple[Policy, ...] = (_succeeded, _invalid, _stopped, _past_deadline, _past_backoff, _past_disruptions)


# Holds: the first that applies keeps the next attempt from starting --------------------------------------------------


def _forged(books: Books) -> Verdict | None:
    """A job that says that it is a sweep's and is not known as that sweep's trial."""
    facts, owner = books.facts, books.facts.owner
    record = facts.status.trial
    if owner is None or (record.sweep == owner.uid if record is not None else not owner.records):
        return None
    made = facts.job.metadata.creation_timestamp
    if record is None and made is not None and seconds(stamp(made), facts.now) < WATCH_LAG:
        text = f"The CompressionSweep {owner.name} has yet to take it up as a trial."
        return Verdict("Pending", r.PENDING, text, between=True)
    text = f"It names the CompressionSweep {owner.name} as its controller, and is no trial of it; delete it."
    return Verdict("Pending", r.FORGED_TRIAL, text, stalled=True)


def _suspended(books: Books) -> Verdict | None:
    return books.facts.suspended


def _invalid_spec(books: Books) -> Verdict | None:
    problems = books.facts.problems
    if not problems:
        return None
    return Verdict("Pending", books.facts.problems_reason, _problems(problems), stalled=True)


def _unfit(books: Books) -> Verdict | None:
    why = unfit(run_request(books.facts.job, "trial", books.number, books.facts.owner))
    return Verdict("Pending", why[0], why[1], stalled=True) if why else None


def _name_conflict(books: Books) -> Verdict | None:
    name = naming.attempt_name(books.facts.name, books.number)
    other = books.facts.foreign.get(name)
    if other is None:
        return None
    if other.deleting:
        return Verdict("Pending", r.PENDING, f"The Job {name} of a former owner is being deleted.", between=True)
    text = f"The Job {name} belongs to somebody else; delete it, or give this job another name."
    return Verdict("Pending", r.NAME_CONFLICT, text, stalled=True)


def _strays(books: Books) -> Verdict | None:
    """One live runner at a time: a Job that should not run must be gone before another one starts."""
    trials = [child for child in books.strays if child.purpose == "trial"]
    if not trials:
        return None
    text = f"The Job {trials[0].name} still runs and is being deleted."
    return Verdict("Pending", r.PENDING, text, between=True)


HOLDS: tuple[Policy, ...] = (_forged, _suspended, _invalid_spec, _unfit, _name_conflict, _strays)


def _account(facts: JobFacts, step: Step | None) -> Books:
    status = facts.status
    failures, disruptions, active = status.failures, status.disruptions, status.active_seconds
    if step is not None:
        active += step.ran
        closes = facts.attempt is not None and facts.attempt.finish_time is None
        if step.end is not None and closes and step.end.reason != r.DEADLINE_EXCEEDED:
            failures += step.end.outcome == "Failed"
            disruptions += step.end.outcome in ("Disrupted", "Lost")
    return Books(facts, step, failures, disruptions, round(active, 3), _stray(facts, step))


def _first(chain: tuple[Policy, ...], books: Books) -> Verdict | None:
    return next((verdict for policy in chain if (verdict := policy(books)) is not None), None)


# Plans ---------------------------------------------------------------------------------------------------------------


def _advance(facts: JobFacts) -> Plan:
    step = settle(facts)
    books = _account(facts, step)
    ending = [*books.strays, *(child for child in facts.ours if child.deserted)]
    actions: list[Action] = [DeleteJob(child.name, child.uid) for child in ending if not child.deleting]
    attempt, started, wait = books.attempt, facts.started, None
    extra: list[Wanted] = []
    if step is not None and step.verdict is not None:
        verdict, wait = step.verdict, step.wait
        actions += step.actions
        extra += step.conditions
    elif final := _first(ENDS, books):
        verdict = final
        attempt = _abandoned(books, final)
        extra += _outcome(facts, step.result if step else None, final)
    elif hold := _first(HOLDS, books):
        verdict = hold
        wait = WATCH_LAG if hold.between else None
        if step is not None and step.vacant and hold.phase == "Suspended":
            attempt = step.attempt.model_copy(update={"outcome": "Suspended", "reason": hold.reason})
    else:
        number = books.number
        name = naming.attempt_name(facts.name, number)
        verdict = pending(_after(facts, books), number)
        actions.append(CreateJob(name, "trial", number, run_request(facts.job, "trial", number, facts.owner)))
        new = Attempt(number=number, outcome="Running", create_time=facts.now)
        past = facts.past if step is None or step.vacant else (*facts.past, step.attempt)
        return _plan(facts, books, verdict, (*past, new), number, actions, extra, WATCH_LAG)
    attempts = (*facts.past, attempt) if attempt else facts.past
    return _plan(facts, books, verdict, attempts, started, actions, extra, wait)


def _plan(
    facts: JobFacts,
    books: Books,
    verdict: Verdict,
    attempts: tuple[Attempt, ...],
    started: int,
    actions: list[Action],
    extra: list[Wanted],
    wait: float | None,
) -> Plan:
    old = facts.status
    terminal = verdict.phase in TERMINAL_PHASES
    wanted = [*summary(verdict, None if terminal else facts.suspended, old.conditions), *extra]
    update: dict[str, object] = {
        "observed_generation": facts.generation,
        "phase": verdict.phase,
        "conditions": merge(old.conditions, wanted, facts.now, facts.generation),
        "attempts": list(attempts[-MAX_ATTEMPTS:]),
        "started": started,
        "failures": books.failures,
        "disruptions": books.disruptions,
        "active_seconds": books.active_seconds,
        "start_time": old.start_time or (_first_start(attempts) or facts.now if started else None),
    }
    if terminal:
        update["completion_time"] = facts.now
        update |= _recorded(facts, books)
        ttl = facts.job.spec.ttl_seconds_after_finished
        wait = float(ttl) if ttl and facts.ours else None
        if ttl == 0:  # recorded above, so that nothing keeps them
            actions = [
                *actions,
                *(DeleteJob(job.name, job.uid) for job in facts.ours if job.terminal and not job.deleting),
            ]
    return fenced(
        facts.status, old.model_copy(update=update), actions, transition(old.conditions, old.phase, verdict), wait
    )


def _first_start(attempts: tuple[Attempt, ...]) -> dt.datetime | None:
    """When the first attempt was decided on, or began: its Job may be older than the first status."""
    return attempts[0].create_time or attempts[0].start_time


def _tidy(facts: JobFacts) -> Plan:
    """A finished job: nothing of it may run on, and its finished Jobs go after ttlSecondsAfterFinished."""
    status = facts.status
    ttl = facts.job.spec.ttl_seconds_after_finished
    left = (
        None if ttl is None else ttl - (seconds(status.completion_time, facts.now) if status.completion_time else ttl)
    )
    late = left is not None and left <= 0
    due = [child for child in facts.ours if not child.deleting and (not child.terminal or child.deserted or late)]
    kept = [child for child in facts.ours if not child.deleting and child not in due]
    if status.observed_generation != facts.generation:
        seen = {"observed_generation": facts.generation}
        conditions = [condition.model_copy(update=seen) for condition in status.conditions]
        status = status.model_copy(update={**seen, "conditions": conditions})
    actions: list[Action] = [DeleteJob(child.name, child.uid) for child in due]
    return fenced(facts.status, status, actions, [], left if kept and left is not None and left > 0 else None)


def _stray(facts: JobFacts, step: Step | None) -> tuple[ObservedJob, ...]:
    """Live children that have no place: of a closed or another attempt, or looking for what was found."""
    live = [child for child in facts.ours if not child.terminal]
    if step is None or step.end is not None:
        return tuple(live)
    looking = any(condition.reason == r.COLLECTING for condition in step.conditions)
    return tuple(
        child
        for child in live
        if child is not facts.child and not (child.purpose == "collect" and looking and child.attempt == facts.started)
    )


def _after(facts: JobFacts, books: Books) -> JobFacts:
    """The facts as the next attempt sees them, for the sentence about the one before."""
    if books.step is None or books.step.vacant:
        return facts
    return JobFacts(**{**vars(facts), "past": (*facts.past, books.step.attempt), "attempt": None})


def _abandoned(books: Books, final: Verdict) -> Attempt | None:
    """The latest attempt of a job that ends: one that never ran ends with it."""
    if books.step is None or not books.step.vacant:
        return books.attempt
    update = {
        "outcome": "Stopped" if final.phase == "Stopped" else "Failed",
        "reason": final.reason,
        "finish_time": books.facts.now,
    }
    return books.step.attempt.model_copy(update=update)


# What a finished job's status says -----------------------------------------------------------------------------------


def _recorded(facts: JobFacts, books: Books) -> dict[str, object]:
    result = books.step.result if books.step else None
    if result is None or result.phase != "Succeeded" or result.manifest_digest is None:
        return {}
    uri = artifact_uri(resolved(facts.job.spec), place(facts.job).prefix)
    return {
        "metrics": MetricsPair(
            baseline=_listed(result.baseline, kept_metrics(facts.job, facts.owner)),
            compressed=_listed(result.compressed, kept_metrics(facts.job, facts.owner)),
        ),
        "code_digest": result.code_digest[:64] if result.code_digest else None,
        "artifact": Artifact(uri=uri, manifest_digest=result.manifest_digest),
    }


def _listed(metrics: Mapping[str, float], keep: Sequence[str]) -> dict[str, float]:
    """As many as a status lists, those that must be there first."""
    ordered = {name: metrics[name] for name in keep if name in metrics} | dict(metrics)
    return dict(list(ordered.items())[:MAX_METRICS])


def _outcome(facts: JobFacts, result: RunResult | None, final: Verdict) -> list[Wanted]:
    """The conditions that only a finished job has."""
    if final.phase != "Succeeded" or result is None:
        return [Wanted(r.ARTIFACT_AVAILABLE, "False", final.reason)]
    uri = artifact_uri(resolved(facts.job.spec), place(facts.job).prefix)
    out = [Wanted(r.ARTIFACT_AVAILABLE, "True", r.COMMITTED, f"The model is at {uri}.")]
    match result.constraints_met:
        case None:
            out.append(Wanted(r.CONSTRAINTS_MET, "True", r.NO_CONSTRAINTS))
        case True:
            out.append(Wanted(r.CONSTRAINTS_MET, "True", r.CONSTRAINTS_SATISFIED))
        case False:
            out.append(Wanted(r.CONSTRAINTS_MET, "False", r.CONSTRAINT_MISSED, cut(" ".join(result.unmet))))
    if result.smaller is not None:
        reason = r.SMALLER_OR_FASTER if result.smaller else r.NOTHING_SMALLER
        text = "" if result.smaller else "No measured number is smaller or faster than the dense model's."
        out.append(Wanted(r.COMPRESSED, "True" if result.smaller else "False", reason, text))
    if result.portable is not None:
        reason = r.EXPORTED if result.portable else r.EXPORT_FAILED
        text = "" if result.portable else result.portable_reason or "The model does not export."
        out.append(Wanted(r.PORTABLE, "True" if result.portable else "False", reason, text))
    return out


def _problems(problems: tuple[str, ...]) -> str:
    return cut("; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else ""))
