"""From messages to statuses: of each job at most one write in 30 seconds, and always of what is newest.

A status that is written for another reason takes the newest message along: so that a job runs and where it is are one
write, and a finished job's status holds its last scores, however short it was.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from modelpress.api.v1alpha1 import TERMINAL_PHASES
from modelpress.reconcile.conditions import stamp
from modelpress_operator.cache import Cache
from modelpress_operator.client import ClusterClient, ClusterError, ConflictError, NotFoundError
from modelpress_operator.lease import LeaseLostError
from modelpress_operator.resources import Key, meta_of

from .message import Message

log = logging.getLogger(__name__)
INTERVAL_SECONDS = 30.0
FIRST_SECONDS = 3.0  # that a first message waits for the status that tells of the start, and would take it along
CONFLICT_SECONDS = 0.5  # until the cache has heard of whatever was written meanwhile
CONFLICT_TRIES = 5  # in a row; then the next message says it
MAX_WAITING = 20_000  # jobs; more than can run at one time


@dataclass(frozen=True)
class Taken:
    """A message that another status write takes along."""

    message: Message
    said: dt.datetime
    not_before: float

    def status(self) -> dict[str, Any]:
        """The part of the status that it is."""
        return self.message.status(_text(self.said))


class StatusWrites:
    """Writes progress while it runs.

    Args:
        client: to write with.
        cache: the newest version of each job.
        check: raises LeaseLostError when this replica does not lead.
        interval: least seconds between two writes of one job.
        first: seconds that a message waits where none was written lately.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        client: ClusterClient,
        cache: Cache,
        check: Callable[[], None],
        *,
        interval: float = INTERVAL_SECONDS,
        first: float = FIRST_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._cache = cache
        self._check = check
        self._interval = interval
        self._first = first
        self._clock = clock
        self._waiting: dict[Key, tuple[Message, dt.datetime]] = {}
        self._not_before: dict[Key, float] = {}
        self._conflicts: dict[Key, int] = {}
        self._news = asyncio.Event()

    def accept(self, key: Key, message: Message) -> None:
        """Take a message; a newer one replaces it until it is written."""
        if key in self._waiting or len(self._waiting) < MAX_WAITING:
            self._waiting[key] = message, dt.datetime.now(dt.UTC)
            self._not_before.setdefault(key, self._clock() + self._first)
            self._news.set()

    def take(self, key: Key) -> Taken | None:
        """The message that waits, for a status that is written now; `give_back` it if that write fails."""
        if key not in self._waiting:
            return None
        taken = Taken(*self._waiting.pop(key), self._not_before.get(key, 0.0))
        self._not_before[key] = self._clock() + self._interval
        return taken

    def give_back(self, key: Key, taken: Taken) -> None:
        """Put back a message whose write failed, unless a newer one waits by now."""
        self._waiting.setdefault(key, (taken.message, taken.said))
        self._not_before[key] = taken.not_before
        self._news.set()

    async def run(self) -> None:
        """Write what is due, one after the other, until cancelled.

        Raises:
            LeaseLostError: another replica leads.
        """
        while True:
            self._news.clear()
            wait = await self._write_due()
            try:
                async with asyncio.timeout(wait):
                    await self._news.wait()
            except TimeoutError:
                continue

    async def _write_due(self) -> float | None:
        """Write every message whose time has come; seconds until the next one's, None if none waits."""
        for key in [key for key in self._waiting if self._due(key) <= self._clock()]:
            message, said = self._waiting.pop(key)
            try:
                await self._write(key, message, said)
            except LeaseLostError:
                raise
            except ConflictError:
                self._try_again(key, message, said)
            except ClusterError as error:
                log.warning("progress of %s/%s is not written: %s", key.namespace, key.name, error)
                self._not_before[key] = self._clock() + self._interval
            else:
                self._conflicts.pop(key, None)
                self._not_before[key] = self._clock() + self._interval
        now = self._clock()
        self._not_before = {key: at for key, at in self._not_before.items() if at > now}
        return min((max(0.0, self._due(key) - now) for key in self._waiting), default=None)

    def _due(self, key: Key) -> float:
        return self._not_before.get(key, float("-inf"))

    def _try_again(self, key: Key, message: Message, said: dt.datetime) -> None:
        tries = self._conflicts[key] = self._conflicts.get(key, 0) + 1
        if tries >= CONFLICT_TRIES:
            del self._conflicts[key]
            self._not_before[key] = self._clock() + self._interval
            return
        self._not_before[key] = self._clock() + CONFLICT_SECONDS
        self._waiting.setdefault(key, (message, said))

    async def _write(self, key: Key, message: Message, said: dt.datetime) -> None:
        job = self._cache.get(*key)
        status: dict[str, Any] = {} if job is None else job.get("status") or {}
        if job is None or status.get("phase") in TERMINAL_PHASES:
            return
        patch = message.status(_text(said))
        if _news(status) == _news(patch):
            return
        self._check()
        try:
            answer = await self._client.patch_status(
                key.resource, key.namespace, key.name, patch, str(meta_of(job)["resourceVersion"])
            )
        except NotFoundError:
            return
        self._cache.put(key.resource, answer)


def _news(status: dict[str, Any]) -> tuple[Any, ...]:
    """The part of a status whose change is written: all but the time."""
    progress = status.get("progress") or {}
    return progress.get("stage"), progress.get("step"), progress.get("total"), status.get("intermediate") or []


def _text(time: dt.datetime) -> str:
    return stamp(time).astimezone(dt.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
