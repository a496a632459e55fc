"""What a sweep reads of a trial that has finished: a tenth of the trial, of which a fleet has ten thousand."""

from __future__ import annotations

import contextlib
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from modelpress.api.v1alpha1 import (
    TERMINAL_PHASES,
    CompressionJob,
    CompressionJobSpec,
    CompressionJobStatus,
    CompressionSweep,
    OwnerReference,
    Phase,
    TrialRecord,
)
from modelpress.api.v1alpha1 import reasons as r
from modelpress.api.v1alpha1.meta import JobMeta
from modelpress.reconcile import keeps_records

from .observe import parse_time
from .resources import RawObject

META = ("name", "namespace", "uid", "labels", "annotations", "ownerReferences", "deletionTimestamp")
STATUS = ("phase", "metrics", "codeDigest", "activeSeconds", "completionTime", "trial")
CONDITIONS = frozenset({r.CONSTRAINTS_MET, r.COMPRESSED, r.PORTABLE})
JUDGED_BY = ("constraints", "metrics")  # of a trial's own spec; the rest of it no sweep reads
_NOTHING_SET: set[str] = set()


def is_finished(raw: RawObject) -> bool:
    """Whether an object's phase is a last one."""
    return (raw.get("status") or {}).get("phase") in TERMINAL_PHASES


def has_records(sweep: RawObject) -> bool:
    """As admission.keeps_records, of a sweep as the API server serves it."""
    status = sweep.get("status") or {}
    return keeps_records(bool(status.get("trialRecords")), status.get("created") or 0)


def is_summarized(raw: RawObject, sweep: RawObject) -> bool:
    """Whether `finished_trial` says all that the sweep reads of a CompressionJob.

    Not of one that should have a record and has none, because a process was killed before it wrote it: such a job is a
    trial if its whole spec is what the sweep would have made (admission.replayed).
    """
    return is_finished(raw) and (bool((raw.get("status") or {}).get("trial")) or not has_records(sweep))


def finished_trial(raw: RawObject, sweep: CompressionSweep, template: RawObject) -> CompressionJob:
    """A finished trial as reconcile_sweep and the search need it (SweepObserved.trials).

    Its spec is the sweep's template's where both judge alike, and its own otherwise.

    Args:
        template: the template's spec as JSON.

    Raises:
        pydantic.ValidationError: it is none.
    """
    status: dict[str, Any] = raw.get("status") or {}
    spec: dict[str, Any] = raw.get("spec") or {}
    kept = {key: status[key] for key in STATUS if key in status}
    kept["conditions"] = [item for item in status.get("conditions") or () if item.get("type") in CONDITIONS]
    meta = {key: raw["metadata"][key] for key in META if key in raw["metadata"]}
    alike = all(spec.get(key) == template.get(key) for key in JUDGED_BY)
    return CompressionJob.model_construct(
        _NOTHING_SET,
        metadata=_lean(JobMeta.model_validate(meta)),
        spec=sweep.spec.template.spec if alike else _lean(CompressionJobSpec.model_validate(spec)),
        status=_lean(CompressionJobStatus.model_validate(kept)),
    )


def unread_trial(raw: RawObject, sweep: CompressionSweep) -> CompressionJob:
    """A CompressionJob that is not understood, as its sweep sees it: its name, its owner, its phase, its record."""
    given, meta = raw.get("status") or {}, raw["metadata"]
    status: dict[str, Any] = {"phase": given["phase"]} if given.get("phase") in get_args(Phase) else {}
    with contextlib.suppress(ValidationError):
        status["trial"] = TrialRecord.model_validate(given.get("trial"))
    owners = [OwnerReference.model_validate(ref) for ref in meta.get("ownerReferences") or ()]
    known = {"namespace": meta["namespace"], "uid": meta["uid"], "owner_references": owners}
    gone = parse_time(meta.get("deletionTimestamp"))
    return CompressionJob.model_construct(
        _NOTHING_SET,
        metadata=JobMeta.model_construct(_NOTHING_SET, name=meta["name"], deletion_timestamp=gone, **known),
        spec=sweep.spec.template.spec,
        status=CompressionJobStatus.model_construct(_NOTHING_SET, **status),
    )


def _lean(value: Any) -> Any:
    """Without the sets of which fields were given: nobody asks, and they are half of a small model's memory."""
    if isinstance(value, BaseModel):
        object.__setattr__(value, "__pydantic_fields_set__", _NOTHING_SET)
        for part in vars(value).values():
            _lean(part)
    elif isinstance(value, list):
        for part in value:
            _lean(part)
    return value
