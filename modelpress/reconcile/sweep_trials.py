"""The trials of a sweep: decided on while there are free places, each with the history that it was suggested from."""

from __future__ import annotations

import json

from modelpress.api.v1alpha1 import CompressionJob, CompressionJobStatus, OwnerReference, TrialRecord
from modelpress.api.v1alpha1 import reasons as r
from modelpress.api.v1alpha1.base import API_VERSION
from modelpress.api.v1alpha1.meta import JobMeta
from modelpress.trials import (
    HISTORY_ANNOTATION,
    PARAMETERS_ANNOTATION,
    SCREENED_ANNOTATION,
    SHARED_STAGES_ANNOTATION,
    SWEEP_LABEL,
    TRIAL_LABEL,
    History,
    Suggestion,
    decode_ranges,
    encode_ranges,
)

from . import naming, suggesting
from .conditions import Verdict, cut, soonest
from .job_snapshot import WATCH_LAG
from .model import CreateTrial, EmitEvent
from .sweep_draft import StatusDraft, end_of_search, to_go_on
from .sweep_snapshot import SweepSnapshot

MAX_REFUSED = 8192  # characters of the refused trials' numbers in status


def fill(draft: StatusDraft) -> Verdict | None:
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
        waiting = to_go_on(draft) if second else []
        if second and (not waiting or any(other not in draft.going_on for other in running)):
            break  # all went on, or the first rung is not over yet
        if (conflict := conflict_of(snapshot, name)) is not None:
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


def conflict_of(snapshot: SweepSnapshot, name: str) -> Verdict | None:
    """What is said where a trial's name is another object's."""
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
