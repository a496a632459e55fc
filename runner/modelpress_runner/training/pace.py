"""When a training stops for a checkpoint or a score: so seldom that they take a stated share of its time."""

from __future__ import annotations

import time
from collections.abc import Callable

CHECKPOINT_SHARE = 0.005  # of a training's time that its checkpoints may hold it up
SCORE_SHARE = 0.05  # that intermediate scores may
LEAST = 1.0  # seconds between two of a kind, and
SPREAD = 0.01  # of the time since the training began
FIRST_SCORE = 10.0  # seconds of training before the first score, where nobody knows how long one takes


class Pace:
    """One thing that is done now and then: at most once a second, and the longer the training the more seldom.

    Attributes:
        beside: seconds that doing it costs besides: where the training has to be ended for it and begun again, or
            a thread beside the training takes processor time from it. Known once it was done.

    Args:
        share: of the time that it may take.
        cost: seconds that it takes once, as far as is known.
        every: steps after which it is done whatever it costs; None: never for their sake.
        clock: seconds.
    """

    def __init__(
        self,
        share: float,
        cost: float,
        every: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.cost, self.beside = cost, 0.0
        self._share, self._every, self._clock = share, every, clock
        self._began = self._last = clock()
        self._at = 0

    def is_due(self, step: int) -> bool:
        """Whether to do it after `step` optimizer steps."""
        if self._every is not None and step - self._at >= self._every:
            return True
        now = self._clock()
        cost = self.cost + self.beside
        return now - self._last >= max(cost / self._share, LEAST + SPREAD * (now - self._began))

    def done(self, step: int, seconds: float) -> None:
        """It was done, and took so long."""
        self.cost = seconds
        self._last, self._at = self._clock(), step

    def begins_at(self, step: int) -> None:
        """A training goes on at a step."""
        self._last, self._at = self._clock(), step
