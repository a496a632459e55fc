"""The kinds of objects that the operator reads and writes, and where the API server serves them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from modelpress.api.v1alpha1.base import GROUP, VERSION

RawObject: TypeAlias = dict[str, Any]  # an object as the API server's JSON; never changed once it is in the cache

MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGER = "modelpress-operator"
LABELS = "modelpress.dev"  # prefix of our labels: job, sweep, trial, attempt, purpose


@dataclass(frozen=True)
class Resource:
    """One kind in one version; `group` is empty for the core group."""

    group: str
    version: str
    plural: str
    kind: str

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
        """Path of the collection, or of one object, below the server's address."""
        parts = [f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"]
        if namespace is not None:
            parts.append(f"namespaces/{namespace}")
        parts += [part for part in (self.plural, name, subresource) if part is not None]
        return "/".join(parts)


COMPRESSION_JOBS = Resource(GROUP, VERSION, "compressionjobs", "CompressionJob")
COMPRESSION_SWEEPS = Resource(GROUP, VERSION, "compressionsweeps", "CompressionSweep")
JOBS = Resource("batch", "v1", "jobs", "Job")
PODS = Resource("", "v1", "pods", "Pod")
SERVICES = Resource("", "v1", "services", "Service")
NETWORK_POLICIES = Resource("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy")
EVENTS = Resource("events.k8s.io", "v1", "events", "Event")
LEASES = Resource("coordination.k8s.io", "v1", "leases", "Lease")

WATCHED = (COMPRESSION_JOBS, COMPRESSION_SWEEPS, JOBS, PODS)
GANG_PARTS = (SERVICES, NETWORK_POLICIES)  # what a Job of several pods has beside it, under its name
ALL = (*WATCHED, *GANG_PARTS, EVENTS, LEASES)
BY_KIND: Mapping[str, Resource] = {resource.kind: resource for resource in ALL}


class Key(NamedTuple):
    """One object that is reconciled: a CompressionJob or a CompressionSweep."""

    resource: Resource
    namespace: str
    name: str


def meta_of(obj: RawObject) -> dict[str, Any]:
    """The object's metadata, empty if it has none."""
    meta: dict[str, Any] = obj.get("metadata") or {}
    return meta


def version_of(obj: RawObject) -> int:
    """resourceVersion as a number: versions of one resource can be compared."""
    text = str(meta_of(obj).get("resourceVersion") or "0")
    return int(text) if text.isdigit() else 0


def controller_of(obj: RawObject) -> dict[str, Any] | None:
    """The reference to the controlling owner."""
    return next((ref for ref in meta_of(obj).get("ownerReferences") or () if ref.get("controller")), None)


def controller_uid(obj: RawObject) -> str | None:
    """The uid of the controlling owner."""
    ref = controller_of(obj)
    return None if ref is None else ref.get("uid")


def labels_of(obj: RawObject) -> dict[str, str]:
    """The object's labels."""
    labels: dict[str, str] = meta_of(obj).get("labels") or {}
    return labels


def is_trial(obj: RawObject) -> bool:
    """Whether a CompressionJob is a trial of a sweep."""
    ref = controller_of(obj)
    return ref is not None and ref.get("kind") == COMPRESSION_SWEEPS.kind


def is_gang(job: RawObject) -> bool:
    """Whether a batch/v1 Job is one of several pods that train together."""
    return int((job.get("spec") or {}).get("completions") or 1) > 1


def is_deleting(obj: RawObject) -> bool:
    """Whether the API server was asked to delete it already."""
    return meta_of(obj).get("deletionTimestamp") is not None
