"""Early stopping: who is stopped at which step, by each rule, for one objective and for several."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpress.api.semantic import sweep_problems
from modelpress.api.v1alpha1 import CompressionJob, CompressionSweepSpec, EarlyStopping, Goal
from modelpress.search import strategy_for
from modelpress.search.stopping import Curve, bracket_of, probably_worse, stopped_early

RULES = ("median", "asha", "hyperband")


def rule(name: str, **fields: Any) -> EarlyStopping:
    """A rule with at least two others."""
    return EarlyStopping.model_validate({"name": name, "minTrials": 2, **fields})


def curve(number: int, *values: float, running: bool = False, every: int = 1) -> Curve:
    """Scores at steps 1, 2, ... times `every`."""
    points = tuple((every * (step + 1), (value,)) for step, value in enumerate(values))
    return Curve(number, points, running)


def stopped(name: str, *curves: Curve, goals: tuple[Goal, ...] = ("maximize",), **fields: Any) -> list[int]:
    """Who is stopped."""
    return stopped_early(rule(name, **fields), goals, curves)


def test_median_compares_the_best_so_far_with_the_finished_at_the_step() -> None:
    """At step 2 they have .4, .6 and .8: a best of .6 goes on, .59 does not; running ones are no measure."""
    done = [curve(0, 0.2, 0.4, 0.9), curve(1, 0.4, 0.6), curve(2, 0.6, 0.8)]
    running = [curve(3, 0.6, 0.1, running=True), curve(4, 0.59, 0.1, running=True), curve(5, 0.9, 0.9, running=True)]
    assert stopped("median", *done, *running) == [4]
    assert stopped("median", *done, *running, goals=("minimize",)) == [5]
    assert stopped("median", *done, *running, minSteps=3) == []
    assert stopped("median", *done, *running, minTrials=4) == []


def test_median_counts_only_those_that_came_as_far() -> None:
    """At step 3 one finished trial has a score: nobody is judged there."""
    done = [curve(0, 0.2, 0.4, 0.9), curve(1, 0.4), curve(2, 0.6)]
    assert stopped("median", *done, curve(3, 0.0, 0.0, 0.0, running=True)) == []
    assert stopped("median", *done, curve(3, 0.0, running=True)) == [3]


def test_how_certain_a_rank_is() -> None:
    """Of 4 trials all 3 others are better: of 4 draws, each with 1/3, not all 4 may come: 1 - 1/81. And by hand."""
    assert probably_worse(3, 4, 1 / 3) == pytest.approx(80 / 81)
    assert probably_worse(0, 2, 0.25) == pytest.approx(9 / 16)
    assert probably_worse(1, 2, 0.25) == pytest.approx(15 / 16)
    assert probably_worse(2, 6, 1 / 3) == pytest.approx(496 / 729)  # 64 + 192 + 240


def test_asha_stops_who_is_not_among_the_best_third() -> None:
    """Rungs are steps 2, 6, ...; of six at rung 2 the last is out (P = 98 %), who is better than one is not (90 % less
    a thousandth); a trial between rungs is judged at its last."""
    others = [curve(number, 0.0, number / 10) for number in range(5)]
    assert stopped("asha", *others, curve(9, 0.0, 0.15, running=True), minSteps=2) == []
    assert stopped("asha", *others, curve(9, 0.0, 0.05, running=True), minSteps=2) == [9]
    assert stopped("asha", *others, curve(9, 0.0, 0.15, 0.0, 0.0, running=True), minSteps=2) == []
    assert stopped("asha", *others, curve(9, 0.0, running=True), minSteps=2) == []
    assert stopped("asha", *others, curve(9, 0.0, 0.15, running=True), minSteps=2, reductionFactor=4) == [9]
    assert stopped("asha", *others[:1], curve(9, 0.0, -1.0, running=True), minSteps=2) == []


def test_the_second_of_few_may_be_among_the_best() -> None:
    """Beside one that is better a trial goes on as long as few have come; of twenty the tenth does, the eleventh not.

    The probability that of 20 draws at most 9 lie in a third is .908; at most 10: .962.
    """
    few = [curve(0, 0.9), *(curve(number, 0.1) for number in range(1, 5))]
    assert stopped("asha", *few, curve(9, 0.5, running=True)) == []
    many = [curve(number, number / 19) for number in range(19)]
    assert stopped("asha", *many, curve(20, 9.5 / 19, running=True)) == []  # 9 are better
    assert stopped("asha", *many, curve(20, 8.5 / 19, running=True)) == [20]  # 10


def test_a_trial_is_judged_by_its_score_at_the_rung() -> None:
    """Between two scores it lies in proportion: .1 at step 5 and .6 at 10 are .3 at the rung, 7; at 6 none is there."""
    others = [curve(number, 0.1, 0.6, every=5) for number in range(4)]
    assert stopped("asha", *others, Curve(9, ((6, (0.0,)), (8, (0.62,))), running=True), minSteps=7) == []
    assert stopped("asha", *others, Curve(9, ((6, (0.0,)), (8, (0.58,))), running=True), minSteps=7) == [9]
    assert stopped("asha", *others, Curve(9, ((6, (0.0,)),), running=True), minSteps=7) == []
    assert stopped("asha", *others, Curve(9, ((6, (0.0,)), (7, (0.0,))), running=True), minSteps=7) == [9]


def test_hyperband_gives_groups_more_and_more_time() -> None:
    """Of 17 trials 9 are judged from step 1 on, 5 from step 3, 3 from step 9, each beside all that came so far."""
    assert Counter(bracket_of(number, 3) for number in range(17)) == {0: 9, 1: 5, 2: 3}
    assert Counter(bracket_of(number, 2) for number in range(10)) == {0: 4, 1: 3, 2: 3}
    done = [curve(number, *[0.5] * 9) for number in range(9)]
    for number, first in ((17, 1), (18, 3), (20, 9)):
        for step in range(1, 10):
            found = stopped("hyperband", *done, curve(number, *[0.1] * step, running=True), minSteps=1)
            assert found == ([number] if step >= first else []), (number, step)


@pytest.mark.parametrize("name", RULES)
def test_the_best_in_another_objective_goes_on_in_the_better_half(name: str) -> None:
    """41 have ended with scores 0, .025, ..., 1: at .5, the median, the smallest goes on, below it does not.

    Its size is of no use where it is not the smallest; asha and hyperband are certain of the 21st of 42.
    """
    goals: tuple[Goal, ...] = ("maximize", "minimize")
    done = [Curve(17 * n, ((1, (n / 40, 100.0)),)) for n in range(41)]
    for score, size, stop in ((0.5, 5.0, False), (0.49, 5.0, True), (0.5, 500.0, name != "median")):
        trial = Curve(17 * 41, ((1, (score, size)),), running=True)
        assert stopped(name, *done, trial, goals=goals) == ([trial.number] if stop else []), (score, size)


@given(
    name=st.sampled_from(RULES),
    scores=st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=9), min_size=1, max_size=12),
    trials=st.integers(1, 4),
)
def test_the_leader_is_never_stopped(name: str, scores: list[list[float]], trials: int) -> None:
    """Whoever has the best score of all, and had it all along, goes on; finished ones never stop."""
    curves = [curve(n, *values, running=n % 2 == 0) for n, values in enumerate(scores)]
    leader = curve(len(scores), *[2.0] * 9, running=True)
    found = stopped(name, *curves, leader, minTrials=trials)
    assert leader.number not in found
    assert all(number % 2 == 0 for number in found)


@pytest.mark.parametrize(("phase", "stop"), [("Running", True), ("Suspended", False), ("Succeeded", False)])
def test_a_sweep_reads_scores_from_its_trials(
    make_sweep: Callable[..., CompressionSweepSpec], make_trial: Callable[..., CompressionJob], phase: str, stop: bool
) -> None:
    """Objectives are read from status.intermediate; points that lack one are passed over, only running trials stop."""
    spec = make_sweep(
        "random", objectives=("default", "macs"), earlyStopping={"name": "asha", "minSteps": 5, "minTrials": 2}
    )
    assert sweep_problems(spec) == []
    trials: dict[int, CompressionJob] = {}
    for number, (score, macs) in enumerate([(0.9, 10.0), (0.8, 9.0), (0.7, 8.0), (0.6, 50.0)]):
        point = {"algorithm": "random", "sparsity": round(0.1 * (number + 1), 1)}
        job = make_trial(spec, number, point, phase="Succeeded" if number < 3 else phase).to_dict()
        job["status"]["intermediate"] = [
            {"step": 1, "value": 0.0},
            {"step": 5, "value": score, "metrics": {"macs": macs}},
        ]
        trials[number] = CompressionJob.model_validate(job)
    assert strategy_for(spec).stopped_early(trials) == ([3] if stop else [])
    assert strategy_for(make_sweep("random", objectives=("default", "macs"))).stopped_early(trials) == []


def test_an_objective_that_is_known_late_stops_nobody(make_sweep: Callable[..., CompressionSweepSpec]) -> None:
    """latencyMs is measured behind the training, so nothing could be compared before."""
    spec = make_sweep("random", objectives=("default", "latencyMs"), earlyStopping={"name": "median"})
    assert [problem.path for problem in sweep_problems(spec)] == ["spec.earlyStopping"]
