"""Events on the objects: written in the background, a few at a time; one that cannot be written is only logged."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import logging
import uuid

from modelpress.reconcile import EmitEvent

from .client import ClusterClient, ClusterError
from .metrics import Metrics
from .resources import EVENTS, RawObject, meta_of

log = logging.getLogger(__name__)
MAX_WAITING = 1000
MAX_NOTE = 1000  # the API server takes 1 KiB
CONTROLLER = "modelpress.dev/operator"


class EventWriter:
    """Writes Events in the order they come."""

    def __init__(self, client: ClusterClient, metrics: Metrics, *, identity: str) -> None:
        self._client = client
        self._metrics = metrics
        self._identity = identity[:128]
        self._queue: asyncio.Queue[tuple[str, RawObject]] = asyncio.Queue(MAX_WAITING)

    def emit(self, about: RawObject, event: EmitEvent) -> None:
        """Write an Event on `about` soon; it is dropped if too many wait."""
        meta = meta_of(about)
        namespace = meta.get("namespace") or "default"
        body = {
            "apiVersion": EVENTS.api_version,
            "kind": EVENTS.kind,
            "metadata": {"name": f"{meta.get('name')}.{uuid.uuid4().hex[:16]}", "namespace": namespace},
            "eventTime": dt.datetime.now(dt.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "type": event.type,
            "reason": event.reason,
            "action": event.reason,
            "note": event.message[:MAX_NOTE],
            "regarding": {
                "apiVersion": about.get("apiVersion"),
                "kind": about.get("kind"),
                "namespace": namespace,
                "name": meta.get("name"),
                "uid": meta.get("uid"),
            },
            "reportingController": CONTROLLER,
            "reportingInstance": self._identity,
        }
        try:
            self._queue.put_nowait((namespace, body))
        except asyncio.QueueFull:
            self._metrics.events_lost.inc()

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            namespace, body = await self._queue.get()
            try:
                await self._client.create(EVENTS, namespace, body)
            except ClusterError as error:
                self._metrics.events_lost.inc()
                log.warning("an Event (%s) could not be written: %s", body["reason"], error)
            finally:
                self._queue.task_done()

    async def flush(self, seconds: float) -> None:
        """Wait until all are written, at most so long."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._queue.join(), seconds)
