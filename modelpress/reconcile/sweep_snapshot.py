"""A sweep and its children, read in one pass: 10,000 finished trials cost some tens of milliseconds."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from functools import cached_property

from modelpress.api.v1alpha1 import TERMINAL_PHASES, CompressionJob, CompressionSweep, CompressionSweepStatus
from modelpress.api.v1alpha1 import reasons as r
from modelpress.api.v1alpha1.sweep import TrialCounts
from modelpress.trials import decode_ranges, screened_of

from .admission import own_number
from .conditions import ConditionUpdate, find, seconds, stamp
from .job_snapshot import WATCH_LAG
from .model import ObservedJob, SweepObserved


@dataclass(frozen=True)
class SweepSnapshot:
    """What the policies see. `status` is the one to go on from; `observed_status` the one that is stored."""

    sweep: CompressionSweep
    now: dt.datetime
    status: CompressionSweepStatus
    problems: tuple[str, ...]
    problems_reason: str
    trials: dict[int, CompressionJob]  # ours, by number
    foreign_trials: dict[str, CompressionJob]
    ours: tuple[ObservedJob, ...]
    foreign: dict[str, ObservedJob]
    finished: tuple[int, ...]  # ascending
    live: tuple[int, ...]  # ascending; those that exist and have not finished
    succeeded: tuple[CompressionJob, ...]  # by number
    created: int
    awaited: int  # trials that were decided on a moment ago and not seen yet
    awaited_wait: float | None
    seen: TrialCounts  # of those that exist, and the refused

    @property
    def observed_status(self) -> CompressionSweepStatus:
        """The status as it was observed."""
        return self.sweep.status

    @property
    def generation(self) -> int:
        """The generation that this reconciliation is about."""
        return self.sweep.metadata.generation or 0

    @cached_property
    def going_on(self) -> dict[int, int]:
        """With screening, numbers of the second rung's trials, and of those of the first that they go on from."""
        if self.sweep.spec.screening is None:
            return {}
        told = self.status.screening.promoted if self.status.screening is not None else []
        seen = {number: screened_of(job) for number, job in self.trials.items()}
        known = {item.number: item.screened for item in told}
        return known | {number: screened for number, screened in seen.items() if screened is not None}

    @property
    def suspended_seconds(self) -> float:
        """Suspended time until now, with the stretch that ends or goes on now."""
        total = self.status.suspended_seconds
        condition = find(self.status.conditions, r.SUSPENDED)
        if condition is None or condition.status != "True" or self.status.start_time is None:
            return total
        return round(total + seconds(max(condition.last_transition_time, self.status.start_time), self.now), 3)

    def elapsed(self, at: dt.datetime) -> float:
        """Seconds of the wall-clock budget used at that time."""
        if self.status.start_time is None:
            return 0.0
        return max(0.0, seconds(self.status.start_time, at) - self.suspended_seconds)

    @property
    def gpus(self) -> int:
        """What every trial asks for, on all of its nodes together."""
        runner = self.sweep.spec.template.spec.runner
        return runner.gpus * runner.nodes if runner is not None else 0

    @property
    def gpu_seconds(self) -> float:
        """GPUs x running time of all attempts that are over, those of trials that were deleted since included."""
        seen = self.gpus * sum(job.status.active_seconds for job in self.trials.values())
        return max(self.status.gpu_seconds, round(seen, 3))

    def budget_left(self, at: dt.datetime) -> tuple[float, str] | None:
        """Seconds until the first budget is used up, as seen at that time, and which one; None if none will be."""
        budget = self.sweep.spec.budget
        if budget is None:
            return None
        left: list[tuple[float, str]] = []
        if budget.wall_clock_seconds is not None:
            left.append((budget.wall_clock_seconds - self.elapsed(at), "wallClockSeconds"))
        if budget.gpu_seconds is not None:
            running = self._running(at)
            rest = budget.gpu_seconds - self.gpu_seconds - self.gpus * sum(running)
            pace = self.gpus * len(running)
            if rest <= 0 or pace > 0:
                left.append((rest / pace if rest > 0 else rest, "gpuSeconds"))
        return min(left, default=None)

    def _running(self, at: dt.datetime) -> list[float]:
        """Seconds that each attempt which runs has run."""
        attempts = [self.trials[number].status.attempts[-1:] for number in self.live]
        return [
            max(0.0, seconds(attempt.start_time, at))
            for last in attempts
            for attempt in last
            if attempt.start_time is not None and attempt.finish_time is None
        ]

    def counts(self, created: int, refused: int, new: int) -> TrialCounts:
        """The trials by state once `new` more were created and `refused` were refused in all."""
        waiting = self.awaited + new
        lost = max(0, created - len(self.trials) - refused - waiting)
        return self.seen.model_copy(update={"pending": self.seen.pending + waiting, "lost": lost, "refused": refused})


def sweep_snapshot(observed: SweepObserved, now: dt.datetime) -> SweepSnapshot:
    """Read the snapshot."""
    sweep, now = observed.sweep, stamp(now)
    uid, status = sweep.metadata.uid, sweep.status
    trials: dict[int, CompressionJob] = {}
    foreign_trials: dict[str, CompressionJob] = {}
    for job in observed.trials:
        number = own_number(job, sweep)
        if number is None:
            foreign_trials[job.metadata.name] = job
        else:
            trials[number] = job
    ours = tuple(child for child in observed.children if uid is not None and child.owner_uid == uid)
    finished, live, succeeded = [], [], []
    tally = dict.fromkeys(("pending", "running", "suspended", "succeeded", "infeasible", "failed", "stopped"), 0)
    for number in sorted(trials):
        job = trials[number]
        phase = job.status.phase or "Pending"
        tally[phase.lower()] += 1
        if phase not in TERMINAL_PHASES:
            live.append(number)
            continue
        finished.append(number)
        if phase == "Succeeded":
            succeeded.append(job)
            met = find(job.status.conditions, r.CONSTRAINTS_MET)
            tally["infeasible"] += met is not None and met.status == "False"
    # A status that knows less than the cluster was edited or restored; the trials are believed instead.
    created = max([status.created, *(number + 1 for number in trials)])
    awaited, wait = _awaited(status, trials, created, now)
    return SweepSnapshot(
        sweep=sweep,
        now=now,
        status=status,
        problems=observed.problems,
        problems_reason=observed.problems_reason,
        trials=trials,
        foreign_trials=foreign_trials,
        ours=ours,
        foreign={child.name: child for child in observed.children if child not in ours},
        finished=tuple(finished),
        live=tuple(live),
        succeeded=tuple(succeeded),
        created=created,
        awaited=awaited,
        awaited_wait=wait,
        seen=TrialCounts(**tally, refused=status.trials.refused),
    )


def code_digest(snapshot: SweepSnapshot) -> tuple[str | None, list[ConditionUpdate]]:
    """The code that the trials ran, and whether all ran the same."""
    digests = {number: snapshot.trials[number].status.code_digest for number in snapshot.finished}
    first = snapshot.status.code_digest or next(
        (job.status.code_digest for job in snapshot.succeeded if job.status.code_digest), None
    )
    if first is None:
        return None, []
    others = [number for number, digest in digests.items() if digest is not None and digest != first]
    if not others:
        return first, [ConditionUpdate(r.CODE_CHANGED, "False", r.CODE_UNCHANGED)]
    listed = ", ".join(str(number) for number in others[:8]) + (", ..." if len(others) > 8 else "")
    text = f"Trials {listed} ran other code than the first; their results may not compare."
    return first, [ConditionUpdate(r.CODE_CHANGED, "True", r.CODE_CHANGED, text)]


def _awaited(
    status: CompressionSweepStatus, trials: dict[int, CompressionJob], created: int, now: dt.datetime
) -> tuple[int, float | None]:
    """How many trials of the last batch are still to be seen, and how long they may take."""
    if status.last_create_time is None:
        return 0, None
    left = WATCH_LAG - seconds(status.last_create_time, now)
    if left <= 0:
        return 0, None
    missing = [number for number in range(status.confirmed, created) if number not in trials]
    if missing:
        refused = set(decode_ranges(status.refused))
        missing = [number for number in missing if number not in refused]
    return len(missing), left if missing else None
