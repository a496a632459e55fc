"""Ending a run on request, at points where nothing is lost."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator


class Stopped(BaseException):
    """Somebody asked the run to stop; not an Exception, so that no `except Exception` of a user swallows it."""


class StopFlag:
    """Raised by SIGTERM. Calling it at a safe point raises Stopped if the run should end.

    Within `at_once()` the signal itself raises: for stretches that change nothing that lasts.
    """

    def __init__(self) -> None:
        self._asked = False
        self._at_once = False

    def install(self) -> None:
        """Catches SIGTERM from now on. Main thread only."""
        signal.signal(signal.SIGTERM, lambda number, frame: self.ask())

    def ask(self) -> None:
        """Asks the run to stop."""
        self._asked = True
        if self._at_once:
            raise Stopped

    def __call__(self) -> None:
        if self._asked:
            raise Stopped

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """A stretch that may be broken off anywhere."""
        self()
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False
