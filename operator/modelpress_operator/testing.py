"""The contract of ClusterClient, as tests: a subclass gives `client` and `namespace` as fixtures.

Written against kube-apiserver; whatever else claims to be a ClusterClient must pass it too.
"""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from .client import AlreadyExistsError, ClusterClient, ConflictError, InvalidError, NotFoundError
from .resources import COMPRESSION_JOBS, EVENTS, JOBS, LEASES, RawObject, meta_of


def lease(name: str, **spec: Any) -> RawObject:
    """The simplest object that the operator writes."""
    return {
        "apiVersion": LEASES.api_version,
        "kind": LEASES.kind,
        "metadata": {"name": name, "labels": {"test": name}},
        "spec": {"holderIdentity": "a", **spec},
    }


def compression_job(name: str) -> RawObject:
    """An object with a status subresource."""
    spec = {
        "model": {"entrypoint": "digits:create"},
        "stages": [{"finetune": {"epochs": 1}}],
        "store": {"uri": "s3://models/out"},
    }
    return {
        "apiVersion": COMPRESSION_JOBS.api_version,
        "kind": COMPRESSION_JOBS.kind,
        "metadata": {"name": name},
        "spec": spec,
    }


def event(name: str, namespace: str, uid: str, reason: str) -> RawObject:
    """An Event on the Job of this uid."""
    return {
        "apiVersion": EVENTS.api_version,
        "kind": EVENTS.kind,
        "metadata": {"name": name},
        "eventTime": "2026-01-01T00:00:00.000000Z",
        "type": "Warning",
        "reason": reason,
        "action": "Create",
        "note": "a note",
        "regarding": {"apiVersion": "batch/v1", "kind": "Job", "namespace": namespace, "name": "j", "uid": uid},
        "reportingController": "modelpress.dev/test",
        "reportingInstance": "test",
    }


def unique(stem: str) -> str:
    """A name that no other test uses."""
    return f"{stem}-{uuid.uuid4().hex[:8]}"


class ClusterClientContract:
    """What every ClusterClient does."""

    async def test_what_was_created_can_be_read(self, client: ClusterClient, namespace: str) -> None:
        """The answer to a creation is the object as it is stored, with uid and version."""
        made = await client.create(LEASES, namespace, lease(name := unique("read")))
        assert meta_of(made)["namespace"] == namespace
        assert meta_of(made)["uid"]
        assert await client.get(LEASES, namespace, name) == made

    async def test_a_name_is_taken_once(self, client: ClusterClient, namespace: str) -> None:
        """Creating an object again is AlreadyExistsError, not a conflict of versions."""
        await client.create(LEASES, namespace, lease(name := unique("twice")))
        with pytest.raises(AlreadyExistsError):
            await client.create(LEASES, namespace, lease(name))

    async def test_what_is_not_there(self, client: ClusterClient, namespace: str) -> None:
        """Reading, patching and deleting nothing is NotFoundError."""
        with pytest.raises(NotFoundError):
            await client.get(LEASES, namespace, "nothing")
        with pytest.raises(NotFoundError):
            await client.patch(LEASES, namespace, "nothing", {"spec": {}}, "1")
        with pytest.raises(NotFoundError):
            await client.patch_status(COMPRESSION_JOBS, namespace, "nothing", {"phase": "Running"}, "1")
        with pytest.raises(NotFoundError):
            await client.delete(LEASES, namespace, "nothing", str(uuid.uuid4()))

    async def test_an_object_without_a_name_is_invalid(self, client: ClusterClient, namespace: str) -> None:
        """What the server never takes is InvalidError."""
        with pytest.raises(InvalidError):
            await client.create(LEASES, namespace, {**lease("x"), "metadata": {}})

    async def test_lists_by_label(self, client: ClusterClient, namespace: str) -> None:
        """Labels select; a namespace holds only its own."""
        names = [unique("list") for _ in range(2)]
        for name in names:
            await client.create(LEASES, namespace, lease(name))
        found = await client.list(LEASES, namespace, labels={"test": names[0]})
        assert [meta_of(one)["name"] for one in found] == names[:1]
        assert set(names) <= {meta_of(one)["name"] for one in await client.list(LEASES, namespace)}
        assert await client.list(JOBS, namespace) == []

    async def test_lists_by_field(self, client: ClusterClient, namespace: str) -> None:
        """Paths that the server knows select: here what an Event is about, and its reason."""
        uid = str(uuid.uuid4())
        for reason in ("FailedCreate", "Other"):
            await client.create(EVENTS, namespace, event(unique("event"), namespace, uid, reason))
        found = await client.list(EVENTS, namespace, fields={"regarding.uid": uid, "reason": "FailedCreate"})
        assert [(one["regarding"]["uid"], one["reason"]) for one in found] == [(uid, "FailedCreate")]

    async def test_a_patch_merges_into_the_version_it_names(self, client: ClusterClient, namespace: str) -> None:
        """Other fields stay, null removes, the version goes up; an older version is a conflict."""
        made = await client.create(LEASES, namespace, lease(name := unique("patch"), leaseTransitions=1))
        version = meta_of(made)["resourceVersion"]
        patch = {"spec": {"holderIdentity": "b", "leaseTransitions": None}}
        changed = await client.patch(LEASES, namespace, name, patch, version)
        assert changed["spec"] == {"holderIdentity": "b"}
        assert meta_of(changed)["labels"] == {"test": name}
        assert int(meta_of(changed)["resourceVersion"]) > int(version)
        with pytest.raises(ConflictError):
            await client.patch(LEASES, namespace, name, {"spec": {"holderIdentity": "c"}}, version)
        assert (await client.get(LEASES, namespace, name))["spec"]["holderIdentity"] == "b"

    async def test_a_status_is_patched_apart(self, client: ClusterClient, namespace: str) -> None:
        """A status patch changes the status alone and leaves the generation; lists are replaced as a whole."""
        made = await client.create(COMPRESSION_JOBS, namespace, compression_job(name := unique("status")))
        version = meta_of(made)["resourceVersion"]
        patch = {"phase": "Running", "observedGeneration": 1, "started": 1}
        changed = await client.patch_status(COMPRESSION_JOBS, namespace, name, patch, version)
        assert patch.items() <= changed["status"].items()
        assert changed["spec"] == made["spec"]
        assert meta_of(changed)["generation"] == meta_of(made)["generation"] == 1
        with pytest.raises(ConflictError):
            await client.patch_status(COMPRESSION_JOBS, namespace, name, {"phase": "Failed"}, version)

    async def test_an_empty_status_patch_checks_the_version(self, client: ClusterClient, namespace: str) -> None:
        """It changes nothing but perhaps the version; on another version it is a conflict."""
        made = await client.create(COMPRESSION_JOBS, namespace, compression_job(name := unique("fence")))
        version = meta_of(made)["resourceVersion"]
        same = await client.patch_status(COMPRESSION_JOBS, namespace, name, {}, version)
        assert (same["spec"], same.get("status")) == (made["spec"], made.get("status"))
        version = meta_of(same)["resourceVersion"]
        await client.patch_status(COMPRESSION_JOBS, namespace, name, {"phase": "Running"}, version)
        with pytest.raises(ConflictError):
            await client.patch_status(COMPRESSION_JOBS, namespace, name, {}, version)

    async def test_deletes_by_uid(self, client: ClusterClient, namespace: str) -> None:
        """Another object of the same name stays."""
        made = await client.create(LEASES, namespace, lease(name := unique("delete")))
        with pytest.raises(ConflictError):
            await client.delete(LEASES, namespace, name, str(uuid.uuid4()))
        assert (await client.get(LEASES, namespace, name))["metadata"]["uid"] == meta_of(made)["uid"]
        await client.delete(LEASES, namespace, name, meta_of(made)["uid"])

    async def test_an_owner_waits_for_what_blocks_it(self, client: ClusterClient, namespace: str) -> None:
        """Deleting an owner of a dependant answers with the object, marked, as long as it waits."""
        owner = await client.create(LEASES, namespace, lease(unique("owner")))
        meta = meta_of(owner)
        reference = {"apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": meta["name"], "uid": meta["uid"]}
        child = lease(unique("child"))
        child["metadata"] |= {"ownerReferences": [{**reference, "blockOwnerDeletion": True}]}
        await client.create(LEASES, namespace, child)
        waiting = await client.delete(LEASES, namespace, meta["name"], meta["uid"])
        assert waiting is not None
        assert meta_of(waiting)["deletionTimestamp"]
