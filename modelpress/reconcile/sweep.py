"""Reconcile a CompressionSweep: prepare once, keep `parallelism` trials going until something ends it, publish once.

As for a job, every plan that does anything begins with PatchStatus: `created` counts a trial before it exists, so that
whatever is lost behind it, no trial is ever made twice. Only trials that were all seen, or given up after a while, let
the next ones start: a trial that the watch has not told yet is neither lost nor forgotten in a history.
"""

from __future__ import annotations

import datetime as dt
import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from modelpress.api.v1alpha1 import (
    TERMINAL_PHASES,
    Artifact,
    CompressionJob,
    CompressionJobStatus,
    OwnerReference,
    TrialRecord,
    TrialResult,
)
from modelpress.api.v1alpha1 import reasons as r
from modelpress.api.v1alpha1.base import API_VERSION
from modelpress.api.v1alpha1.meta import JobMeta
from modelpress.request import PublishRequest
from modelpress.trials import (
    HISTORY_ANNOTATION,
    PARAMETERS_ANNOTATION,
    SCREENED_ANNOTATION,
    SHARED_STAGES_ANNOTATION,
    SWEEP_LABEL,
    TRIAL_LABEL,
    History,
    Strategy,
    Suggestion,
    decode_ranges,
    encode_ranges,
)

from . import naming, suggesting
from .admission import MAX_REPLAYED, keeps_records, replayed, unproven
from .auxiliary_jobs import AuxiliaryJob, run_auxiliary_job
from .conditions import ConditionUpdate, Verdict, cut, find, merge, seconds, soonest, summary, transition
from .job_snapshot import WATCH_LAG
from .model import Action, AdmitTrial, CreateTrial, DeleteJob, EmitEvent, Plan, StopTrial, SweepObserved
from .precondition import conditional_plan
from .requests import artifact_uri, resolved, sweep_root
from .sweep_snapshot import SweepSnapshot, code_digest, sweep_snapshot

MAX_FRONT = 500  # numbers of the front in status; the publish Job gets all
MAX_REFUSED = 8192  # characters of the refused trials' numbers in status
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


@dataclass
class StatusDraft:
    """The next status in the making, and what goes with it."""

    snapshot: SweepSnapshot
    strategy: Strategy
    best: TrialResult | None
    front: list[int]
    created: int
    refused: int
    exhausted: bool
    going_on: dict[int, int]  # with screening, trials of the second rung, and those of the first that they go on from
    asking: Verdict | None = None  # what is said while a runner is asked for a trial's parameters
    new: int = 0
    update: dict[str, object] = field(default_factory=dict)
    actions: list[Action] = field(default_factory=list)
    events: list[EmitEvent] = field(default_factory=list)
    conditions: list[ConditionUpdate] = field(default_factory=list)
    wait: float | None = None

    @property
    def winner(self) -> TrialResult | None:
        """The best trial that meets the constraints."""
        return self.best if self.best is not None and self.best.feasible else None

    @property
    def searched(self) -> int:
        """Trials that count against maxTrials: those that the search gave."""
        return self.created - len(self.going_on)

    @property
    def over(self) -> bool:
        """Whether the search gives no further trial."""
        return self.searched >= self.snapshot.sweep.spec.max_trials or self.exhausted

    def take_over(self, auxiliary: AuxiliaryJob, field_: str) -> None:
        """Take over where a prepare or publish Job stands."""
        self.update[field_] = auxiliary.attempts
        if auxiliary.actions:
            # No trial is awaited at this point: the time is this Job's now.
            self.update |= {"last_create_time": self.snapshot.now, "confirmed": self.created}
        self.actions += auxiliary.actions
        self.wait = soonest(self.wait, auxiliary.wait)


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
    if ending is None and snapshot.awaited == 0 and (conflict := _fill(draft)):
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
        front=_front(draft),
        keep=snapshot.sweep.spec.artifacts.keep,
        screening=draft.strategy.rungs(snapshot.succeeded, draft.going_on) if draft.going_on else None,
    )
    auxiliary = run_auxiliary_job(
        snapshot, "publish", snapshot.status.publish_attempts, snapshot.status.publish_base, request
    )
    draft.take_over(auxiliary, "publish_attempts")
    if auxiliary.verdict is not None:
        return auxiliary.verdict
    _published(draft, auxiliary)
    return None


def _ended(draft: StatusDraft) -> Verdict:
    """The final verdict on the sweep."""
    snapshot, ending = draft.snapshot, end_of_search(draft)
    assert ending is not None, "a search without running trials either goes on or has ended"
    if ending.reason == r.TOO_MANY_FAILED_TRIALS:
        return ending
    if not snapshot.succeeded:
        return Verdict("Failed", r.NO_RESULT, f"No trial succeeded. {ending.message}")
    draft.conditions += _judged(draft)
    return ending


CHAIN: tuple[Policy, ...] = (_invalid_spec, _suspended, _prepare, _trials, _publish, _ended)


def end_of_search(draft: StatusDraft) -> Verdict | None:
    """Why no further trial starts, as the sweep will say when it is over; None while there may be more."""
    snapshot, spec = draft.snapshot, draft.snapshot.sweep.spec
    failed = snapshot.seen.failed + draft.refused
    if failed > spec.max_failed_trials:
        refused = f" ({draft.refused} refused)" if draft.refused else ""
        text = f"{failed} trials failed{refused}, spec.maxFailedTrials is {spec.max_failed_trials}."
        return Verdict("Failed", r.TOO_MANY_FAILED_TRIALS, text)
    unanswered = suggesting.asked(snapshot, draft.created).failed
    if unanswered is not None:
        return Verdict("Failed", r.SUGGESTION_FAILED, unanswered)
    over = draft.over
    budget = snapshot.budget_left(snapshot.now)
    if budget and budget[0] <= 0 and (not over or snapshot.live or snapshot.awaited or _stopped_for_budget(snapshot)):
        return Verdict("Succeeded", r.BUDGET_EXHAUSTED, f"spec.budget.{budget[1]} is used up.")
    if over and spec.screening is not None and (_unsettled(draft) or _to_go_on(draft)):
        return None
    gone_on = f" {len(draft.going_on)} of them went on to the end." if spec.screening is not None else ""
    if draft.searched >= spec.max_trials:
        return Verdict("Succeeded", r.TRIALS_FINISHED, f"All {spec.max_trials} trials are over.{gone_on}")
    if draft.exhausted:
        text = f"The search space holds no further recipe; {draft.searched} were tried.{gone_on}"
        return Verdict("Succeeded", r.SPACE_EXHAUSTED, text)
    return None


def _unsettled(draft: StatusDraft) -> bool:
    """Whether a trial of the first rung is not over, or one was just decided on."""
    snapshot = draft.snapshot
    return draft.new > 0 or snapshot.awaited > 0 or any(number not in draft.going_on for number in snapshot.live)


def _to_go_on(draft: StatusDraft) -> list[int]:
    """The trials of the first rung that are to go on and do not yet, best first."""
    gone = set(draft.going_on.values())
    return [number for number in draft.strategy.promoted(draft.snapshot.succeeded) if number not in gone]


def _stopped_for_budget(snapshot: SweepSnapshot) -> bool:
    stops = (snapshot.trials[number].status.stop for number in snapshot.finished)
    return any(stop is not None and stop.reason == r.BUDGET_EXHAUSTED for stop in stops)


def needs_prepare(snapshot: SweepSnapshot) -> bool:
    """Whether all trials start from one dense model."""
    paths = (path for parameter in snapshot.sweep.spec.search_space for path in parameter.paths)
    return not any(path == "/model" or path.startswith("/model/") for path in paths)


# Trials --------------------------------------------------------------------------------------------------------------


def _fill(draft: StatusDraft) -> Verdict | None:
    """Decide on as many trials as there are free places; a verdict if a name is taken."""
    snapshot, spec = draft.snapshot, draft.snapshot.sweep.spec
    free = spec.parallelism - len(snapshot.live)
    if free <= 0:
        return None
    trials = dict(snapshot.trials)
    running = list(snapshot.live)
    finished = History(snapshot.finished).encode()  # encoded once: it is the same for the whole batch
    refused: list[int] = []
    message = snapshot.status.refused_message
    first = draft.created
    conflict: Verdict | None = None
    while draft.new < free and end_of_search(draft) is None:
        number = draft.created
        name = naming.trial_name(snapshot.sweep.metadata.name, number)
        second = draft.over and spec.screening is not None
        waiting = _to_go_on(draft) if second else []
        if second and (not waiting or any(other not in draft.going_on for other in running)):
            break  # all went on, or the first rung is not over yet
        if (conflict := _conflict(snapshot, name)) is not None:
            draft.wait = soonest(draft.wait, WATCH_LAG)
            break
        history, screened = History(snapshot.finished, tuple(running)), None
        told = finished + encode_ranges(running)
        if second:
            screened = waiting[0]
            suggestion = draft.strategy.promotion(screened, history, trials)
            assert suggestion is not None, "it is one of those that the search named"
            draft.going_on[number] = screened
        else:
            if (based := suggesting.answered_history(snapshot, number)) is not None:
                history, told = based, based.encode()
            suggestion = suggesting.suggest(snapshot, draft.strategy, number, history, trials)
        if suggestion.question is not None:
            draft.asking, jobs, wait = suggesting.ask(snapshot, number, suggestion.question)
            draft.actions += jobs
            draft.wait = soonest(draft.wait, wait)
            break
        if suggestion.exhausted:
            draft.exhausted = True
            continue
        draft.created += 1
        if suggestion.spec is None:
            refused.append(number)
            draft.refused += 1
            message = cut(f"Trial {number}: {suggestion.problem or 'its parameters give no valid recipe'}")
            continue
        trial = _trial(snapshot, name, number, suggestion, told, screened)
        draft.actions.append(CreateTrial(trial))
        draft.new += 1
        trials[number] = trial
        running.append(number)
    if draft.created > first:
        draft.update |= {"confirmed": first, "last_create_time": snapshot.now}
        draft.wait = soonest(draft.wait, WATCH_LAG)
    if refused:
        numbers = [*decode_ranges(snapshot.status.refused), *refused]
        draft.update |= {"refused": _bounded(encode_ranges(numbers)), "refused_message": message}
        draft.events.append(EmitEvent("Warning", r.TRIAL_REFUSED, message or ""))
    return conflict if not draft.new and not snapshot.live else None


def _trial(
    snapshot: SweepSnapshot, name: str, number: int, suggestion: Suggestion, history: str, screened: int | None
) -> CompressionJob:
    meta = snapshot.sweep.metadata
    assert suggestion.spec is not None
    return CompressionJob(
        metadata=JobMeta(
            name=name,
            namespace=meta.namespace,
            labels={TRIAL_LABEL: str(number), SWEEP_LABEL: meta.name},
            annotations={
                PARAMETERS_ANNOTATION: json.dumps(dict(suggestion.parameters), sort_keys=True),
                HISTORY_ANNOTATION: history,
                **({SHARED_STAGES_ANNOTATION: str(shared)} if (shared := suggestion.shared_stages) else {}),
                **({SCREENED_ANNOTATION: str(screened)} if screened is not None else {}),
            },
            owner_references=[
                OwnerReference(
                    api_version=API_VERSION,
                    kind="CompressionSweep",
                    name=meta.name,
                    uid=meta.uid or "",
                    controller=True,
                )
            ],
        ),
        spec=suggestion.spec.model_copy(update={"suspend": False}),
        status=CompressionJobStatus(
            trial=TrialRecord(
                sweep=meta.uid or "", number=number, parameters=dict(suggestion.parameters), screened=screened
            )
        ),
    )


def _conflict(snapshot: SweepSnapshot, name: str) -> Verdict | None:
    other = snapshot.foreign_trials.get(name)
    if other is None:
        return None
    if other.metadata.deletion_timestamp is not None:
        text = f"The CompressionJob {name} of a former owner is being deleted."
        return Verdict("Pending", r.PENDING, text, reconciling=True)
    text = f"The CompressionJob {name} belongs to somebody else; delete it, or give this sweep another name."
    return Verdict("Pending", r.NAME_CONFLICT, text, stalled=True)


def _bounded(ranges: str) -> str:
    """The last ranges that fit."""
    if len(ranges) <= MAX_REFUSED:
        return ranges
    kept = ranges[-MAX_REFUSED:]
    return kept[kept.index(",") + 1 :]


# Results -------------------------------------------------------------------------------------------------------------


def _front(draft: StatusDraft) -> list[int]:
    return sorted(set(draft.front))


def _published(draft: StatusDraft, auxiliary: AuxiliaryJob) -> None:
    snapshot = draft.snapshot
    if auxiliary.result is not None and auxiliary.result.manifest_digest is not None and draft.winner is not None:
        uri = artifact_uri(resolved(snapshot.sweep.spec.template.spec), f"{sweep_root(snapshot.sweep)}/best")
        draft.update["artifact"] = Artifact(uri=uri, manifest_digest=auxiliary.result.manifest_digest)
        draft.conditions.append(
            ConditionUpdate(r.ARTIFACT_AVAILABLE, "True", r.PUBLISHED, f"The best model is at {uri}.")
        )
        return
    draft.update["artifact"] = None
    if auxiliary.failed is not None:
        text = f"The best model could not be published: {auxiliary.failed.message}"
        draft.conditions.append(ConditionUpdate(r.ARTIFACT_AVAILABLE, "False", r.PUBLISH_FAILED, text))
    elif draft.best is None:
        draft.conditions.append(
            ConditionUpdate(r.ARTIFACT_AVAILABLE, "False", r.OBJECTIVE_MISSING, _unreported(snapshot))
        )
    elif draft.winner is None:
        text = "No trial met the constraints; the report is written."
        draft.conditions.append(ConditionUpdate(r.ARTIFACT_AVAILABLE, "False", r.CONSTRAINT_MISSED, text))
    else:
        text = "The publish Job reported no manifest."
        draft.conditions.append(ConditionUpdate(r.ARTIFACT_AVAILABLE, "False", r.PUBLISH_FAILED, text))


def _unreported(snapshot: SweepSnapshot) -> str:
    listed = ", ".join(objective.metric for objective in snapshot.sweep.spec.objectives)
    return f"None of {len(snapshot.succeeded)} trials that succeeded reports every objective ({listed})."


def _judged(draft: StatusDraft) -> list[ConditionUpdate]:
    """What a finished sweep says of its best trial."""
    snapshot, best = draft.snapshot, draft.winner
    spec = snapshot.sweep.spec
    if draft.best is None:
        return [ConditionUpdate(r.CONSTRAINTS_MET, "False", r.OBJECTIVE_MISSING, _unreported(snapshot))]
    if best is None:
        text = f"None of {len(snapshot.succeeded)} trials that succeeded met the constraints."
        met = [find(trial.status.conditions, r.CONSTRAINTS_MET) for trial in snapshot.succeeded]
        unsure = sum(condition is not None and condition.status == "Unknown" for condition in met)
        if unsure:
            text = f"{text[:-1]} for certain; the spread of their latencies leaves {unsure} open."
            return [ConditionUpdate(r.CONSTRAINTS_MET, "Unknown", r.LATENCY_UNCERTAIN, text)]
        return [ConditionUpdate(r.CONSTRAINTS_MET, "False", r.CONSTRAINT_MISSED, text)]
    constrained = bool(spec.constraints or spec.template.spec.constraints)
    out = [ConditionUpdate(r.CONSTRAINTS_MET, "True", r.CONSTRAINTS_SATISFIED if constrained else r.NO_CONSTRAINTS)]
    trial = snapshot.trials.get(best.number)
    for type_ in (r.COMPRESSED, r.PORTABLE):
        condition = find(trial.status.conditions, type_) if trial else None
        if condition is not None:
            out.append(ConditionUpdate(type_, condition.status, condition.reason, condition.message))
    return out


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
        "front": _front(draft)[:MAX_FRONT],
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
    kept = [child for child in snapshot.ours if not child.deleting and child not in due]
    if status.observed_generation != snapshot.generation:
        seen = {"observed_generation": snapshot.generation}
        conditions = [condition.model_copy(update=seen) for condition in status.conditions]
        status = status.model_copy(update={**seen, "conditions": conditions})
    actions: list[Action] = [DeleteJob(child.name, child.uid) for child in due]
    return conditional_plan(
        snapshot.observed_status, status, actions, [], left if kept and left is not None and left > 0 else None
    )
