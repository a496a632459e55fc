"""The reconcile core: (observed, now) -> actions and a requeue time. Pure: no I/O, no clock, no framework.

Both shells, the operator and `modelpress run`, drive these functions. A behaviour of one shell only is a bug.
"""

from .model import (
    Action,
    CreateJob,
    CreateTrial,
    DeleteJob,
    EmitEvent,
    JobObserved,
    ObservedJob,
    OwnerState,
    PatchStatus,
    Plan,
    StopTrial,
    SweepObserved,
)

__all__ = [
    "Action",
    "CreateJob",
    "CreateTrial",
    "DeleteJob",
    "EmitEvent",
    "JobObserved",
    "ObservedJob",
    "OwnerState",
    "PatchStatus",
    "Plan",
    "StopTrial",
    "SweepObserved",
]
