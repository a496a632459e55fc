"""Jobs on their way, what is observed of them, and what a plan does with them."""

from __future__ import annotations

import json
from typing import Any

from reconcile_objects import at, child, make_job

from modelpress.api.v1alpha1 import CompressionJob, CompressionJobStatus
from modelpress.reconcile import (
    JobObserved,
    ObservedJob,
    OwnerState,
    PatchStatus,
    Plan,
    reconcile_job,
)


def observe(job: CompressionJob, *children: ObservedJob, owner: OwnerState | None = None, **fields: Any) -> JobObserved:
    """A snapshot."""
    return JobObserved(job, owner, children, **fields)


def status_of(plan: Plan) -> CompressionJobStatus:
    """The status that a plan writes; it is always the first action."""
    assert isinstance(plan.actions[0], PatchStatus)
    status = plan.actions[0].status
    assert isinstance(status, CompressionJobStatus)
    return status


def after(job: CompressionJob, plan: Plan) -> CompressionJob:
    """The job once the plan's status is stored, by way of JSON."""
    status = CompressionJobStatus.model_validate(json.loads(json.dumps(status_of(plan).to_dict())))
    return job.model_copy(update={"status": status})


def begun(seconds: float = 0, **spec: Any) -> CompressionJob:
    """A job whose first attempt was created."""
    job = make_job(**spec)
    return after(job, reconcile_job(observe(job), at(seconds)))


def ran(**spec: Any) -> CompressionJob:
    """A job whose first attempt was seen to run since second 1."""
    job = begun(**spec)
    return after(job, reconcile_job(observe(job, child()), at(2)))
