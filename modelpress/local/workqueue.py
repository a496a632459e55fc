"""A keyed, deduplicating work queue with delays, like client-go's."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class WorkQueue(Generic[K]):
    """Keys to look at, each at most once, first come first served; or after some seconds, the soonest time counting.

    For one worker in one event loop. `wake` is set whenever there is something to look at.
    """

    def __init__(self) -> None:
        self._ready: dict[K, None] = {}  # a set that keeps its order
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self.wake = asyncio.Event()

    def add(self, key: K) -> None:
        """Look at `key` soon; a timer for it is not needed any more."""
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
        self._ready[key] = None
        self.wake.set()

    def add_after(self, key: K, seconds: float) -> None:
        """Look at `key` after `seconds`, unless that happens sooner anyway."""
        if key in self._ready:
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
        if not self._ready:
            self.wake.clear()
            return None
        key = next(iter(self._ready))
        del self._ready[key]
        return key

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
