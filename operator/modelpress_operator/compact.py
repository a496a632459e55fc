"""What the cache keeps of an object: what somebody reads of it, and each part that many objects have only once.

A fleet of 10,000 finished trials is 30,000 objects, most of whose text is the same. Objects in the cache are never
changed, so their parts can be shared.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from .resources import JOBS, PODS, RawObject, Resource

MAX_SHARED = 8192  # parts that are remembered for sharing, the latest used
MAX_TEXT = 1024  # characters of a part that may be one of them, as JSON
MAX_WORD = 64  # characters of a text of which there is one copy

META = (
    *("name", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp"),
    *("deletionGracePeriodSeconds", "labels", "annotations", "ownerReferences", "finalizers"),
)
OWNER = ("apiVersion", "kind", "name", "uid", "controller", "blockOwnerDeletion")
JOB_SPEC = ("suspend", "parallelism", "completions")
JOB_STATUS = ("conditions", "startTime", "completionTime", "active", "succeeded", "failed", "terminating")
POD_LABELS = ("batch.kubernetes.io/job-completion-index",)
POD_STATUS = ("phase", "reason", "message", "conditions", "containerStatuses", "initContainerStatuses")
CONDITION = ("type", "status", "reason", "message", "lastTransitionTime")


def kept(resource: Resource, obj: RawObject) -> RawObject:
    """The object as the cache keeps it."""
    return {key: _shared(value) if key == "spec" else _words(value) for key, value in slim(resource, obj).items()}


def slim(resource: Resource, obj: RawObject) -> RawObject:
    """The object without what nobody reads; a Job's template and a pod's spec may be 256 KiB each."""
    meta = _pick(obj.get("metadata"), META)
    if "ownerReferences" in meta:
        meta["ownerReferences"] = [_pick(ref, OWNER) for ref in meta["ownerReferences"]]
    out = {**obj, "apiVersion": resource.api_version, "kind": resource.kind, "metadata": meta}
    if resource is PODS:
        out.pop("spec", None)
        meta.pop("annotations", None)
        if "labels" in meta:
            meta["labels"] = _pick(meta["labels"], POD_LABELS)
        if "status" in obj:
            out["status"] = _pod_status(obj["status"])
    elif resource is JOBS:
        out["spec"] = _pick(obj.get("spec"), JOB_SPEC)
        if "status" in obj:
            status = out["status"] = _pick(obj["status"], JOB_STATUS)
            _replace(status, "conditions", CONDITION)
    return out


def _pod_status(given: RawObject) -> RawObject:
    status = _pick(given, POD_STATUS)
    _replace(status, "conditions", CONDITION)
    for name in ("containerStatuses", "initContainerStatuses"):
        _replace(status, name, ("name", "state"))
    return status


def _replace(status: RawObject, name: str, keys: Iterable[str]) -> None:
    if status.get(name):
        status[name] = [_pick(item, keys) for item in status[name]]


def _pick(value: Any, keys: Iterable[str]) -> RawObject:
    given = value or {}
    return {key: given[key] for key in keys if key in given}


def _words(value: Any) -> Any:
    """The value with one copy of each short text."""
    if isinstance(value, str):
        return sys.intern(value) if len(value) <= MAX_WORD else value
    if isinstance(value, dict):
        return {sys.intern(key): _words(item) for key, item in value.items()}
    return [_words(item) for item in value] if isinstance(value, list) else value


def _shared(value: Any) -> Any:
    """The value, made of parts that other objects have too where they are equal."""
    if not isinstance(value, dict | list):
        return _words(value)
    text = json.dumps(value)
    return _known(text) if len(text) <= MAX_TEXT else _apart(value)


def _apart(value: Any) -> Any:
    if isinstance(value, dict):
        return {sys.intern(key): _shared(item) for key, item in value.items()}
    return [_shared(item) for item in value]


@lru_cache(MAX_SHARED)
def _known(text: str) -> Any:
    return _apart(json.loads(text))
