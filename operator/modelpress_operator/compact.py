"""What the cache keeps of an object: what somebody reads of it, and each part that many objects have only once.

A fleet of 10,000 finished trials is 30,000 objects, most of whose text is the same. Objects in the cache are never
changed, so their parts can be shared.

Of an object that cannot be handled a stub is kept: its metadata, its status, and under UNREAD, a key that the API
server never sends, why it is not read.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from modelpress.api.depth import depth_problem
from modelpress.api.v1alpha1 import reasons as r
from modelpress.request import MAX_REQUEST_BYTES

from .resources import COMPRESSION_JOBS, COMPRESSION_SWEEPS, JOBS, LABELS, PODS, RawObject, Resource

log = logging.getLogger(__name__)
MAX_SHARED = 8192  # parts that are remembered for sharing, the latest used
MAX_TEXT = 1024  # characters of a part that may be one of them, as JSON
MAX_WORD = 64  # characters of a text of which there is one copy
MAX_WORDS = 65_536  # such texts, the latest used
# Bytes of a spec as JSON. A job's is given to its runner; a sweep's holds a job's and a search space.
MAX_SPEC_BYTES = {COMPRESSION_JOBS: MAX_REQUEST_BYTES, COMPRESSION_SWEEPS: 2 * MAX_REQUEST_BYTES}
MAX_ANNOTATION = 64 * 1024  # characters; of ours, the history of 10,000 trials comes nearest
UNREAD = "unread"

META = (
    *("name", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp"),
    *("deletionGracePeriodSeconds", "labels", "annotations", "ownerReferences"),
)
OWNER = ("apiVersion", "kind", "name", "uid", "controller", "blockOwnerDeletion")
JOB_SPEC = ("suspend", "parallelism", "completions")
JOB_STATUS = ("conditions", "startTime", "completionTime", "active", "succeeded", "failed", "terminating")
POD_LABELS = ("batch.kubernetes.io/job-completion-index",)
POD_STATUS = ("phase", "reason", "message", "conditions", "containerStatuses", "initContainerStatuses")
CONDITION = ("type", "status", "reason", "message", "lastTransitionTime")


def transform(resource: Resource, obj: RawObject) -> RawObject:
    """The object as the cache keeps it: whole, or a stub that says why it is not."""
    try:
        stub = _unread(resource, obj)
        obj = obj if stub is None else {**obj, "spec": {}}
        shared = {
            key: _shared(value) if key == "spec" else _words(value)
            for key, value in strip_unread(resource, obj).items()
        }
    except Exception as error:  # whatever is in it: no other object may suffer
        meta = _pick(obj.get("metadata"), ("namespace", "name"))
        log.exception("%s %s/%s cannot be read", resource.kind, meta.get("namespace"), meta.get("name"))
        text = f"This operator cannot read the object: {type(error).__name__}."
        stub = {"reason": r.INVALID_SPEC, "message": text}
        shared = {
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": _meta(resource, obj.get("metadata")),
        }
    return shared if stub is None else {**shared, UNREAD: stub}


def _unread(resource: Resource, obj: RawObject) -> dict[str, str] | None:
    """Why an object's spec is not kept, as the reason and message of a condition; None if it is."""
    limit = MAX_SPEC_BYTES.get(resource)
    if limit is None or "spec" not in obj:
        return None
    problem = depth_problem(obj["spec"], ("spec",))
    if problem is not None:
        return {"reason": problem.reason, "message": str(problem)}
    text = json.dumps(obj["spec"], ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    if len(text) <= limit // 4:
        return None
    data = text.encode("utf-8", "surrogatepass")
    if len(data) <= limit:
        return None
    digest = hashlib.sha256(data).hexdigest()
    text = f"spec: {len(data)} bytes as JSON, more than the {limit} that are read; shorten it (sha256 {digest})."
    return {"reason": r.SPEC_TOO_LARGE, "message": text}


def strip_unread(resource: Resource, obj: RawObject) -> RawObject:
    """The object without what nobody reads; a Job's template and a pod's spec may be 256 KiB each."""
    meta = _meta(resource, obj.get("metadata"))
    out = {**obj, "apiVersion": resource.api_version, "kind": resource.kind, "metadata": meta}
    if resource is PODS:
        out.pop("spec", None)
        if "status" in obj:
            out["status"] = _pod_status(obj["status"])
    elif resource is JOBS:
        out["spec"] = _pick(obj.get("spec"), JOB_SPEC)
        if "status" in obj:
            status = out["status"] = _pick(obj["status"], JOB_STATUS)
            _replace(status, "conditions", CONDITION)
    return out


def _meta(resource: Resource, given: Any) -> RawObject:
    """Metadata without what others wrote there: all of it can be a mebibyte."""
    meta = _pick(given, META)
    if "ownerReferences" in meta:
        meta["ownerReferences"] = [_pick(ref, OWNER) for ref in meta["ownerReferences"] if ref.get("controller")]
    if "labels" in meta:
        names = POD_LABELS if resource is PODS else [name for name in meta["labels"] if _ours(name)]
        meta["labels"] = _pick(meta["labels"], names)
    if resource in (PODS, JOBS):
        meta.pop("annotations", None)
    elif "annotations" in meta:
        found = meta["annotations"].items()
        meta["annotations"] = {name: text for name, text in found if _ours(name) and len(text) <= MAX_ANNOTATION}
    return meta


def _ours(name: str) -> bool:
    return name.startswith(f"{LABELS}/")


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


@lru_cache(MAX_WORDS)
def _word(text: str) -> str:
    """The first text that equals this one. Not sys.intern: in Python 3.12 what it has taken in never goes."""
    return text


def _key(text: str) -> str:
    return _word(text) if len(text) <= MAX_WORD else text


def _words(value: Any) -> Any:
    """The value with one copy of each short text."""
    if isinstance(value, str):
        return _word(value) if len(value) <= MAX_WORD else value
    if isinstance(value, dict):
        return {_key(key): _words(item) for key, item in value.items()}
    return [_words(item) for item in value] if isinstance(value, list) else value


def _shared(value: Any) -> Any:
    """The value, made of parts that other objects have too where they are equal."""
    if not isinstance(value, dict | list):
        return _words(value)
    text = json.dumps(value)
    return _known(text) if len(text) <= MAX_TEXT else _apart(value)


def _apart(value: Any) -> Any:
    if isinstance(value, dict):
        return {_key(key): _shared(item) for key, item in value.items()}
    return [_shared(item) for item in value]


@lru_cache(MAX_SHARED)
def _known(text: str) -> Any:
    return _apart(json.loads(text))
