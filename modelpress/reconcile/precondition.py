"""The fence of every plan: a status write that is refused if the object has moved on, before anything else is done."""

from __future__ import annotations

from collections.abc import Sequence

from modelpress.api.v1alpha1 import CompressionJobStatus, CompressionSweepStatus

from .model import Action, EmitEvent, PatchStatus, Plan


def conditional_plan(
    seen: CompressionJobStatus | CompressionSweepStatus,
    status: CompressionJobStatus | CompressionSweepStatus,
    actions: Sequence[Action],
    events: Sequence[EmitEvent],
    wait: float | None,
) -> Plan:
    """The status first, then the actions, then what to tell; nothing if nothing changed and nothing is to be done."""
    if status == seen and not actions:
        return Plan(requeue_after=wait)
    return Plan((PatchStatus(status), *actions, *events), wait)
