"""Objects of a cluster as plain data, read with care: an operator of a later version may have written them."""

from __future__ import annotations

import datetime as dt
from typing import Any

from modelpress import trials
from modelpress.api.v1alpha1 import TERMINAL_PHASES, reasons
from modelpress.cli.exits import Exit
from modelpress.plainjson import json_of
from modelpress.trials import PARAMETERS_ANNOTATION

from .connection import SWEEP, Raw


def meta(obj: Raw) -> dict[str, Any]:
    """metadata."""
    return obj.get("metadata") or {}


def name(obj: Raw) -> str:
    """metadata.name."""
    return str(meta(obj).get("name") or "")


def status(obj: Raw) -> dict[str, Any]:
    """status; empty if the operator has not seen the object yet."""
    return obj.get("status") or {}


def phase(obj: Raw) -> str:
    """status.phase; Pending before there is one."""
    return str(status(obj).get("phase") or "Pending")


def is_sweep(obj: Raw) -> bool:
    """Whether it is a CompressionSweep."""
    return bool(obj.get("kind") == SWEEP.name)


def is_finished(obj: Raw) -> bool:
    """Whether nothing more will happen to it."""
    return phase(obj) in TERMINAL_PHASES


def condition(obj: Raw, type_: str) -> dict[str, Any] | None:
    """A condition, whatever its status."""
    return next((item for item in status(obj).get("conditions") or () if item.get("type") == type_), None)


def holds(obj: Raw, type_: str, wanted: str = "True") -> bool:
    """Whether a condition has this status."""
    found = condition(obj, type_)
    return found is not None and found.get("status") == wanted


def why(obj: Raw) -> str:
    """Reason and message of the condition that says most about the present state."""
    for type_ in (reasons.FAILED, reasons.STALLED, reasons.COMPLETE, reasons.READY):
        found = condition(obj, type_)
        if found is not None and (found.get("status") == "True" or type_ == reasons.READY):
            message = found.get("message")
            return f"{found.get('reason')}: {message}" if message else str(found.get("reason"))
    return ""


def metrics(obj: Raw) -> tuple[dict[str, float], dict[str, float]]:
    """A job's metrics: the dense model's and the compressed model's."""
    pair = status(obj).get("metrics") or {}
    return pair.get("baseline") or {}, pair.get("compressed") or {}


def trial_number(obj: Raw) -> int | None:
    """Number of a trial, None for a standalone job."""
    record = status(obj).get("trial")
    return int(record["number"]) if record is not None else trials.trial_number(meta(obj).get("labels"))


def parameters(obj: Raw) -> dict[str, Any]:
    """A trial's parameters."""
    record = status(obj).get("trial")
    if record is not None:
        return dict(record["parameters"])
    try:
        value = json_of((meta(obj).get("annotations") or {}).get(PARAMETERS_ANNOTATION) or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def age(obj: Raw, now: dt.datetime) -> str:
    """Time since it was created, as kubectl writes it: 45s, 12m, 3h, 5d."""
    try:
        made = dt.datetime.fromisoformat(str(meta(obj).get("creationTimestamp")).replace("Z", "+00:00"))
    except ValueError:
        return ""
    seconds = max(0, int((now - made).total_seconds()))
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def exit_code_of(obj: Raw) -> int:
    """What `modelpress run` would exit with for an object in this final state."""
    if phase(obj) != "Succeeded":
        failed = condition(obj, reasons.FAILED)
        invalid = failed is not None and failed.get("reason") in (reasons.INVALID_SPEC, reasons.INVALID_MODEL)
        return Exit.INVALID if invalid else Exit.FAILED
    available = condition(obj, reasons.ARTIFACT_AVAILABLE) or {}
    if (available.get("status"), available.get("reason")) == ("False", reasons.PUBLISH_FAILED):
        return Exit.FAILED
    if holds(obj, reasons.CONSTRAINTS_MET, "False") or holds(obj, reasons.CONSTRAINTS_MET, "Unknown"):
        return Exit.MISSED
    if is_sweep(obj) and status(obj).get("best") is None:
        return Exit.MISSED if (status(obj).get("trials") or {}).get("succeeded") else Exit.FAILED
    return Exit.DONE


def store_of(obj: Raw) -> dict[str, Any]:
    """spec.store, of a sweep its template's."""
    spec = obj.get("spec") or {}
    recipe = (spec.get("template") or {}).get("spec") or {} if is_sweep(obj) else spec
    return recipe.get("store") or {}
