"""A sweep's prepare and publish Jobs: each runs until it succeeds once, and running one again does no harm.

So a missing one is made again under the same name, and only an end that was seen leads to the next name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from modelpress.api.v1alpha1 import reasons as r
from modelpress.request import PublishRequest
from modelpress.result import RunResult

from . import naming
from .conditions import Verdict, seconds, stamp
from .job_snapshot import MESSAGE_GRACE, WATCH_LAG
from .model import Action, CreateJob, ObservedJob
from .pending_reason import pending_reason
from .requests import request_problem, sweep_request
from .sweep_snapshot import SweepSnapshot
from .termination import Termination, read_result, read_termination

AuxiliaryPurpose = Literal["prepare", "publish"]


@dataclass(frozen=True)
class AuxiliaryJob:
    """How such a Job stands: done with a result, failed with an end, or neither: `verdict` then says what it waits for.

    `attempts`: how many were decided on, with the one of `actions`.
    """

    attempts: int
    result: RunResult | None = None
    failed: Termination | None = None
    verdict: Verdict | None = None
    actions: tuple[Action, ...] = ()
    wait: float | None = None


def run_auxiliary_job(
    snapshot: SweepSnapshot,
    purpose: AuxiliaryPurpose,
    attempts: int,
    base: int = 0,
    publish: PublishRequest | None = None,
) -> AuxiliaryJob:
    """Drive the Job of this purpose; attempts up to `base` belong to an earlier round."""
    jobs = {child.attempt: child for child in snapshot.ours if child.purpose == purpose}
    attempts = max([attempts, *jobs])
    if attempts <= base:
        return _create(snapshot, purpose, attempts, attempts + 1, publish)
    child = jobs.get(attempts)
    if child is None:
        since = snapshot.status.last_create_time
        unseen = WATCH_LAG - seconds(since, snapshot.now) if since else 0.0
        if unseen > 0 and _name(snapshot, purpose, attempts) not in snapshot.foreign:
            return AuxiliaryJob(attempts, verdict=_waits(purpose, attempts), wait=unseen)
        return _create(snapshot, purpose, attempts, attempts, publish)
    if not child.terminal:
        return AuxiliaryJob(attempts, verdict=_waits(purpose, attempts, child))
    result, end = read_result(child), read_termination(child, started=True)
    if result is not None and result.phase == "Succeeded":
        return AuxiliaryJob(attempts, result=result)
    if result is None and child.finished_at is not None:
        late = MESSAGE_GRACE - seconds(stamp(child.finished_at), snapshot.now)
        if late > 0:
            return AuxiliaryJob(attempts, verdict=_waits(purpose, attempts, child), wait=late)
    spec = snapshot.sweep.spec.template.spec
    failures = sum(_counts(job) for number, job in jobs.items() if number > base)
    if end.outcome == "Invalid" or failures > spec.backoff_limit:
        return AuxiliaryJob(attempts, failed=end)
    if attempts - base > spec.backoff_limit + spec.max_disruptions:
        return AuxiliaryJob(attempts, failed=end)
    return _create(snapshot, purpose, attempts, attempts + 1, publish)


def _create(
    snapshot: SweepSnapshot, purpose: AuxiliaryPurpose, attempts: int, number: int, publish: PublishRequest | None
) -> AuxiliaryJob:
    name = _name(snapshot, purpose, number)
    other = snapshot.foreign.get(name)
    if other is not None and other.deleting:
        text = f"The Job {name} of a former owner is being deleted."
        return AuxiliaryJob(attempts, verdict=Verdict("Pending", r.PENDING, text, reconciling=True), wait=WATCH_LAG)
    if other is not None:
        text = f"The Job {name} belongs to somebody else; delete it, or give this sweep another name."
        return AuxiliaryJob(attempts, verdict=Verdict("Pending", r.NAME_CONFLICT, text, stalled=True))
    request = sweep_request(snapshot.sweep, purpose, number, publish)
    why = request_problem(request)
    if why is not None:
        return AuxiliaryJob(attempts, verdict=Verdict("Pending", why[0], f"spec.template.{why[1]}", stalled=True))
    create = CreateJob(name, purpose, number, request)
    return AuxiliaryJob(number, verdict=_waits(purpose, number), actions=(create,), wait=WATCH_LAG)


def _name(snapshot: SweepSnapshot, purpose: AuxiliaryPurpose, number: int) -> str:
    return (naming.prepare_name if purpose == "prepare" else naming.publish_name)(snapshot.sweep.metadata.name, number)


def _counts(child: ObservedJob) -> bool:
    """Whether it counts against backoffLimit: what was disrupted or only not heard does not."""
    if not child.terminal:
        return False
    end = read_termination(child, started=True)
    return end.outcome == "Failed" and end.reason != r.NOT_FOUND


def _waits(purpose: AuxiliaryPurpose, attempts: int, child: ObservedJob | None = None) -> Verdict:
    reason, text = pending_reason(f"The {purpose} Job", child)
    if purpose == "publish":
        text = "The report and the best model are being written." if reason is None else text
        return Verdict("Running", reason or r.PUBLISHING, text, reconciling=True)
    if child is not None and child.state != "pending":
        return Verdict("Running", r.PREPARING, "The dense model and its baseline are being made.")
    return Verdict("Pending", reason or r.PREPARING, text, reconciling=True)
