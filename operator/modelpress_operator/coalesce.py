"""What of a plan can wait, because a little later it would be part of another write.

A trial's first status says only that its Job waits for its runner. The core puts it before the Job, as a fence and so
that what a child is for is on record first (docs/design/0003). A trial that the operator itself made a moment ago needs
neither: its first Job's name is known, and whoever creates it twice finds the first. So that Job is created at once,
and the status waits until there is more to say (docs/design/0014-first-status-later.md).
"""

from __future__ import annotations

from modelpress.api.v1alpha1 import CompressionJobStatus
from modelpress.api.v1alpha1 import reasons as r
from modelpress.reconcile import Action, CreateJob, EmitEvent, PatchStatus, Plan
from modelpress.reconcile.conditions import find

from .resources import RawObject, is_trial

FIRST_STATUS_SECONDS = 8.0  # after it saw the trial; then it is told that it waits


def defer_first_status(raw: RawObject, plan: Plan, known: float) -> Plan:
    """The plan, without a first status that says nothing yet.

    Args:
        known: seconds that the object has been known for.
    """
    if not is_trial(raw) or (raw.get("status") or {}).get("phase"):
        return plan
    left = FIRST_STATUS_SECONDS - known
    actions = [action for action in plan.actions if not isinstance(action, EmitEvent)]
    if left <= 0 or not actions or not _says_nothing(actions[0]):
        return plan
    match actions[1:]:
        case []:
            return Plan((), left)
        case [CreateJob(purpose="trial", attempt=1) as create]:
            return Plan((create,), left)
        case _:
            return plan


def _says_nothing(action: Action) -> bool:
    if not isinstance(action, PatchStatus) or not isinstance(action.status, CompressionJobStatus):
        return False
    ready = find(action.status.conditions, r.READY)
    return action.status.phase == "Pending" and ready is not None and ready.reason == r.PENDING
