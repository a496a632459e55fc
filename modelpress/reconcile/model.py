"""Input and output of the reconcile core: observed state and plans of actions, as plain frozen data."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Literal

from modelpress.api.v1alpha1 import (
    CompressionJob,
    CompressionJobStatus,
    CompressionSweep,
    CompressionSweepStatus,
    TrialRecord,
)
from modelpress.api.v1alpha1 import reasons as r
from modelpress.request import Purpose, RunRequest

# Why a child Job failed. error: exit code 1 and all that is named nowhere else. invalid: exit code 2. terminated: 143.
# disrupted: eviction, preemption, a lost node, a killed `modelpress run`. oom: killed for memory.
Cause = Literal["error", "invalid", "terminated", "disrupted", "oom"]


@dataclass(frozen=True)
class ObservedJob:
    """One child Job: a batch/v1 Job of the cluster, or a subprocess of the local controller."""

    name: str
    uid: str
    owner_uid: str | None  # uid of its controller
    purpose: Purpose
    attempt: int
    state: Literal["pending", "running", "succeeded", "failed"]
    cause: Cause | None = None  # set exactly when failed
    reason: str | None = None  # what the cluster calls it: OOMKilled, Evicted, ImagePullBackOff, ...
    detail: str | None = None  # a sentence for people: the last line of stderr, the kubelet's message
    message: str | None = None  # termination message of container `runner`, verbatim
    created_at: dt.datetime | None = None
    started_at: dt.datetime | None = None  # the runner started
    finished_at: dt.datetime | None = None
    deleting: bool = False
    abandoned: bool = False  # failed, for one of several processes is lost; the others may still run and must be ended

    @property
    def terminal(self) -> bool:
        return self.state in ("succeeded", "failed")


@dataclass(frozen=True)
class OwnerState:
    """What a trial needs to know of its sweep."""

    uid: str
    name: str
    suspended: bool
    objectives: tuple[str, ...] = ()  # metrics
    records: bool = False  # only jobs that it has recorded are trials of it (admission.keeps_records)


@dataclass(frozen=True)
class JobObserved:
    """A CompressionJob and its children. `owner` is None for a standalone job.

    `children` are the Jobs that it controls, and any other Job that has one of the names it would give (naming): on a
    cluster what a refused creation ran into.
    """

    job: CompressionJob
    owner: OwnerState | None = None
    children: tuple[ObservedJob, ...] = ()
    # Semantic errors of the spec, as `path: what is wrong; what to do`, found by the controller (api.semantic).
    problems: tuple[str, ...] = ()
    problems_reason: str = r.INVALID_SPEC  # what they are: this, NotOnCluster or SpecTooLarge


@dataclass(frozen=True)
class SweepObserved:
    """A CompressionSweep, its trials that exist, and its prepare and publish Jobs; `children` as for a job."""

    sweep: CompressionSweep
    trials: tuple[CompressionJob, ...] = ()
    children: tuple[ObservedJob, ...] = ()
    problems: tuple[str, ...] = ()
    problems_reason: str = r.INVALID_SPEC


# Actions -------------------------------------------------------------------------------------------------------------
# Executing an action twice, or a plan's prefix, must be harmless: names are deterministic and creation is create-only.


@dataclass(frozen=True)
class CreateJob:
    """Create a child Job owned by the reconciled object. One of that name with the same owner's uid is success; while
    that one is being deleted the creation fails and is tried again later.
    """

    name: str
    purpose: Purpose
    attempt: int
    request: RunRequest


@dataclass(frozen=True)
class DeleteJob:
    """Delete a child Job; a running one gets SIGTERM and writes a checkpoint."""

    name: str
    uid: str


@dataclass(frozen=True)
class CreateTrial:
    """Create a CompressionJob owned by the reconciled sweep, with these labels, annotations and `status.trial`.

    Where it is there already under the sweep's uid, that is success. An API server takes no status with a creation: a
    controller then remembers the record of the uid that it was answered with, and shows it until a status holds it.
    """

    job: CompressionJob


@dataclass(frozen=True)
class AdmitTrial:
    """Set `status.trial` of a job that was found to be a trial, once."""

    name: str
    uid: str
    record: TrialRecord


@dataclass(frozen=True)
class StopTrial:
    """Set `status.stop` of a trial, once."""

    name: str
    uid: str
    reason: str


@dataclass(frozen=True)
class PatchStatus:
    """Replace the status of the reconciled object; refused if its resourceVersion is no longer the observed one.

    It is the first action of every plan that has any, and the precondition of the rest: a controller sends it with the
    resourceVersion also when the status is what it was, and drops the plan when it is refused.
    """

    status: CompressionJobStatus | CompressionSweepStatus


@dataclass(frozen=True)
class EmitEvent:
    """A Kubernetes Event on the reconciled object; only on transitions."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


Action = CreateJob | DeleteJob | CreateTrial | AdmitTrial | StopTrial | PatchStatus | EmitEvent


@dataclass(frozen=True)
class Plan:
    """What to do, in this order and up to the first failure, and when to look again even if nothing happens (seconds;
    None: never).
    """

    actions: tuple[Action, ...] = ()
    requeue_after: float | None = None
