"""A keyed, deduplicating work queue with delays, like client-go's. Both controllers use it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class WorkQueue(Generic[K]):
    """Keys to look at, each at most once, first come first served; or after some seconds, the soonest time counting.

    In one event loop. A single worker calls pop(); several call take() and done(), and no two of them get one key at a
    time: a key added meanwhile comes again after done(). `wake` is set whenever there is something to look at.
    """

    def __init__(self) -> None:
        self._ready: dict[K, float] = {}  # keeps its order; since when, by the monotonic clock
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._taken: set[K] = set()
        self._again: dict[K, float] = {}
        self.wake = asyncio.Event()

    def add(self, key: K) -> None:
        """Look at `key` soon; a timer for it is not needed any more."""
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
        if key in self._taken:
            self._again.setdefault(key, time.monotonic())
            return
        self._ready.setdefault(key, time.monotonic())
        self.wake.set()

    def add_after(self, key: K, seconds: float) -> None:
        """Look at `key` after `seconds`, unless that happens sooner anyway."""
        if key in self._ready or key in self._again:
            return
        loop = asyncio.get_running_loop()
        old = self._timers.get(key)
        when = loop.time() + max(0.0, seconds)
        if old is not None:
            if old.when() <= when:
                return
            old.cancel()
        self._timers[key] = loop.call_at(when, self.add, key)

    def pop(self) -> K | None:
        """The next key, or None."""
        first = self._next()
        return None if first is None else first[0]

    async def take(self) -> tuple[K, float]:
        """The next key, and for how many seconds it has waited; done() must follow."""
        while (first := self._next()) is None:
            await self.wake.wait()
        key, since = first
        self._taken.add(key)
        return key, time.monotonic() - since

    def done(self, key: K) -> None:
        """The worker that took `key` is through with it."""
        self._taken.discard(key)
        since = self._again.pop(key, None)
        if since is not None:
            self._ready.setdefault(key, since)
            self.wake.set()

    def _next(self) -> tuple[K, float] | None:
        if not self._ready:
            self.wake.clear()
            return None
        key = next(iter(self._ready))
        return key, self._ready.pop(key)

    @property
    def depth(self) -> int:
        """How many keys are to be looked at now."""
        return len(self._ready) + len(self._again)

    @property
    def waiting(self) -> int:
        """How many keys wait for their time."""
        return len(self._timers)

    def close(self) -> None:
        """Cancel all timers."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._ready.clear()
        self._again.clear()
