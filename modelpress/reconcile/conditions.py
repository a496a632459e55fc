"""From a verdict to conditions, events and a status that changes only when something did."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from modelpress.api.v1alpha1 import Condition, Phase
from modelpress.api.v1alpha1 import reasons as r
from modelpress.control_characters import escape_control_characters

from .model import EmitEvent

# Of what calls for a look though nothing has failed yet.
_WORRYING = frozenset(
    {r.RETRYING, r.COLLECTING, r.PODS_REFUSED, r.UNSCHEDULABLE, r.IMAGE_UNAVAILABLE, r.POD_NOT_STARTED}
)
MAX_MESSAGE = 1024  # characters; eleven conditions of this length leave a sweep's status far below 64 KiB
_REASON = re.compile(r"[A-Za-z]([A-Za-z0-9_]{0,62}[A-Za-z0-9])?")


@dataclass(frozen=True)
class Verdict:
    """What the first policy that applied decided: the phase, a documented reason, a sentence for people.

    `reconciling`: on the way from one state to the next. `stalled`: a person must act. Both only where the phase does
    not say so itself: a failed object is always stalled.
    """

    phase: Phase
    reason: str
    message: str
    reconciling: bool = False
    stalled: bool = False


@dataclass(frozen=True)
class ConditionUpdate:
    """A condition without its times."""

    type: str
    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str = ""


def summary(verdict: Verdict, suspended: Verdict | None, previous: Sequence[Condition]) -> list[ConditionUpdate]:
    """The six conditions that both kinds always have. `suspended` says why, where suspension is in effect."""
    phase, reason, message = verdict.phase, verdict.reason, verdict.message
    complete, failed = phase in ("Succeeded", "Stopped"), phase == "Failed"
    stalled = failed or verdict.stalled
    ready = complete or (phase == "Running" and not stalled)
    before = find(previous, r.SUSPENDED)
    resumed = before is not None and (before.status == "True" or before.reason == r.RESUMED)
    return [
        ConditionUpdate(r.READY, _is(ready), reason, message),
        ConditionUpdate(r.RECONCILING, _is(verdict.reconciling), reason, message if verdict.reconciling else ""),
        ConditionUpdate(r.STALLED, _is(stalled), reason, message if stalled else ""),
        ConditionUpdate(r.SUSPENDED, "True", suspended.reason, suspended.message)
        if suspended
        else ConditionUpdate(r.SUSPENDED, "False", r.RESUMED if resumed else reason),
        ConditionUpdate(r.COMPLETE, _is(complete), reason, message if complete else ""),
        ConditionUpdate(r.FAILED, _is(failed), reason, message if failed else ""),
    ]


def merge(
    previous: Sequence[Condition], wanted: Iterable[ConditionUpdate], now: dt.datetime, generation: int
) -> list[Condition]:
    """The wanted conditions; the time of a transition is kept where the status is what it was."""
    known = {condition.type: condition for condition in previous}
    merged = []
    for item in wanted:
        old = known.get(item.type)
        merged.append(
            Condition(
                type=item.type,
                status=item.status,
                reason=reason_of(item.reason),
                message=cut(item.message),
                last_transition_time=old.last_transition_time if old and old.status == item.status else now,
                observed_generation=generation,
            )
        )
    return merged


def find(conditions: Sequence[Condition], type_: str) -> Condition | None:
    """The condition of that type, if there is one."""
    return next((condition for condition in conditions if condition.type == type_), None)


def is_true(conditions: Sequence[Condition], type_: str) -> bool:
    """Whether the condition is there and True."""
    condition = find(conditions, type_)
    return condition is not None and condition.status == "True"


def transition(previous: Sequence[Condition], phase: Phase | None, verdict: Verdict) -> list[EmitEvent]:
    """One event where phase or reason changed, none otherwise."""
    ready = find(previous, r.READY)
    if phase == verdict.phase and ready is not None and ready.reason == reason_of(verdict.reason):
        return []
    warn = verdict.stalled or verdict.phase == "Failed" or verdict.reason in _WORRYING
    return [EmitEvent("Warning" if warn else "Normal", reason_of(verdict.reason), cut(verdict.message))]


def reason_of(text: str | None, otherwise: str = r.RUNNER_FAILED) -> str:
    """`text` where the API accepts it as a condition's reason."""
    return text if text and _REASON.fullmatch(text) else otherwise


def cut(text: str, length: int = MAX_MESSAGE) -> str:
    """`text` of at most `length` characters, none of which acts on a terminal."""
    text = escape_control_characters(text)
    return text if len(text) <= length else text[: length - 1] + "…"


def stamp(time: dt.datetime) -> dt.datetime:
    """The time as a status keeps it, in UTC with milliseconds: what is compared must survive the API server."""
    time = time.astimezone(dt.UTC)
    return time.replace(microsecond=time.microsecond // 1000 * 1000)


def seconds(start: dt.datetime, end: dt.datetime) -> float:
    """From start to end in seconds, never negative: clocks of nodes differ from ours."""
    return max(0.0, round((end - start).total_seconds(), 3))


def soonest(*waits: float | None) -> float | None:
    """The shortest of the waits that are set, never negative."""
    return max(0.0, min(known)) if (known := [wait for wait in waits if wait is not None]) else None


def _is(value: bool) -> Literal["True", "False"]:
    return "True" if value else "False"
