"""Which CompressionJobs are trials of a sweep: those that it has made, whatever others write about themselves.

Anybody who may create a CompressionJob may name a sweep as its controller, and give it labels and annotations of a
trial. Its status nobody but the operator writes: a trial's says whose it is and which (`status.trial`). A job without
such a record is a trial only if it is, but for the record, exactly what the sweep would have made under that name: that
is what a process leaves behind that was killed between a trial's creation and its first status.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from modelpress.api.v1alpha1 import CompressionJob, CompressionSweep, TrialRecord
from modelpress.trials import (
    HISTORY_ANNOTATION,
    SCREENED_ANNOTATION,
    TRIAL_LABEL,
    History,
    Strategy,
    Suggestion,
    annotated,
    number_of,
    trial_number,
)

from . import naming

MAX_REPLAYED = 64  # jobs without a record that are looked at in one go; each may cost a sampler's suggestion


def keeps_records(trial_records: bool, created: int) -> bool:
    """Whether only jobs that a sweep recorded are its trials, by its status: `trialRecords` and `created`.

    Trials of a sweep that began under an older version have no records.
    """
    return trial_records or created == 0


def own_number(job: CompressionJob, sweep: CompressionSweep) -> int | None:
    """Which trial of the sweep a job is; None if it is none, or is not known to be one."""
    uid, record = sweep.metadata.uid, job.status.trial
    if uid is None or job.metadata.controller_uid() != uid:
        return None
    if record is None:
        return None if keeps_records(sweep.status.trial_records, sweep.status.created) else number_of(job)
    named = naming.trial_name(sweep.metadata.name, record.number) == job.metadata.name
    return record.number if record.sweep == uid and named else None


def unproven(job: CompressionJob, sweep: CompressionSweep) -> int | None:
    """Which trial a job without a record claims to be; None if it claims nothing."""
    uid, stem = sweep.metadata.uid, f"{sweep.metadata.name}-"
    if uid is None or job.metadata.controller_uid() != uid or job.status.trial is not None:
        return None
    text = job.metadata.name.removeprefix(stem)
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= 6 else None
    return (
        number if number is not None and naming.trial_name(sweep.metadata.name, number) == job.metadata.name else None
    )


def replayed(
    job: CompressionJob,
    number: int,
    sweep: CompressionSweep,
    suggest: Callable[[int, History, Mapping[int, CompressionJob]], Suggestion],
    strategy: Strategy,
    trials: Mapping[int, CompressionJob],
) -> TrialRecord | None:
    """The record of a job that is what the sweep makes as this trial from the history that it names; else None.

    Args:
        suggest: as the strategy's, with answers that runners gave.
    """
    try:
        history = History.decode((job.metadata.annotations or {}).get(HISTORY_ANNOTATION, ""))
    except ValueError:
        return None
    named, parameters = {*history.finished, *history.running}, annotated(job)
    if parameters is None or number in named or any(other not in trials for other in named):
        return None
    screened = trial_number({TRIAL_LABEL: (job.metadata.annotations or {}).get(SCREENED_ANNOTATION, "")})
    if screened is None:
        suggestion: Suggestion | None = suggest(number, history, trials)
    else:
        suggestion = strategy.promotion(screened, history, trials)
    if suggestion is None or suggestion.spec is None or dict(suggestion.parameters) != parameters:
        return None
    if job.spec.model_copy(update={"suspend": False}) != suggestion.spec.model_copy(update={"suspend": False}):
        return None
    return TrialRecord(
        sweep=sweep.metadata.uid or "", number=number, parameters=dict(suggestion.parameters), screened=screened
    )
