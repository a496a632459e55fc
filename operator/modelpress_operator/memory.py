"""An API server in memory: the twin of AioClient for tests, held to the same contract suite.

It knows versions, uids, generations of specs, the status subresource, optimistic locking and foreground deletion;
schemas, defaults and permissions it does not.
"""

from __future__ import annotations

import copy
import datetime as dt
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from .client import (
    AlreadyExistsError,
    ClusterError,
    ConflictError,
    InvalidError,
    NotFoundError,
    apply_merge_patch,
)
from .resources import RawObject, Resource, labels_of, meta_of

ObjectId = tuple[Resource, str, str]
Fault = Callable[[str, Resource, str], ClusterError | None]  # verb, resource, name -> what goes wrong instead


class MemoryClient:
    """ClusterClient without a cluster. `fault` may make any request fail before it does anything."""

    def __init__(self) -> None:
        self._objects: dict[ObjectId, RawObject] = {}
        self._version = 0
        self.fault: Fault = lambda verb, resource, name: None
        self.requests: list[tuple[str, str, str]] = []  # verb, plural, name

    @property
    def version(self) -> int:
        """The resourceVersion of the last change."""
        return self._version

    async def get(self, resource: Resource, namespace: str, name: str) -> RawObject:
        self._ask("get", resource, name)
        return copy.deepcopy(self._there(resource, namespace, name))

    async def list(
        self,
        resource: Resource,
        namespace: str | None,
        *,
        labels: Mapping[str, str] | None = None,
        fields: Mapping[str, str] | None = None,
    ) -> list[RawObject]:
        self._ask("list", resource, "")
        return [
            copy.deepcopy(obj)
            for object_id, obj in sorted(self._objects.items(), key=lambda item: item[0][1:])
            if object_id[0] is resource
            and namespace in (None, object_id[1])
            and (labels or {}).items() <= labels_of(obj).items()
            and all(_at(obj, path) == value for path, value in (fields or {}).items())
        ]

    async def create(self, resource: Resource, namespace: str, obj: RawObject) -> RawObject:
        meta = copy.deepcopy(meta_of(obj))
        name = meta.get("name")
        self._ask("create", resource, name or "")
        if not name:
            raise InvalidError("metadata.name: Required value", status=422)
        object_id = (resource, namespace, name)
        if object_id in self._objects:
            raise AlreadyExistsError(f'{resource.plural} "{name}" already exists', status=409)
        meta |= {
            "namespace": namespace,
            "uid": str(uuid.uuid4()),
            "generation": 1,
            "creationTimestamp": dt.datetime.now(dt.UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        }
        kept = {key: value for key, value in copy.deepcopy(obj).items() if key != "status"}
        return self._store(object_id, {**kept, "metadata": meta})

    async def patch(
        self, resource: Resource, namespace: str, name: str, patch: RawObject, resource_version: str
    ) -> RawObject:
        body = {key: value for key, value in patch.items() if key != "status"}
        return self._patch(resource, namespace, name, body, resource_version)

    async def patch_status(
        self, resource: Resource, namespace: str, name: str, patch: RawObject, resource_version: str
    ) -> RawObject:
        return self._patch(resource, namespace, name, {"status": patch} if patch else {}, resource_version)

    async def delete(
        self, resource: Resource, namespace: str, name: str, uid: str, grace: int | None = None
    ) -> RawObject | None:
        self._ask("delete", resource, name)
        there = self._there(resource, namespace, name)
        if meta_of(there)["uid"] != uid:
            raise ConflictError(f'{resource.plural} "{name}" has another uid', status=409)
        object_id = (resource, namespace, name)
        if any(ref.get("uid") == uid for obj in self._objects.values() for ref in _owners(obj)):
            now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
            meta = {**meta_of(there), "deletionTimestamp": now}
            return self._store(object_id, {**there, "metadata": meta})
        del self._objects[object_id]
        return None

    async def close(self) -> None:
        return None

    def _patch(
        self, resource: Resource, namespace: str, name: str, patch: RawObject, resource_version: str
    ) -> RawObject:
        self._ask("patch", resource, name)
        there = self._there(resource, namespace, name)
        if meta_of(there)["resourceVersion"] != resource_version:
            raise ConflictError(f'{resource.plural} "{name}": the object has been modified', status=409)
        changed: dict[str, Any] = apply_merge_patch(there, patch)
        if changed == there:
            return copy.deepcopy(there)
        if changed.get("spec") != there.get("spec"):
            changed = apply_merge_patch(changed, {"metadata": {"generation": meta_of(there)["generation"] + 1}})
        return self._store((resource, namespace, name), copy.deepcopy(changed))

    def _store(self, object_id: ObjectId, obj: RawObject) -> RawObject:
        self._version += 1
        obj = {**obj, "metadata": {**meta_of(obj), "resourceVersion": str(self._version)}}
        self._objects[object_id] = obj
        return copy.deepcopy(obj)

    def _there(self, resource: Resource, namespace: str, name: str) -> RawObject:
        there = self._objects.get((resource, namespace, name))
        if there is None:
            raise NotFoundError(f'{resource.plural} "{name}" not found', status=404)
        return there

    def _ask(self, verb: str, resource: Resource, name: str) -> None:
        self.requests.append((verb, resource.plural, name))
        error = self.fault(verb, resource, name)
        if error is not None:
            raise error


def _owners(obj: RawObject) -> list[dict[str, Any]]:
    return [ref for ref in meta_of(obj).get("ownerReferences") or () if ref.get("blockOwnerDeletion")]


def _at(obj: RawObject, path: str) -> Any:
    value: Any = obj
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value
