"""What a Job and its pods mean to the reconcile core. Pure.

The Job's conditions say that a run is over, because only they are final; its pods say how it ended and why, because
they have the exit code, the termination message and the disruption.
"""

from __future__ import annotations

import datetime as dt
import re
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from modelpress.reconcile.model import Cause, ObservedJob
from modelpress.request import Purpose
from modelpress.result import ExitCode, RunResult

from .resources import LABELS, RawObject, controller_uid, is_deleting, is_gang, labels_of, meta_of

RUNNER = "runner"  # the container whose termination message and exit code count
LOST_SECONDS = 120.0  # a pod that should be gone for so long sits on a node that nobody hears from
MAX_DETAIL = 700
# Reasons of pods that a node ended or did not admit, whatever their containers did (Kubernetes, pkg/kubelet/lifecycle).
_NODES_REASONS = frozenset(
    {"Evicted", "Preempting", "NodeLost", "NodeShutdown", "Shutdown", "Terminated"}
    | {"NodeAffinity", "TopologyAffinityError", "UnexpectedAdmissionError", "PodOSNotSupported"}
)
_KILLED = 128 + 9
_EXIT_CODE = re.compile(r"exit code (\d+)")

State = Literal["pending", "running", "succeeded", "failed"]


@dataclass(frozen=True)
class _Pod:
    """What counts of one pod."""

    raw: RawObject

    @property
    def status(self) -> dict[str, Any]:
        return self.raw.get("status") or {}

    @property
    def container(self) -> dict[str, Any]:
        """Status of the runner's container."""
        found = (item for item in self.status.get("containerStatuses") or () if item.get("name") == RUNNER)
        return next(found, {})

    @property
    def terminated(self) -> dict[str, Any] | None:
        return (self.container.get("state") or {}).get("terminated")

    @property
    def running(self) -> dict[str, Any] | None:
        return (self.container.get("state") or {}).get("running")

    @property
    def started_at(self) -> dt.datetime | None:
        state = self.running or self.terminated or {}
        return parse_time(state.get("startedAt"))

    @property
    def over(self) -> bool:
        return self.status.get("phase") in ("Succeeded", "Failed")

    @property
    def disruption(self) -> dict[str, Any] | None:
        return _condition(self.status, "DisruptionTarget")

    @property
    def rank(self) -> int:
        text = (meta_of(self.raw).get("labels") or {}).get("batch.kubernetes.io/job-completion-index", "0")
        return int(text) if text.isdigit() else 0

    @property
    def exit_code(self) -> int | None:
        code = (self.terminated or {}).get("exitCode")
        return None if code is None else int(code)

    @property
    def decisive(self) -> bool:
        """Whether its end explains a gang's: not by a signal that the end of another rank brought about."""
        if self.disruption is not None or _turned_away(self.status.get("reason") or ""):
            return True
        code = self.exit_code
        ordered = meta_of(self.raw).get("deletionTimestamp") is not None and code == _KILLED
        return code not in (None, 0, ExitCode.TERMINATED) and not ordered

    def lost(self, now: dt.datetime, after: float) -> bool:
        """Whether it should have ended long ago and nobody says that it has."""
        due = parse_time(meta_of(self.raw).get("deletionTimestamp"))
        return due is not None and not self.over and (now - due).total_seconds() >= after


def observed_job(
    job: RawObject,
    pods: list[RawObject],
    now: dt.datetime | None = None,
    *,
    refused: str | None = None,
    lost_after: float = LOST_SECONDS,
) -> ObservedJob:
    """A batch/v1 Job and its pods as the reconcile core sees them.

    Of a gang (an Indexed Job of several pods) rank 0 reports; it has begun when all of its pods have, and what ended it
    is told by the pod whose end the others' ends do not explain.

    With `now`, a run whose pods should all have ended `lost_after` seconds ago, unheard of, counts as disrupted, and so
    does a gang of which one should: the others wait for it in vain, so its Job is to be deleted.
    `refused`: why its pods could not be created when that was last asked.
    """
    meta, status, labels = meta_of(job), job.get("status") or {}, labels_of(job)
    seen = sorted((_Pod(pod) for pod in pods), key=lambda pod: (pod.rank, _age(pod.raw)))
    failed, complete = _condition(status, "Failed"), _condition(status, "Complete")
    gang = is_gang(job)
    lost = now is not None and _lost(seen, now, lost_after, gang)
    state: State = "pending"
    cause: Cause | None = None
    reason: str | None = None
    detail: str | None = None
    if complete is not None:
        state = "succeeded"
    elif failed is not None:
        state = "failed"
        cause, reason, detail = _cause(failed, seen, gang)
    elif lost:
        state, cause, reason = "failed", "disrupted", "NodeLost"
        detail = "Its node has not been heard from since the runner was told to end."
    elif refused is not None and missing_pods(job, pods):  # also a gang that waits for its last pod
        reason, detail = "FailedCreate", refused
    elif _begun(seen, gang):
        state = "running"
    else:
        reason, detail = _waiting(job, seen)
    return ObservedJob(
        name=meta.get("name") or "",
        uid=meta.get("uid") or "",
        owner_uid=controller_uid(job),
        purpose=_purpose(labels),
        attempt=_attempt(labels),
        state=state,
        cause=cause,
        reason=reason,
        detail=detail[:MAX_DETAIL] if detail else None,
        message=_message(seen, cause) if gang else _first_message(seen),
        created_at=parse_time(meta.get("creationTimestamp")),
        started_at=min((pod.started_at for pod in seen if pod.started_at), default=None),
        finished_at=_finished(status, failed or complete, seen) if state in ("succeeded", "failed") else None,
        deleting=is_deleting(job),
        abandoned=gang and lost and state == "failed" and failed is None,
    )


def missing_pods(job: RawObject, pods: list[RawObject]) -> bool:
    """Whether the Job controller has taken the Job up, and yet there are too few pods: it wants more and is refused.

    A start time without active pods is written only then; where pods are merely slow both are written at once.
    """
    status = job.get("status") or {}
    over = any(_condition(status, type_) for type_ in ("Complete", "Failed", "FailureTarget", "SuccessCriteriaMet"))
    counted = sum(int(status.get(key) or 0) for key in ("active", "succeeded", "failed", "terminating"))
    wanted = int((job.get("spec") or {}).get("parallelism") or 1)
    missing = max(counted, len(pods)) < wanted
    return missing and bool(status.get("startTime")) and not (over or is_deleting(job) or _suspended(job))


def _lost(pods: list[_Pod], now: dt.datetime, after: float, gang: bool) -> bool:
    lost = [pod for pod in pods if pod.lost(now, after)]
    return bool(lost) and (gang or all(pod.over for pod in pods if pod not in lost))


def recheck_after(pods: list[RawObject], now: dt.datetime, lost_after: float = LOST_SECONDS) -> float | None:
    """Seconds until a terminating pod counts as lost, None if none is terminating."""
    left = [
        lost_after - (now - due).total_seconds()
        for pod in map(_Pod, pods)
        if (due := parse_time(meta_of(pod.raw).get("deletionTimestamp"))) is not None and not pod.over
    ]
    waits = [seconds for seconds in left if seconds > 0]
    return min(waits) + 0.5 if waits else None


def parse_time(text: Any) -> dt.datetime | None:
    """A time as Kubernetes writes it."""
    if not isinstance(text, str):
        return None
    try:
        value = dt.datetime.fromisoformat(text)
    except ValueError:
        return None
    return value if value.tzinfo is not None else value.replace(tzinfo=dt.UTC)


def _begun(pods: list[_Pod], gang: bool) -> bool:
    begun = [pod for pod in pods if pod.running or pod.terminated]
    return bool(begun) and (not gang or all(pod.over for pod in pods if pod not in begun))


def _cause(failed: dict[str, Any], pods: list[_Pod], gang: bool) -> tuple[Cause, str | None, str | None]:
    """Why a Job failed, in the order of its FailJob rules: exit 2, 143, a disruption; then memory, then all else.

    In a gang 143 comes last: every rank ends with it when another one is lost.
    """
    text = str(failed.get("message") or "")
    explained = [pod for pod in pods if pod.decisive] if gang else []
    pods = explained or pods
    codes = {pod.exit_code: pod for pod in pods if pod.exit_code is not None}
    said = _EXIT_CODE.search(text)
    known = {*codes, *((int(said[1]),) if said else ())}
    if ExitCode.INVALID in known:
        return "invalid", "Invalid", None
    if ExitCode.TERMINATED in known and not explained:
        return "terminated", "Terminated", None
    for pod in pods:
        if pod.disruption is not None or _turned_away(pod.status.get("reason") or ""):
            why = pod.disruption or {}
            reason = pod.status.get("reason") or why.get("reason")
            return "disrupted", reason, pod.status.get("message") or why.get("message")
    if "DisruptionTarget" in text and not explained:
        return "disrupted", "DisruptionTarget", text
    for pod in pods:
        if pod.terminated and pod.terminated.get("reason") == "OOMKilled":
            return "oom", "OOMKilled", None
    for code, pod in sorted(codes.items()):
        if code != 0:
            named = (pod.terminated or {}).get("reason")
            return "error", named if named not in (None, "Error") else f"ExitCode{code}", pod.status.get("message")
    return "error", failed.get("reason"), text or None


def _waiting(job: RawObject, pods: list[_Pod]) -> tuple[str | None, str | None]:
    """Why nothing runs yet, in the cluster's words."""
    if _suspended(job):
        return "Queued", "The Job is suspended until a queue admits it."
    for pod in pods:
        waiting = (pod.container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
            return waiting["reason"], waiting.get("message")
        for item in pod.status.get("initContainerStatuses") or ():
            waiting = (item.get("state") or {}).get("waiting") or {}
            if waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
                return waiting["reason"], waiting.get("message")
        for item in pod.status.get("conditions") or ():
            if item.get("type") == "PodScheduled" and item.get("status") == "False":
                return item.get("reason"), item.get("message")
    return None, None


def _turned_away(reason: str) -> bool:
    return reason in _NODES_REASONS or reason.startswith("OutOf")


def _suspended(job: RawObject) -> bool:
    return bool((job.get("spec") or {}).get("suspend"))


def _message(pods: list[_Pod], cause: Cause | None) -> str | None:
    """A gang's termination message: rank 0's if it succeeded, else that of the rank which tells the cause."""
    first = _first_message([pod for pod in pods if pod.rank == 0])
    result = RunResult.from_message(first)
    if cause is None or (result is not None and result.phase == "Succeeded"):
        return first
    telling = [pod for pod in pods if (pod.exit_code == ExitCode.INVALID if cause == "invalid" else pod.decisive)]
    return _first_message(telling) if telling else first


def _first_message(pods: list[_Pod]) -> str | None:
    """The termination message of the first pod that left one."""
    for pod in pods:
        text = (pod.terminated or {}).get("message")
        if text:
            return str(text)
    return None


def _finished(status: dict[str, Any], condition: dict[str, Any] | None, pods: list[_Pod]) -> dt.datetime | None:
    ends = [parse_time((pod.terminated or {}).get("finishedAt")) for pod in pods]
    last = max((end for end in ends if end is not None), default=None)
    return (
        last
        or parse_time(status.get("completionTime"))
        or parse_time((condition or {}).get("lastTransitionTime"))
        or max((due for pod in pods if (due := parse_time(meta_of(pod.raw).get("deletionTimestamp")))), default=None)
    )


def _condition(status: dict[str, Any], type_: str) -> dict[str, Any] | None:
    """A condition that holds."""
    found = (
        item for item in status.get("conditions") or () if item.get("type") == type_ and item.get("status") == "True"
    )
    return next(found, None)


def _age(pod: RawObject) -> float:
    """Sorts newer pods first."""
    made = parse_time(meta_of(pod).get("creationTimestamp"))
    return -made.timestamp() if made else 0.0


def _purpose(labels: dict[str, str]) -> Purpose:
    text = labels.get(f"{LABELS}/purpose", "trial")
    return cast(Purpose, text) if text in get_args(Purpose) else "trial"


def _attempt(labels: dict[str, str]) -> int:
    text = labels.get(f"{LABELS}/attempt", "")
    return int(text) if text.isascii() and text.isdigit() and 0 < len(text) <= 9 else 1
