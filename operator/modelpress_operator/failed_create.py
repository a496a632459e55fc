"""FailedCreate Events: why Jobs get no pods. A quota, a policy or a webhook refuses them, and only Events say so.

Events are not watched. The API server keeps no cache of them, so a watch gets no bookmarks and lists all of them again
every few minutes. They are listed when a Job should have a pod and has none (observe.missing_pods), for all such Jobs
of a namespace together, and ever more rarely.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from .client import ClusterClient, ClusterError
from .resources import EVENTS, JOBS, RawObject, meta_of

log = logging.getLogger(__name__)
FRESH_SECONDS = 2.0  # for so long one listing answers for all Jobs of a namespace
LOOKS = (2.0, 60.0)  # seconds after the first look in vain, doubling, and at most; also between two that told something
_POD = re.compile(r'(Error creating: )?(pods? "[^"]*" is (forbidden|invalid): )?')


@dataclass
class _Asked:
    due: float
    tries: int = 0
    why: str | None = None


class FailedCreateEvents:
    """The newest FailedCreate Event of each Job that gets no pods, listed with a backoff."""

    def __init__(self, client: ClusterClient, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._asked: dict[str, _Asked] = {}
        self._listings: dict[str, tuple[float, dict[str, str]]] = {}
        self._one = asyncio.Lock()

    def why(self, uid: str) -> str | None:
        """The last reason heard of for the Job of this uid."""
        asked = self._asked.get(uid)
        return None if asked is None else asked.why

    def forget(self, uid: str) -> None:
        """The Job has pods, or is gone."""
        self._asked.pop(uid, None)

    async def look(self, job: RawObject) -> float:
        """Ask again, if it is time to, about a Job without pods; seconds until the next look."""
        uid = meta_of(job)["uid"]
        asked = self._asked.setdefault(uid, _Asked(self._clock()))
        if asked.due <= self._clock():
            found = await self._notes(meta_of(job)["namespace"])
            wait = min(LOOKS[1], LOOKS[0] * 2.0 ** min(asked.tries, 20))
            if uid in found:
                asked.why, wait = found[uid], LOOKS[1]
            asked.tries += 1
            asked.due = self._clock() + wait
        return max(0.0, asked.due - self._clock())

    async def _notes(self, namespace: str) -> dict[str, str]:
        """The newest refusal of each Job of a namespace."""
        async with self._one:
            at, notes = self._listings.get(namespace, (float("-inf"), {}))
            if self._clock() - at < FRESH_SECONDS:
                return notes
            self._listings = {name: seen for name, seen in self._listings.items() if self._fresh(seen[0])}
            try:
                events = await self._client.list(
                    EVENTS, namespace, fields={"regarding.kind": JOBS.kind, "reason": "FailedCreate"}
                )
            except ClusterError as error:
                log.warning("why Jobs of %s have no pods cannot be asked: %s", namespace, error)
                return {}
            notes = {event["regarding"]["uid"]: _text(event) for event in sorted(events, key=_when)}
            self._listings[namespace] = self._clock(), notes
            return notes

    def _fresh(self, at: float) -> bool:
        return self._clock() - at < FRESH_SECONDS


def _when(event: RawObject) -> str:
    """When it happened last; RFC 3339 in UTC sorts as text."""
    series = event.get("series") or {}
    times = (series.get("lastObservedTime"), event.get("deprecatedLastTimestamp"), event.get("eventTime"))
    return next((str(time) for time in times if time), str(meta_of(event).get("creationTimestamp")))


def _text(event: RawObject) -> str:
    """The note without the pod's name, which is another one at each try."""
    note = str(event.get("note") or "")
    return note[match.end() :] if (match := _POD.match(note)) else note
