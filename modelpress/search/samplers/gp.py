"""Gaussian processes, by Optuna, which imports torch for them: what is asked of this sampler is asked elsewhere.

The operator has no torch, and a shell should not wait for it; so the search says when it needs an answer of this module
(`elsewhere`), and a runner gives it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from modelpress.api.search_space import Space
from modelpress.api.v1alpha1 import Goal
from modelpress.api.v1alpha1.base import Scalar

from .base import Observation, derive
from .random import RandomSampler

STARTUP = 10  # complete trials until the first fit, as in Optuna


class GpSampler:
    """Expected improvement of a Gaussian process with a Matern kernel; log EHVI for several objectives.

    Each constraint has a process of its own (Gardner et al. 2014). Running trials count with what they are expected to
    give; failed and stopped ones, and such as miss a constraint by an unknown amount, teach nothing. Until 10 trials
    are complete the parameters are drawn at random. What has a condition is drawn at random throughout.

    An answer is the same in every process with the same torch and scipy on the same kind of processor, for both
    compute in floating point; the trial records it.
    """

    independent: ClassVar[bool] = False

    def __init__(self, space: Space, goals: Sequence[Goal], seed: int) -> None:
        self._space, self._goals, self._seed = space, goals, seed
        self._random = RandomSampler(space, goals, seed)

    def elsewhere(self, observations: Sequence[Observation]) -> bool:
        """Whether the next answer needs torch."""
        return sum(self._teaches(item) for item in observations) >= STARTUP

    def sample(self, number: int, observations: Sequence[Observation], attempt: int = 0) -> dict[str, Scalar] | None:
        """See Sampler.sample; never None.

        Raises:
            ImportError: there is no torch or no scipy.
        """
        if not self.elsewhere(observations):
            return self._random.sample(number, observations, attempt)
        from optuna.samplers import GPSampler

        from .recorded import RecordedStudy

        count = max(len(item.violations) for item in observations if self._teaches(item))
        usable = [
            item if item.state == "running" or self._teaches(item, count) else replace(item, state="failed", values=())
            for item in observations
        ]
        seed = derive(self._seed, number, "gp", str(attempt)) % 2**32
        sampler = GPSampler(seed=seed, n_startup_trials=STARTUP, warn_independent_sampling=False)
        with warnings.catch_warnings():
            # A fit that does not converge is no worse than a prior; Optuna goes on with what it has.
            warnings.simplefilter("ignore")
            return RecordedStudy(self._space, self._goals).ask(sampler, number, usable)

    def _teaches(self, item: Observation, constraints: int | None = None) -> bool:
        if item.state != "complete" or not self._space.holds(item.parameters):
            return False
        known = all(map(math.isfinite, item.violations))
        return known and constraints in (None, len(item.violations))
