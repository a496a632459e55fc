"""Leader election by a Lease of coordination.k8s.io, as client-go does it.

Time is measured by the local monotonic clock from when a change of the Lease was seen, so clocks need not agree. A
leader stops writing well before others may take over; it also gives the Lease up when it ends in good order, and takes
it back at once under the identity that it had (the same pod, its container restarted).
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import math
import time

from .client import AlreadyExistsError, ClusterClient, ClusterError, ConflictError, NotFoundError
from .metrics import Metrics
from .resources import LEASES, RawObject, meta_of

log = logging.getLogger(__name__)
RENEW_SHARE = 2 / 3  # of the lease's duration: until then a leader must have renewed it, or it leads no more
RETRY_SHARE = 2 / 15  # of the lease's duration: between two tries
FOLLOW_SHARE = 1 / 5  # of the lease's duration: between two looks of a follower
ADDRESS = "modelpress.dev/address"  # annotation: where the leader is reached


class LeaseLostError(Exception):
    """Another replica leads, or may soon: nothing may be written any more."""


class Leadership:
    """One candidate for a Lease."""

    def __init__(
        self,
        client: ClusterClient,
        metrics: Metrics,
        *,
        namespace: str,
        name: str,
        identity: str,
        seconds: float = 15.0,
        address: str | None = None,
    ) -> None:
        self._client = client
        self._metrics = metrics
        self._namespace = namespace
        self._name = name
        self.identity = identity
        self._seconds = seconds
        self.address = address
        self._lease: RawObject | None = None
        self._seen: tuple[str, float] = ("", 0.0)  # resourceVersion, and when it was first seen
        self._valid_until = -math.inf
        self.acquired = asyncio.Event()
        metrics.leader.set(0)

    @property
    def held(self) -> bool:
        """Whether this replica leads at this moment."""
        return time.monotonic() < self._valid_until

    @property
    def leader_address(self) -> str | None:
        """Where the leader is reached, as far as the Lease was seen last."""
        if self._lease is None or not (self._lease.get("spec") or {}).get("holderIdentity"):
            return None
        annotations: dict[str, str] = meta_of(self._lease).get("annotations") or {}
        return annotations.get(ADDRESS)

    def check(self) -> None:
        """Call before every write.

        Raises:
            LeaseLostError: this replica does not lead.
        """
        if not self.held:
            raise LeaseLostError(f"the Lease {self._namespace}/{self._name} is not held any more")

    async def run(self) -> None:
        """Acquire the Lease, set `acquired`, and keep it.

        Raises:
            LeaseLostError: it was lost, or could not be renewed in time.
        """
        while True:
            if await self._try():
                break
            await asyncio.sleep(self._seconds * FOLLOW_SHARE)
        log.info("leading as %s", self.identity)
        self._metrics.leader.set(1)
        self.acquired.set()
        try:
            while True:
                await asyncio.sleep(self._seconds * RETRY_SHARE)
                if not await self._try() and not self.held:
                    raise LeaseLostError(f"the Lease {self._namespace}/{self._name} was lost")
                self.check()
        finally:
            self._metrics.leader.set(0)

    async def release(self) -> None:
        """Give the Lease up, so that the next leader need not wait."""
        if not self.held or self._lease is None:
            return
        self._valid_until = -math.inf
        spec = {"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": _now()}
        try:
            version = str(meta_of(self._lease).get("resourceVersion"))
            await self._client.patch(LEASES, self._namespace, self._name, {"spec": spec}, version)
        except ClusterError as error:
            log.warning("the Lease could not be given up: %s", error)

    async def _try(self) -> bool:
        """Acquire or renew once; False if another one leads or the API server could not be asked."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._seconds * RENEW_SHARE):
                taken = await self._renew() if self.held else await self._take()
        except ConflictError:
            self._lease = None  # somebody else wrote it; the next try looks again
            if self.held:
                return await self._still_ours(began)
            return False
        except (ClusterError, TimeoutError) as error:
            log.warning("the Lease could not be renewed or read: %s", error or "no answer in time")
            return False
        if taken:
            self._valid_until = began + self._seconds * RENEW_SHARE
        return taken

    async def _still_ours(self, began: float) -> bool:
        """After a conflict: an earlier request of ours that timed out may have been carried out."""
        try:
            lease = await self._client.get(LEASES, self._namespace, self._name)
        except ClusterError:
            return False
        if (lease.get("spec") or {}).get("holderIdentity") != self.identity:
            self._valid_until = -math.inf
            return False
        self._lease = lease
        return False  # the next try renews it

    async def _renew(self) -> bool:
        if self._lease is None:
            self._lease = await self._client.get(LEASES, self._namespace, self._name)
        return await self._write(self._lease, {"renewTime": _now()})

    async def _take(self) -> bool:
        try:
            lease = self._lease = await self._client.get(LEASES, self._namespace, self._name)
        except NotFoundError:
            return await self._create()
        spec = lease.get("spec") or {}
        version, holder = str(meta_of(lease).get("resourceVersion")), spec.get("holderIdentity")
        if self._seen[0] != version:
            self._seen = (version, time.monotonic())
        silent = time.monotonic() - self._seen[1]
        if holder and holder != self.identity and silent < float(spec.get("leaseDurationSeconds") or self._seconds):
            return False
        changes = {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": math.ceil(self._seconds),
            "acquireTime": _now(),
            "renewTime": _now(),
            "leaseTransitions": int(spec.get("leaseTransitions") or 0) + (holder != self.identity),
        }
        return await self._write(lease, changes)

    async def _create(self) -> bool:
        kept = {key: value for key, value in self._annotations().items() if value is not None}
        lease = {
            "apiVersion": LEASES.api_version,
            "kind": LEASES.kind,
            "metadata": {"name": self._name, "namespace": self._namespace, "annotations": kept},
            "spec": {
                "holderIdentity": self.identity,
                "leaseDurationSeconds": math.ceil(self._seconds),
                "acquireTime": _now(),
                "renewTime": _now(),
                "leaseTransitions": 0,
            },
        }
        try:
            self._lease = await self._client.create(LEASES, self._namespace, lease)
        except AlreadyExistsError:
            return False
        return True

    async def _write(self, lease: RawObject, spec: RawObject) -> bool:
        version = str(meta_of(lease).get("resourceVersion"))
        patch: RawObject = {"spec": spec, "metadata": {"annotations": self._annotations()}}
        self._lease = await self._client.patch(LEASES, self._namespace, self._name, patch, version)
        return True

    def _annotations(self) -> dict[str, str | None]:
        return {ADDRESS: self.address}


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
