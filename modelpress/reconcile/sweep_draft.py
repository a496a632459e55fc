"""The next status of a sweep in the making, and whether its search has ended."""

from __future__ import annotations

from dataclasses import dataclass, field

from modelpress.api.v1alpha1 import TrialResult
from modelpress.api.v1alpha1 import reasons as r
from modelpress.trials import Strategy

from . import suggesting
from .auxiliary_jobs import AuxiliaryJob
from .conditions import ConditionUpdate, Verdict, soonest
from .model import Action, EmitEvent
from .sweep_snapshot import SweepSnapshot


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
    if over and spec.screening is not None and (_unsettled(draft) or to_go_on(draft)):
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


def to_go_on(draft: StatusDraft) -> list[int]:
    """The trials of the first rung that are to go on and do not yet, best first."""
    gone = set(draft.going_on.values())
    return [number for number in draft.strategy.promoted(draft.snapshot.succeeded) if number not in gone]


def _stopped_for_budget(snapshot: SweepSnapshot) -> bool:
    stops = (snapshot.trials[number].status.stop for number in snapshot.finished)
    return any(stop is not None and stop.reason == r.BUDGET_EXHAUSTED for stop in stops)
