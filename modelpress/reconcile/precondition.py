"""Optimistic concurrency: every plan begins with a status write, which is refused if the object has changed since."""

from __future__ import annotations

from collections.abc import Sequence

from modelpress.api.v1alpha1 import CompressionJobStatus, CompressionSweepStatus

from .model import Action, DeleteJob, EmitEvent, ObservedJob, PatchStatus, Plan


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


def tidied(
    seen: CompressionJobStatus | CompressionSweepStatus,
    status: CompressionJobStatus | CompressionSweepStatus,
    generation: int,
    children: Sequence[ObservedJob],
    due: Sequence[ObservedJob],
    left: float | None,
) -> Plan:
    """What is done behind the end of an object: Jobs that are due go, and its status follows an edit of its spec.

    Args:
        seen: the status as it was observed.
        status: the same, or what was read from children where it was wiped.
        generation: of the object.
        children: its Jobs.
        due: those of them that go now.
        left: seconds until the others are due; None: they never are.
    """
    kept = [child for child in children if not child.deleting and child not in due]
    if status.observed_generation != generation:
        observed = {"observed_generation": generation}
        conditions = [condition.model_copy(update=observed) for condition in status.conditions]
        status = status.model_copy(update={**observed, "conditions": conditions})
    actions = [DeleteJob(child.name, child.uid) for child in due]
    return conditional_plan(seen, status, actions, [], left if kept and left is not None and left > 0 else None)
