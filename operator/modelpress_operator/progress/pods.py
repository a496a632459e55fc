"""Owners of a pod: from the pod over its Job to the CompressionJob, by owner reference and uid.

Labels are only looked at once that chain holds: whoever may create pods may label them as they like.
"""

from __future__ import annotations

from collections.abc import Mapping

from modelpress.api.v1alpha1 import TERMINAL_PHASES
from modelpress_operator.cache import Cache
from modelpress_operator.resources import (
    COMPRESSION_JOBS,
    JOBS,
    LABELS,
    PODS,
    RawObject,
    Resource,
    controller_of,
    labels_of,
    meta_of,
)

JOB_LABEL, ATTEMPT_LABEL, PURPOSE_LABEL = f"{LABELS}/job", f"{LABELS}/attempt", f"{LABELS}/purpose"


class CachedPods:
    """Looks pods up in the operator's cache."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    def pod_of(self, namespace: str, name: str, uid: str) -> Mapping[str, str] | None:
        """The labels of a live pod that runs the present attempt of a CompressionJob; None if there is no such pod."""
        pod = self._cache.get(PODS, namespace, name)
        if pod is None or meta_of(pod).get("uid") != uid:
            return None
        if (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
            return None
        job = self._owner(JOBS, namespace, pod)
        owner = None if job is None else self._owner(COMPRESSION_JOBS, namespace, job)
        if job is None or owner is None:
            return None
        labels, status = labels_of(job), owner.get("status") or {}
        if status.get("phase") in TERMINAL_PHASES or labels.get(PURPOSE_LABEL) != "trial":
            return None
        if labels.get(ATTEMPT_LABEL) != str(status.get("started")):
            return None  # a pod that was given up, on a node that nobody hears from
        return {**labels, JOB_LABEL: str(meta_of(owner)["name"])}

    def _owner(self, resource: Resource, namespace: str, obj: RawObject) -> RawObject | None:
        ref = controller_of(obj)
        if ref is None or ref.get("kind") != resource.kind:
            return None
        owner = self._cache.get(resource, namespace, str(ref.get("name")))
        return owner if owner is not None and meta_of(owner).get("uid") == ref.get("uid") else None
