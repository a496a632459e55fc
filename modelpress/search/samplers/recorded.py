"""A sweep's history as a study of Optuna's, rebuilt for every suggestion, and the one trial that is asked for."""

from __future__ import annotations

from collections.abc import Sequence

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import NopPruner
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from modelpress.api.search_space import Dimension, Space
from modelpress.api.v1alpha1 import Categorical, Goal, IntRange
from modelpress.api.v1alpha1.base import Scalar

from .base import Observation
from .history import STUDY_NAME, HistoryStorage, frozen

_STATES = {
    "complete": TrialState.COMPLETE,
    "running": TrialState.RUNNING,
    "failed": TrialState.FAIL,
    "stopped": TrialState.PRUNED,
}
# Finer grids are searched as a continuum: the probability of one value among 2^54 is no longer a float's difference.
_FINE = 2**20


class RecordedStudy:
    """Asks a sampler of Optuna's for one trial, from observations alone.

    Values on a grid and categories are searched by their number, so they come back exact. Trials that are no points of
    the space are left out, and so are stopped ones without a score.
    """

    def __init__(self, space: Space, goals: Sequence[Goal]) -> None:
        self._space, self._goals = space, goals
        # A dimension with a single value has nothing to learn.
        self._coded = {item.name: _Coded(item) for item in space.dimensions if item.size != 1}
        self._recorded: dict[int, tuple[Observation, FrozenTrial | None]] = {}

    def ask(self, sampler: BaseSampler, number: int, observations: Sequence[Observation]) -> dict[str, Scalar]:
        """A point of the space."""
        known = (self._record(item) for item in sorted(observations, key=lambda item: item.number))
        storage = HistoryStorage(self._goals, [trial for trial in known if trial is not None], number)
        trial = Study(STUDY_NAME, storage, sampler, NopPruner()).ask()

        def choose(dimension: Dimension) -> Scalar:
            coded = self._coded.get(dimension.name)
            return coded.ask(trial) if coded else dimension.at(0)

        return self._space.walk(choose)

    def _record(self, observation: Observation) -> FrozenTrial | None:
        """The observation as Optuna's trial; None if its parameters are no point of this space."""
        cached = self._recorded.get(observation.number)
        if cached is None or cached[0] != observation:
            teaches = observation.state != "stopped" or observation.intermediate
            trial = self._freeze(observation) if teaches and self._space.holds(observation.parameters) else None
            cached = self._recorded[observation.number] = observation, trial
        return cached[1]

    def _freeze(self, observation: Observation) -> FrozenTrial:
        coded = {name: self._coded[name] for name in observation.parameters if name in self._coded}
        return frozen(
            observation.number,
            _STATES[observation.state],
            {name: code.encode(observation.parameters[name]) for name, code in coded.items()},
            {name: code.distribution for name, code in coded.items()},
            observation.values or None,
            observation.violations,
            observation.intermediate,
        )


class _Coded:
    """A dimension as Optuna sees it: the numbers of values where they can be numbered, else the values themselves."""

    def __init__(self, dimension: Dimension) -> None:
        self._dimension = dimension
        self._numbered = dimension.size is not None and not dimension.log
        domain, size = dimension.domain, dimension.size
        self.distribution: BaseDistribution
        if isinstance(domain, Categorical):
            self.distribution = CategoricalDistribution(range(len(domain.values)))
        elif size is None or size > _FINE:
            low, high = (0, size - 1) if size is not None and self._numbered else (domain.min, domain.max)
            self.distribution = FloatDistribution(low, high, log=domain.log)
        elif isinstance(domain, IntRange) and domain.log:
            self.distribution = IntDistribution(domain.min, domain.max, log=True)
        else:
            self.distribution = IntDistribution(0, size - 1)

    def encode(self, value: Scalar) -> Scalar:
        return self._dimension.index_of(value) if self._numbered else value

    def ask(self, trial: Trial) -> Scalar:
        name, known = self._dimension.name, self.distribution
        found: Scalar
        if isinstance(known, FloatDistribution):
            found = trial.suggest_float(name, known.low, known.high, log=known.log)
        elif isinstance(known, IntDistribution):
            found = trial.suggest_int(name, known.low, known.high, log=known.log)
        else:
            assert isinstance(known, CategoricalDistribution)
            return self._dimension.at(int(trial.suggest_categorical(name, range(len(known.choices)))))
        size, domain = self._dimension.size, self._dimension.domain
        if size is not None and self._numbered:
            return self._dimension.at(min(max(round(found), 0), size - 1))
        if isinstance(domain, IntRange):
            return min(max(round(found), domain.min), domain.max)
        return self._dimension.tidy(found)
