"""mp.report: metrics from inside the user's own code, on their way to the run that it belongs to."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from modelpress.api.v1alpha1 import DEFAULT_METRIC
from modelpress_runner.errors import InvalidModelError
from modelpress_runner.evaluators.score import numbers_in
from modelpress_runner.process.progress import Event, EventCallback, silent

MAX_STEP = 2**53  # what JSON carries exactly

_active: list[Reporting] = []


def report(step: int, **metrics: Any) -> None:
    """Reports metrics of a training that goes on, from any code of the user's: a training_func, a loop, a script.

    `default` is the score: it becomes a point of the run's intermediate scores, which early stopping and people see
    (`status.intermediate` on a cluster, at most 64 points, evenly spread), at `step`. All metrics are in the run's log
    and in its progress file, thinned out if there are thousands. Outside a run the call does nothing but check.

    A run whose code reports scores has only these: the scores that modelpress takes itself while
    it trains have another count of steps.

    Args:
        step: the caller's own count, 0 or more, never less than in an earlier call of the same run.
        metrics: finite numbers by name, at least one; not the names of metrics that modelpress measures itself.

    Raises:
        InvalidModelError: the step or a metric is not what it must be.
    """
    if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step <= MAX_STEP:
        raise InvalidModelError(f"mp.report was given the step {step!r}; give a whole number, 0 or more")
    if not metrics:
        raise InvalidModelError("mp.report was given no metric; name at least one, as in mp.report(step, default=0.9)")
    numbers = numbers_in(metrics, "mp.report", "was given")
    if _active:
        _active[-1].own(step, numbers)


class Reporting:
    """Passes a run's events on, and puts what the user's code reports among them."""

    def __init__(self, then: EventCallback) -> None:
        self._then = then
        self._last = Event("", 0, 0, "")
        self._step: int | None = None
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        """An event of the run itself."""
        self._last = event
        self._then(event)

    def own(self, step: int, metrics: Mapping[str, float]) -> None:
        """What the user's code reported.

        Raises:
            InvalidModelError: the step is less than that of an earlier call.
        """
        with self._lock:
            if self._step is not None and step < self._step:
                raise InvalidModelError(
                    f"mp.report was given the step {step} after {self._step}; count on from call to call (training "
                    "functions are called once for each training of the recipe)"
                )
            self._step = step
            shown = ", ".join(f"{name} {value:.6g}" for name, value in metrics.items() if name != DEFAULT_METRIC)
            message = f"reported at step {step}" + (f": {shown}" if shown else "")
            self._then(
                replace(self._last, message=message, value=metrics.get(DEFAULT_METRIC), at=step, metrics=dict(metrics))
            )


@contextlib.contextmanager
def reporting(then: EventCallback) -> Iterator[Reporting]:
    """Inside, mp.report goes to `then`, and so do events that are given to the yielded report.

    Where nobody listens (`silent`), mp.report goes where it went before.
    """
    active = Reporting(then)
    if then is silent:
        yield active
        return
    _active.append(active)
    try:
        yield active
    finally:
        _active.remove(active)
