"""A CompressionJob and its children, read once into what the policies ask about."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from modelpress.api.v1alpha1 import Attempt, CompressionJob, CompressionJobStatus
from modelpress.api.v1alpha1 import reasons as r

from . import naming
from .conditions import Verdict, stamp
from .model import JobObserved, ObservedJob, OwnerState

# How long a created object may stay unseen before it counts as missing: watches deliver within this time.
WATCH_LAG = 10.0
# How long a termination message may come after the end that it explains: Jobs and pods are watched apart.
MESSAGE_GRACE = 5.0


@dataclass(frozen=True)
class JobSnapshot:
    """What the policies see. `attempt` is the latest one, `child` its Job; both may be absent."""

    job: CompressionJob
    now: dt.datetime
    owner: OwnerState | None
    suspended: Verdict | None
    problems: tuple[str, ...]
    problems_reason: str
    ours: tuple[ObservedJob, ...]
    foreign: dict[str, ObservedJob]
    started: int
    past: tuple[Attempt, ...]
    attempt: Attempt | None
    child: ObservedJob | None

    @property
    def status(self) -> CompressionJobStatus:
        """The status as it was observed."""
        return self.job.status

    @property
    def generation(self) -> int:
        """The generation that this reconciliation is about."""
        return self.job.metadata.generation or 0

    @property
    def name(self) -> str:
        """The job's name."""
        return self.job.metadata.name

    def collect(self, round_: int) -> ObservedJob | None:
        """The collect Job of the latest attempt in that round."""
        name = naming.collect_name(self.name, self.started, round_)
        return next((child for child in self.ours if child.name == name and child.purpose == "collect"), None)


def job_snapshot(observed: JobObserved, now: dt.datetime) -> JobSnapshot:
    """Read the snapshot."""
    job, now = observed.job, stamp(now)
    uid = job.metadata.uid
    ours = tuple(child for child in observed.children if child.owner_uid is not None and child.owner_uid == uid)
    trials = {child.attempt: child for child in ours if child.purpose == "trial"}
    # A status that knows less than the cluster was edited or restored; the children are the better witnesses.
    started = max([job.status.started, *trials])
    past = list(job.status.attempts)
    attempt = past.pop() if past and past[-1].number == started else None
    if attempt is None and started > 0:
        past = [
            old if old.finish_time else old.model_copy(update={"outcome": "Lost", "finish_time": now}) for old in past
        ]
        there = trials.get(started)
        made = stamp(there.created_at) if there is not None and there.created_at is not None else None
        attempt = Attempt(number=started, outcome="Running", create_time=made)
    return JobSnapshot(
        job=job,
        now=now,
        owner=observed.owner,
        suspended=_suspended(observed),
        problems=observed.problems,
        problems_reason=observed.problems_reason,
        ours=ours,
        foreign={child.name: child for child in observed.children if child not in ours},
        started=started,
        past=tuple(past),
        attempt=attempt,
        child=trials.get(started),
    )


def _suspended(observed: JobObserved) -> Verdict | None:
    if observed.job.spec.suspend:
        text = "spec.suspend is true; set it to false to go on from the last checkpoint."
        return Verdict("Suspended", r.SUSPENDED_BY_USER, text)
    if observed.owner is not None and observed.owner.suspended:
        text = f"spec.suspend of the sweep {observed.owner.name} is true; its trials go on when it is false."
        return Verdict("Suspended", r.SUSPENDED_BY_USER, text)
    return None
