"""The reconcile core: (observed, now) -> actions and a requeue time. Pure: no I/O, no clock, no framework.

Both controllers, the operator and `modelpress run`, drive these functions. A behaviour of one controller only is a bug.
"""

from .admission import keeps_records
from .job import reconcile_job
from .model import (
    Action,
    AdmitTrial,
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
from .sweep import reconcile_sweep

__all__ = [
    "Action",
    "AdmitTrial",
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
    "keeps_records",
    "reconcile_job",
    "reconcile_sweep",
]
