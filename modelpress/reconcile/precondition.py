"""Optimistic concurrency: every plan begins with a status write, which is refused if the object has changed since."""

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
    """The status first, then the actions, then the events; empty if nothing changed and nothing is to be done."""
    if status == seen and not actions:
        return Plan(requeue_after=wait)
    return Plan((PatchStatus(status), *actions, *events), wait)
