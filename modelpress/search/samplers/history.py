"""A read-only Optuna storage over trials that are known already."""

from __future__ import annotations

import copy
from collections.abc import Container, Sequence
from typing import Any, NoReturn

from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from modelpress.api.v1alpha1 import Goal

STUDY_NAME = "modelpress"
_STUDY_ID = 0
# What samplers keep with a trial: its parameters until they are all asked for. Recorded trials have them all.
_FORGOTTEN = ("tpe:relative_params", "gp:relative_params")


class HistoryStorage(BaseStorage):
    """One study of recorded trials, and the one new trial that is asked for.

    Optuna's own in-memory storage copies every trial deeply, writes to the log and draws a random study name; this one
    does none of it. Trials keep the numbers they have in the sweep, and their ids are those numbers.
    """

    def __init__(self, goals: Sequence[Goal], trials: Sequence[FrozenTrial], new: int) -> None:
        self._directions = [
            StudyDirection.MAXIMIZE if goal == "maximize" else StudyDirection.MINIMIZE for goal in goals
        ]
        self._trials = {trial.number: trial for trial in trials}
        self._new = new

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Add the trial that is asked for; its id and number."""
        self._trials[self._new] = frozen(self._new, TrialState.RUNNING, {}, {})
        return self._new

    def get_study_id_from_name(self, study_name: str) -> int:
        """The one study's id."""
        return _STUDY_ID

    def get_study_name_from_id(self, study_id: int) -> str:
        """The one study's name."""
        return STUDY_NAME

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """One direction per objective."""
        return self._directions

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """None are kept."""
        return {}

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """None are kept."""
        return {}

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """The trial of that number."""
        return self._trials[trial_id]

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """The trials, in the order of their numbers."""
        found = [trial for trial in self._trials.values() if states is None or trial.state in states]
        return copy.deepcopy(found) if deepcopy else found

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """Record a parameter of the new trial."""
        trial = self._trials[trial_id]
        trial.distributions = {**trial.distributions, param_name: distribution}
        trial.params = {**trial.params, param_name: distribution.to_external_repr(param_value_internal)}

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Record what the sampler keeps with the new trial, if it may forget it with this study.

        Raises:
            NotImplementedError: it would look for it in later studies. Recorded trials carry nothing but parameters and
                results, so it would find nothing and search at random, without a word.
        """
        if not key.startswith(_FORGOTTEN):
            _refuse(f"a sampler's own {key!r} is not kept with a trial")
        trial = self._trials[trial_id]
        trial.system_attrs = {**trial.system_attrs, key: value}

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        """Refused: the storage is one study."""
        _refuse()

    def delete_study(self, study_id: int) -> None:
        """Refused."""
        _refuse()

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """Refused."""
        _refuse()

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Refused."""
        _refuse()

    def get_all_studies(self) -> NoReturn:
        """Refused."""
        _refuse()

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Refused: results come with the history."""
        _refuse()

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """Refused."""
        _refuse()

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Refused."""
        _refuse()


def frozen(
    number: int,
    state: TrialState,
    params: dict[str, Any],
    distributions: dict[str, BaseDistribution],
    values: Sequence[float] | None = None,
    constraints: Sequence[float] = (),
    intermediate: Sequence[tuple[int, float]] = (),
) -> FrozenTrial:
    """A recorded trial. It carries no times, for nothing may depend on them."""
    trial = FrozenTrial(
        number=number,
        trial_id=number,
        state=state,
        value=None,
        values=values,
        datetime_start=None,
        datetime_complete=None,
        params=params,
        distributions=distributions,
        user_attrs={},
        system_attrs={},
        intermediate_values=dict(intermediate),
    )
    for position, amount in enumerate(constraints):
        trial.set_constraint(f"constraints[{position}]", amount)
    return trial


def _refuse(why: str = "a history cannot be changed") -> NoReturn:
    raise NotImplementedError(why)
