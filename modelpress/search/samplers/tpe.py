"""Tree-structured Parzen estimator (Bergstra et al. 2011), by Optuna."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from typing import ClassVar

from optuna.exceptions import ExperimentalWarning
from optuna.samplers import TPESampler

from modelpress.api.search_space import Space
from modelpress.api.v1alpha1 import Goal
from modelpress.api.v1alpha1.base import Scalar

from .base import Observation, derive
from .recorded import RecordedStudy

_WARNING_FILTERS = threading.Lock()


class TpeSampler:
    """Multivariate TPE (Falkner et al. 2018), for one objective or several (Ozaki et al. 2022), with hard constraints.

    Parameters are random until 10 trials are complete, infeasible ones included. Infeasible trials rank behind all
    feasible ones, by their total violation. Running trials repel (constant liar); failed ones are ignored;
    stopped ones rank behind the complete, by how far they came, then by their last score (without one they teach
    nothing). The study is rebuilt for every suggestion from the observations alone, with a seed derived from the
    sweep's seed and the trial's number.
    """

    independent: ClassVar[bool] = False

    def __init__(self, space: Space, goals: Sequence[Goal], seed: int) -> None:
        self._seed, self._conditional = seed, space.conditional
        self._study = RecordedStudy(space, goals)

    def sample(self, number: int, observations: Sequence[Observation], attempt: int = 0) -> dict[str, Scalar] | None:
        """See Sampler.sample; never None."""
        return self._study.ask(self._sampler(number, attempt), number, observations)

    def _sampler(self, number: int, attempt: int) -> TPESampler:
        seed = derive(self._seed, number, "tpe", *((str(attempt),) if attempt else ())) % 2**32
        if not self._conditional:
            return TPESampler(seed=seed, multivariate=True, constant_liar=True)
        # Only decomposed into groups can a conditional space be sampled jointly; Optuna calls that experimental.
        with _WARNING_FILTERS, warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return TPESampler(seed=seed, multivariate=True, constant_liar=True, group=True)
