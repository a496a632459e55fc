"""Ending a run on request, at points where nothing is lost."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator


class Stopped(BaseException):
    """Somebody asked the run to stop; not an Exception, so that no `except Exception` of a user swallows it."""


class StopFlag:
    """Raised by SIGTERM. Calling it at a safe point raises Stopped if the run should end.

    Within `at_once()` the signal itself raises: for stretches that change nothing that lasts.
    """

    def __init__(self) -> None:
        self._asked = False
        self._at_once = False
        self._told: Callable[[], None] | None = None

    @property
    def asked(self) -> bool:
        """Whether somebody asked the run to stop."""
        return self._asked

    def install(self) -> None:
        """Catches SIGTERM from now on. Main thread only."""
        signal.signal(signal.SIGTERM, lambda number, frame: self.ask())

    def ask(self) -> None:
        """Asks the run to stop."""
        self._asked = True
        if self._told is not None:
            self._told()
        if self._at_once:
            raise Stopped

    def __call__(self) -> None:
        if self._asked:
            raise Stopped

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """A stretch that may be broken off anywhere; one within another changes nothing for the outer one."""
        self()
        before, self._at_once = self._at_once, True
        try:
            yield
        finally:
            self._at_once = before

    def gracefully(self) -> None:
        """From here on to the end of the innermost `at_once`, a signal raises at safe points only."""
        self._at_once = False

    @contextlib.contextmanager
    def told(self, tell: Callable[[], None]) -> Iterator[None]:
        """Within it `tell` is called when somebody asks, also if that was before: for those who stop others."""
        before, self._told = self._told, tell
        try:
            if self._asked:
                tell()
            yield
        finally:
            self._told = before

    def wait(self, seconds: float) -> bool:
        """Waits until somebody asks, at most so long; whether somebody has."""
        end = time.monotonic() + seconds
        while not self._asked and time.monotonic() < end:
            time.sleep(0.05)
        return self._asked
