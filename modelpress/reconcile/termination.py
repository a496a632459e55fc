"""How a child Job ended: its cause and its termination message, read as one."""

from __future__ import annotations

import re
from dataclasses import dataclass

from modelpress.api.v1alpha1 import reasons as r
from modelpress.api.v1alpha1.job import AttemptOutcome
from modelpress.result import RunResult

from .conditions import cut, reason_of
from .model import ObservedJob

_DIGEST = re.compile(r"[0-9a-f]{64}")
_INVALID = frozenset({r.INVALID_MODEL, r.INVALID_SPEC, r.NOT_ON_CLUSTER, r.SPEC_TOO_LARGE})


@dataclass(frozen=True)
class Termination:
    """How a run ended, or is taken to have ended if no message of it arrives.

    `certain`: False where the runner may have committed a manifest and its message is lost; then the store decides.
    """

    outcome: AttemptOutcome
    reason: str
    message: str
    certain: bool = True
    result: RunResult | None = None


def read_termination(child: ObservedJob, *, started: bool) -> Termination:
    """How a terminal child ended. `started`: its runner was seen to run."""
    result = read_result(child)
    if result is not None and result.phase == "Succeeded":
        return Termination("Succeeded", r.SUCCEEDED, result.message, result=result)
    said = result if result is not None and result.phase == "Failed" else None
    detail = cut(_sentence(said.message if said and said.message else child.detail or ""), 700)
    if child.cause == "invalid" or (said is not None and said.reason in _INVALID):
        reason = reason_of(said.reason if said else None, r.INVALID_MODEL)
        return Termination("Invalid", reason, detail or "The runner ended with exit code 2.", result=said)
    ran = started or child.started_at is not None
    match child.cause:
        case "terminated":  # 143 comes after a checkpoint and before any manifest
            return Termination("Disrupted", r.RUNNER_TERMINATED, detail or "The runner was told to end.")
        case "disrupted":
            return Termination(
                "Disrupted", r.RUNNER_DISRUPTED, detail or _named(child, "was disrupted"), certain=not ran
            )
        case "oom":
            return Termination("Failed", r.RUNNER_OOM_KILLED, detail or "The runner was killed for memory.")
        case "error":
            reason = reason_of(said.reason if said else None)
            return Termination(
                "Failed", reason, detail or _named(child, "failed"), certain=said is not None or not ran, result=said
            )
    if said is not None:
        return Termination("Failed", reason_of(said.reason), detail or "The runner reports a failure.", result=said)
    return Termination("Failed", r.NOT_FOUND, "The runner ended with exit code 0 but left no manifest.", certain=False)


def read_result(child: ObservedJob) -> RunResult | None:
    """What the runner says in its termination message; None unless it is one that this kind of run can give."""
    result = RunResult.from_message(child.message)
    if result is None:
        return None
    if result.phase == "NotFound":
        return result if child.purpose == "collect" else None
    # Without the digest of its manifest a success proves nothing; a sweep without a best one publishes no manifest.
    needs_digest = child.purpose in ("trial", "collect") or result.manifest_digest is not None
    if result.phase == "Succeeded" and needs_digest and not _DIGEST.fullmatch(result.manifest_digest or ""):
        return None
    if child.purpose == "suggest" and result.phase == "Succeeded" and result.suggested is None:
        return None
    return result


def _named(child: ObservedJob, verb: str) -> str:
    return f"The runner {verb}" + (f": {cut(child.reason, 64)}." if child.reason else ".")


def _sentence(text: str) -> str:
    text = text.strip()
    return text if not text or text[-1] in ".!?…" else text + "."
