"""gp: questions instead of answers where there is no torch, and the same trials however often the process dies."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from modelpress.api.semantic import sweep_problems
from modelpress.api.v1alpha1 import CompressionJob, CompressionJobSpec, CompressionSweepSpec
from modelpress.request import RunRequest, SuggestRequest
from modelpress.results.errors import InvalidRequestError
from modelpress.results.suggest import answer
from modelpress.search import replay, strategy_for
from modelpress.search.samplers import Observation, create
from modelpress.search.strategy import SearchStrategy
from modelpress.search.testing import space_of
from modelpress.trials import History, Question

MakeSweep = Callable[..., CompressionSweepSpec]
MakeTrial = Callable[..., CompressionJob]
Trials = dict[int, CompressionJob]


def trial(make_trial: MakeTrial, spec: Any, number: int, point: dict[str, Any], history: History) -> CompressionJob:
    """A finished trial that is the better the nearer its sparsity is to .4; every fifth one failed."""
    score = {"default": 1.0 - abs(float(point["sparsity"]) - 0.4), "macs": 10.0 + number}
    phase = "Failed" if number % 5 == 4 else "Succeeded"
    return make_trial(spec, number, point, compressed=score, phase=phase, history=history)


def asked(spec: CompressionSweepSpec, trials: Trials, number: int, history: History) -> dict[str, Any]:
    """The parameters of a trial, asked for as a controller does, by a strategy that is new."""
    strategy = strategy_for(spec)
    suggestion = strategy.suggest(number, history, trials)
    if suggestion.question is not None:
        suggestion = strategy.answered(suggestion.question, told(spec, suggestion.question))
    assert suggestion.spec is not None
    return dict(suggestion.parameters)


def told(spec: CompressionSweepSpec, question: Question) -> list[Any] | None:
    """A runner's answer, as it comes through JSON."""
    result = answer(request_of(spec, question))
    assert result.suggested is not None
    assert result.suggested.history == question.history
    message = json.loads(result.to_message())
    return list(message["suggested"]["values"])


def request_of(spec: CompressionSweepSpec, question: Question, **changes: Any) -> RunRequest:
    """The request of a suggest Job."""
    request = RunRequest(
        purpose="suggest",
        namespace="team",
        name="search",
        uid="u",
        root="r",
        prefix="r",
        spec=CompressionJobSpec.model_validate(spec.template.spec.to_dict() | {"store": {"uri": "s3://models/out"}}),
        suggest=SuggestRequest(**{**vars(question), **changes}),
    )
    return RunRequest.model_validate_json(request.to_json())


def test_dead_after_every_trial_and_four_at_a_time(make_sweep: MakeSweep, make_trial: MakeTrial) -> None:
    """Asked anew for each of 15 trials they are those of one process; four at a time no recipe comes twice."""
    spec = make_sweep("gp")
    whole, strategy = Trials(), SearchStrategy(spec, torch=True)
    for number in range(15):
        history = History(tuple(whole))
        whole[number] = trial(
            make_trial, spec, number, dict(strategy.suggest(number, history, whole).parameters), history
        )
    died = Trials()
    for number in range(15):
        history = History(tuple(died))
        died[number] = trial(make_trial, spec, number, asked(spec, died, number, history), history)
    assert [job.spec for job in died.values()] == [job.spec for job in whole.values()]
    assert replay(spec, list(died.values())) == []
    beside = Trials()
    for number in range(18):
        history = History(tuple(range(max(0, number - 3))), tuple(range(max(0, number - 3), number)))
        beside[number] = trial(make_trial, spec, number, asked(spec, beside, number, history), history)
    assert len({repr(job.spec) for job in beside.values()}) == 18
    assert replay(spec, list(beside.values())) == []


def test_it_comes_closer_than_random_search() -> None:
    """On a bowl in two dimensions its best of 16 is nearer than random's of 16, for a constraint too."""
    space, best = space_of("continuous"), {}
    for name in ("gp", "random"):
        sampler, seen = create(name, space, ("minimize",), 1), list[Observation]()
        for number in range(16):
            point = sampler.sample(number, seen) or {}
            distance = abs(float(point["sparsity"]) - 0.3)
            seen.append(Observation(number, point, "complete", (distance,), (max(0.0, 0.05 - distance),)))
        best[name] = min(item.values[0] for item in seen if item.violations == (0.0,))
    assert best["gp"] < best["random"]


@pytest.mark.parametrize("goals", [("maximize",), ("maximize", "minimize")])
def test_any_history_is_taken(goals: Any) -> None:
    """Foreign, failed, running, stopped trials, and such as miss a constraint by an unknown amount; conditions too."""
    for name in ("conditions", "one point"):
        space = space_of(name)
        sampler = create("gp", space, goals, 3)
        points = [sampler.sample(n, []) or {} for n in range(14)]
        values = [tuple(float(n % 5) + axis for axis in range(len(goals))) for n in range(14)]
        seen = [Observation(n, points[n], "complete", values[n], (0.0, float(n % 2))) for n in range(10)]
        seen += [
            Observation(10, points[10], "running"),
            Observation(11, points[11], "failed"),
            Observation(12, points[12], "stopped", intermediate=((1, 0.5),)),
            Observation(13, points[13], "complete", values[13], (float("inf"),)),
            Observation(14, {"foreign": 1}, "complete", values[0], (0.0, 0.0)),
        ]
        found = sampler.sample(20, seen)
        assert found is not None
        assert space.holds(found)
        assert create("gp", space, goals, 3).sample(20, list(reversed(seen))) == found


def test_nothing_of_torch_comes_into_the_operator() -> None:
    """A question is written without torch, scipy or Optuna; a runner answers."""
    script = (
        "import sys; from modelpress.search.strategy import SearchStrategy\n"
        "from modelpress.search.samplers import create\n"
        "from modelpress.search.samplers.base import Observation\n"
        "from modelpress.search.testing import space_of\n"
        "s = space_of('continuous'); g = create('gp', s, ('maximize',), 0)\n"
        "seen = [Observation(n, g.sample(n, []), 'complete', (1.0,)) for n in range(10)]\n"
        "assert g.elsewhere(seen) and not g.elsewhere(seen[:9])\n"
        "assert not {'torch', 'scipy', 'optuna'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_what_is_no_question_is_refused(make_sweep: MakeSweep, make_trial: MakeTrial) -> None:
    """Of another version, or forged: exit code 2 and a sentence; an answer that is no point is a refused trial."""
    spec, trials = make_sweep("gp"), Trials()
    for number in range(13):
        history = History(tuple(trials))
        trials[number] = trial(make_trial, spec, number, asked(spec, trials, number, history), history)
        if sum(job.status.phase == "Succeeded" for job in trials.values()) == 10:
            break
    question = strategy_for(spec).suggest(len(trials), History(tuple(trials)), trials).question
    assert question is not None
    for changes in ({"observations": [[0, "odd", [], [], []]]}, {"observations": [[0]]}, {"sweep": {"objectives": 3}}):
        with pytest.raises(InvalidRequestError, match="no question of this version's"):
            answer(request_of(spec, question, **changes))
    refused = strategy_for(spec).answered(question, [1, 2])
    assert refused.spec is None
    assert "no point of the search space" in str(refused.problem)
    assert strategy_for(spec).answered(question, None).exhausted


def test_more_trials_than_it_can_fit_are_refused(make_sweep: MakeSweep) -> None:
    """At most 500; the message names the field and what to do."""
    (problem,) = sweep_problems(make_sweep("gp", maxTrials=501))
    assert (problem.path, "algorithm tpe" in str(problem)) == ("spec.maxTrials", True)
    assert sweep_problems(make_sweep("gp", maxTrials=500)) == []
