"""The search behind a sweep: modelpress.trials.Strategy, and its proof that every trial can be replayed."""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

from modelpress.api.search_space import Space
from modelpress.api.v1alpha1 import CompressionJob, CompressionSweepSpec, Constraint, TrialResult
from modelpress.api.v1alpha1.base import Scalar
from modelpress.api.v1alpha1.sweep import Promotion, ScreeningStatus
from modelpress.trials import (
    HISTORY_ANNOTATION,
    PARAMETERS_ANNOTATION,
    History,
    Question,
    Suggestion,
    annotated,
    number_of,
    screened_of,
)

from . import pareto, samplers
from .earlier import earlier_observations
from .outcomes import Objectives, TrialOutcome, read_outcome
from .resolve import RefusedError, resolve
from .samplers import Observation
from .samplers.gp import GpSampler
from .screening import Screen, ordered, spearman
from .sharing import shared_stages
from .stopping import Curve, stopped_early
from .untried import Untried

# A status holds no longer front; of a longer one ranking gives evenly spaced points.
MAX_FRONT = 1000


class SearchStrategy:
    """A sampler, a search space and objectives, bound to one sweep's spec.

    Pure: what is cached between calls depends on the arguments alone.

    Args:
        spec: of the sweep.
        torch: a sampler that needs torch may import it here; if not, `suggest` gives a question instead.

    Raises:
        SpaceError: the algorithm cannot search this space.
    """

    def __init__(self, spec: CompressionSweepSpec, *, torch: bool = False) -> None:
        self._spec = spec
        self._objectives = Objectives.of(spec)
        self._screen = Screen(spec, spec.screening.stages) if spec.screening is not None else None
        searched = self._screen.objectives if self._screen is not None else self._objectives
        space = self._space = Space.of(spec)
        self._names = frozenset(dimension.name for dimension in space.dimensions)
        sampler = samplers.create(spec.algorithm.name, space, searched.goals, spec.algorithm.seed)
        self._elsewhere = sampler if isinstance(sampler, GpSampler) and not torch else None
        judged = self._screen.constraints if self._screen is not None else _constraints(spec)
        earlier = earlier_observations(spec, space, searched, judged)
        self._untried = Untried(spec, space, sampler, self._is_valid, earlier)
        self._outcomes: dict[int, tuple[CompressionJob, TrialOutcome]] = {}
        self._first: tuple[list[CompressionJob], list[int]] = [], []  # trials of the first rung, and their order
        self._shared_stages = shared_stages(spec, space) if spec.stage_cache else 0

    def suggest(self, number: int, history: History, trials: Mapping[int, CompressionJob]) -> Suggestion:
        """See modelpress.trials.Strategy. Trials that the history names and that are gone are ignored.

        What the history calls running counts as running, whatever became of it since. No recipe is suggested twice, and
        none that a trial of the history has; when all of the space were tried, the space is exhausted.
        """
        finished, running = set(history.finished), set(history.running)
        # Trials of a second rung have numbers of their own, which the search leaves out where it counts.
        second = () if self._screen is None else sorted(n for n, job in trials.items() if screened_of(job) is not None)
        observations = [
            self._observe(
                trials[other], other, other - bisect_left(second, other), other in running and other not in finished
            )
            for other in sorted((finished | running) - {number})
            if other in trials and screened_of(trials[other]) is None
        ]
        searched = number - bisect_left(second, number)
        if self._elsewhere is not None and self._elsewhere.elsewhere(self._untried.learned(observations)):
            return Suggestion(question=self._question(searched, history, observations))
        return self._suggestion(self._untried.point(searched, observations))

    def answered(self, question: Question, values: Sequence[Any] | None) -> Suggestion:
        """See modelpress.trials.Strategy. Values that are no point of the space make a suggestion with a problem."""
        if values is None:
            return Suggestion(exhausted=True)
        given = zip(question.names, values, strict=False)
        parameters = {name: value for name, value in given if value is not None}
        if len(values) != len(question.names) or not self._space.holds(parameters):
            return Suggestion(problem="the answer of the runner that was asked is no point of the search space")
        return self._suggestion(parameters)

    def point(self, number: int, observations: list[Observation]) -> dict[str, Scalar] | None:
        """The point of the trial that is the `number`-th of the search; None: every recipe was tried."""
        return self._untried.point(number, observations)

    def _question(self, number: int, history: History, observations: Sequence[Observation]) -> Question:
        names = [dimension.name for dimension in self._space.dimensions]
        return Question(
            number,
            history.encode(),
            self._spec.to_dict() | {"template": {}},
            names,
            [_told(item, names) for item in observations],
        )

    def _suggestion(self, parameters: dict[str, Scalar] | None) -> Suggestion:
        if parameters is None:
            return Suggestion(exhausted=True)
        try:
            found = resolve(self._spec, parameters, self._space)
        except RefusedError as error:
            return Suggestion(parameters, problem=str(error))
        if self._screen is not None:
            return Suggestion(parameters, self._screen.cut(found), shared_stages=self._screen.stages)
        return Suggestion(parameters, found, shared_stages=min(self._shared_stages, len(found.stages or ()) - 1))

    def promoted(self, trials: Sequence[CompressionJob]) -> list[int]:
        """See modelpress.trials.Strategy; screening.ordered says by what order."""
        return self._ranked_first(trials)[: self._spec.screening.top] if self._spec.screening is not None else []

    def promotion(self, screened: int, history: History, trials: Mapping[int, CompressionJob]) -> Suggestion | None:
        """See modelpress.trials.Strategy."""
        named = [trials[other] for other in history.finished if other in trials]
        if self._spec.screening is None or screened not in self.promoted(named):
            return None
        parameters = self._outcome(trials[screened], screened).parameters
        try:
            found = resolve(self._spec, parameters, self._space)
        except RefusedError as error:
            return Suggestion(parameters, problem=str(error))
        return Suggestion(parameters, found, shared_stages=self._spec.screening.stages)

    def rungs(self, trials: Sequence[CompressionJob], going_on: Mapping[int, int]) -> ScreeningStatus | None:
        """See modelpress.trials.Strategy."""
        if self._screen is None:
            return None
        places = {number: place for place, number in enumerate(self._ranked_first(trials))}
        first = sorted(going_on, key=lambda number: (places.get(going_on[number], len(places)), number))
        second = [job for job in trials if screened_of(job) is not None]
        recovered = [number for number in ordered(self._numbered(second), self._objectives.goals) if number in going_on]
        told = [number for number in recovered if going_on[number] in places]
        return ScreeningStatus(
            promoted=[Promotion(number=number, screened=going_on[number]) for number in first],
            recovered=recovered,
            rank_correlation=spearman(told, [number for number in first if number in told]),
        )

    def _ranked_first(self, trials: Sequence[CompressionJob]) -> list[int]:
        """The trials of the first rung that succeeded, best first."""
        assert self._screen is not None
        jobs = [job for job in trials if screened_of(job) is None]
        known = self._first[0]
        if len(jobs) != len(known) or any(job is not other for job, other in zip(jobs, known, strict=True)):
            self._first = jobs, ordered(self._numbered(jobs), self._screen.objectives.goals)
        return self._first[1]

    def ranking(self, trials: Sequence[CompressionJob]) -> tuple[TrialResult | None, list[int]]:
        """See modelpress.trials.Strategy.

        Best is the feasible trial that leads in the first objective, ties decided by the next ones, then by the lowest
        number. If none is feasible it is the one with the least total violation, and says feasible=False. The front
        holds the feasible trials that none dominates, at most 1000 of them, ascending by number. Trials that did not
        succeed, or lack an objective, are passed over, and with screening those of the first rung.
        """
        if self._screen is not None:
            trials = [job for job in trials if screened_of(job) is not None]
        outcomes = {outcome.number: outcome for outcome in self._numbered(trials)}
        candidates = [
            pareto.Candidate(outcome.number, outcome.values, outcome.violation)
            for outcome in outcomes.values()
            if outcome.values is not None
        ]
        goals = self._objectives.goals
        winner = pareto.best(candidates, goals)
        if winner is None:
            return None, []
        feasible = {item.number: item.values for item in candidates if item.violation == 0}
        front = pareto.thin(pareto.front(feasible, goals), feasible, MAX_FRONT)
        best = outcomes[winner.number]
        result = TrialResult(
            number=best.number,
            name=best.name,
            parameters=best.parameters,
            metrics=best.metrics,
            feasible=winner.violation == 0,
        )
        return result, front

    def stopped_early(self, trials: Mapping[int, CompressionJob]) -> list[int]:
        """See modelpress.trials.Strategy; stopping.stopped_early says by what rules."""
        rule = self._spec.early_stopping
        if rule is None:
            return []
        curves: dict[bool, list[Curve]] = {False: [], True: []}  # of both rungs; their scores do not compare
        for number, job in sorted(trials.items()):
            running = job.status.phase == "Running" and job.status.stop is None
            scores = self._outcome(job, number).scores
            curves[screened_of(job) is not None].append(Curve(number, scores, running=running))
        first = self._screen.objectives if self._screen is not None else self._objectives
        behind = stopped_early(rule, first.goals, curves[False])
        return sorted([*behind, *stopped_early(rule, self._objectives.goals, curves[True])])

    def _is_valid(self, parameters: Mapping[str, Scalar]) -> bool:
        try:
            resolve(self._spec, parameters, self._space)
        except RefusedError:
            return False
        return True

    def _numbered(self, trials: Sequence[CompressionJob]) -> list[TrialOutcome]:
        return [self._outcome(job, number) for job in trials if (number := number_of(job)) is not None]

    def _observe(self, job: CompressionJob, trial: int, number: int, running: bool) -> Observation:
        outcome = self._outcome(job, trial)
        if running:
            return Observation(number, outcome.parameters, "running")
        if outcome.stopped:
            # What several objectives were on the way says nothing that a sampler of ours takes.
            told = outcome.scores if len(self._objectives_of(job).metrics) == 1 else ()
            scores = tuple((step, values[0]) for step, values in told)
            return Observation(number, outcome.parameters, "stopped", intermediate=scores)
        if outcome.values is None:
            return Observation(number, outcome.parameters, "failed")
        return Observation(number, outcome.parameters, "complete", outcome.values, outcome.violations)

    def _outcome(self, job: CompressionJob, number: int) -> TrialOutcome:
        cached = self._outcomes.get(number)
        if cached is None or cached[0] is not job:  # jobs are immutable
            cached = self._outcomes[number] = job, read_outcome(job, number, self._objectives_of(job), self._names)
        return cached[1]

    def _objectives_of(self, job: CompressionJob) -> Objectives:
        """What a trial is ranked by in its rung."""
        first = self._screen is not None and screened_of(job) is None
        return self._screen.objectives if first and self._screen is not None else self._objectives


def _told(item: Observation, names: Sequence[str]) -> list[Any]:
    """An observation as a question holds it; the inverse is `observation_of`."""
    missed = [amount if math.isfinite(amount) else None for amount in item.violations]
    return [item.number, item.state, [item.parameters.get(name) for name in names], list(item.values), missed]


def observation_of(told: Sequence[Any], names: Sequence[str]) -> Observation:
    """The observation that a question holds.

    Raises:
        ValueError: it holds none; also a TypeError.
    """
    number, state, values, objectives, missed = told
    if state not in ("running", "complete", "failed", "stopped"):
        raise ValueError(f"{state!r} is no state of a trial")
    parameters = {name: value for name, value in zip(names, values, strict=True) if value is not None}
    amounts = tuple(math.inf if amount is None else float(amount) for amount in missed)
    return Observation(int(number), parameters, state, tuple(map(float, objectives)), amounts)


def _constraints(spec: CompressionSweepSpec) -> list[Constraint]:
    """Those of every trial, in its order."""
    given = list(spec.template.spec.constraints or ())
    return given + [item for item in spec.constraints or () if item not in given]


def replay(spec: CompressionSweepSpec, trials: Sequence[CompressionJob]) -> list[str]:
    """Computes every trial's parameters again from its recorded history; one sentence for each difference.

    Empty: all trials replay. A trial whose history names one that is gone can differ for that reason; it then says so.
    """
    strategy = SearchStrategy(spec, torch=True)
    by_number = {number: job for job in trials if (number := number_of(job)) is not None}
    differences = [f"{job.metadata.name} has no trial number" for job in trials if number_of(job) is None]
    for number, job in sorted(by_number.items()):
        recorded = annotated(job)
        if recorded is None:
            differences.append(f"trial {number} has no annotation {PARAMETERS_ANNOTATION}")
            continue
        try:
            history = History.decode((job.metadata.annotations or {}).get(HISTORY_ANNOTATION, ""))
        except ValueError:
            differences.append(f"trial {number} has no readable annotation {HISTORY_ANNOTATION}")
            continue
        screened = screened_of(job)
        suggestion = (
            strategy.suggest(number, history, by_number)
            if screened is None
            else strategy.promotion(screened, history, by_number) or Suggestion(exhausted=True)
        )
        expected, found = _text(suggestion.parameters), _text(recorded)
        if expected != found:
            gone = sorted({*history.finished, *history.running} - set(by_number))
            lost = f"; of its history these are gone: {', '.join(map(str, gone))}" if gone else ""
            wanted = "there is no further combination" if suggestion.exhausted else f"replaying gives {expected}"
            differences.append(f"trial {number} has the parameters {found}, but {wanted}{lost}")
    return differences


def _text(parameters: Mapping[str, object]) -> str:
    return json.dumps(dict(parameters), sort_keys=True)
