"""Which trials' numbers compare, how sure a score is, how far a search came, and what mattered."""

from __future__ import annotations

import math
import random

import pytest

from modelpress.api.v1alpha1 import CompressionJobSpec, Goal
from modelpress.result import RunRecord, RunResult, conditions_of
from modelpress.results.comparable import alike, differences, standard_error
from modelpress.results.report import Frame, findings, render
from modelpress.results.report.search import search_section, sentences
from modelpress.results.trials import Trial
from modelpress.search.attainment import Attainment, attainment
from modelpress.search.importance import importances
from modelpress.search.pareto import Candidate
from modelpress.store.manifest import Manifest, RunMetrics

SPEC = {
    "model": {"entrypoint": "digits:create"},
    "stages": [{"prune": {"configList": [{"opTypes": ["Conv2d"], "sparsity": 0.5}]}}],
}

OBJECTIVES: tuple[tuple[str, Goal], ...] = (("default", "maximize"), ("macs", "minimize"))


def trial(number: int, compressed: dict[str, float], torch: str = "2.13.0", **spec: object) -> Trial:
    """A trial that succeeded, of a recipe with changes."""
    made = Manifest(
        attempt=1, files=[], spec_digest="d", metrics=RunMetrics(compressed=compressed), versions={"torch": torch}
    )
    result = RunResult(phase="Succeeded", reason="Committed", compressed=compressed)
    conditions = conditions_of(CompressionJobSpec.model_validate(SPEC | spec))
    record = RunRecord.of(result, f"s-{number}", number, {"x": number}, conditions=conditions)
    return Trial(number, f"trials/{number:05d}", manifest=made, record=record)


def test_what_sets_numbers_apart_is_named() -> None:
    """Seed, format, rows, torch; threads only where there is a latency; against the best trial, else the most."""
    score, timed = {"default": 0.9, "samples": 540.0}, {"default": 0.9, "samples": 540.0, "latencyMs": 1.0}
    trials = [
        trial(0, score),
        trial(1, score, seed=1),
        trial(2, {**score, "samples": 100.0}, target={"format": "pt2"}),
        trial(3, score, benchmark={"coresPerInstance": 4}),
        trial(4, score, torch="2.12.0"),
        Trial(5, "trials/00005"),
    ]
    assert differences(trials, 0) == {
        1: "seed 1, not 0",
        2: "format pt2, not eager; samples 100, not 540",
        4: "torch 2.12.0, not 2.13.0",
    }
    assert differences(trials, None) == differences(trials, 0)
    assert differences(trials, 1)[0] == "seed 0, not 1"
    both = [trial(0, timed), trial(1, timed, benchmark={"coresPerInstance": 4})]
    assert differences(both, 0) == {1: "threads 4, not 1"}


def test_the_standard_error_is_told_where_it_is_known() -> None:
    """Of a share of rows sqrt(p (1 - p) / n), else what the evaluator says; a loss above 1 is no share."""
    assert standard_error({"default": 0.9, "samples": 900.0}) == pytest.approx(0.01)
    assert standard_error({"default": 0.9, "samples": 900.0, "defaultStderr": 0.2}) == 0.2
    assert standard_error({"default": 3.0, "samples": 900.0}) is None
    assert standard_error({"default": 0.9}) is None
    assert standard_error({"default": 0.9, "defaultStderr": math.nan}) is None
    trials = [trial(n, {"default": value, "samples": 900.0}) for n, value in enumerate((0.9, 0.88, 0.86, 0.93))]
    assert alike(trials, 0) == [1]  # twice the error of the difference is .029 for .88 and .031 for .86


def test_attainment_of_two_objectives() -> None:
    """Shares of the box between worst and best; a trial that brings nothing, or misses a constraint, makes no step."""
    points = [(0.5, 10.0), (0.5, 20.0), (1.0, 20.0), (0.9, 1.0), (0.75, 10.0), (0.5, 10.0), (0.75, 15.0)]
    found = [Candidate(n, values, float(n == 3)) for n, values in enumerate(points)]
    steps = attainment(found, ("maximize", "minimize"))
    assert steps.numbers == (0, 4)
    assert steps.shares == (0.0, 0.5)
    assert [steps.at(n) for n in (-1, 0, 3, 4, 9)] == [0.0, 0.0, 0.0, 0.5, 0.5]
    one = attainment([Candidate(n, (value,)) for n, value in enumerate((3.0, 1.0, 5.0, 2.0))], ("maximize",))
    assert one == Attainment((0, 2), (0.5, 1.0))
    assert attainment([], ("maximize",)) == Attainment()
    assert attainment([Candidate(4, (1.0, 1.0)), Candidate(5, (1.0, 1.0))], ("maximize",) * 2) == Attainment(
        (4,), (1.0,)
    )
    many = Attainment(tuple(range(1000)), tuple(n / 999 for n in range(1000))).thinned()
    assert (len(many.numbers), many.numbers[0], many.numbers[-1]) == (100, 0, 999)


@pytest.mark.parametrize("goals", [("maximize",), ("maximize", "minimize")])
def test_the_parameter_that_decides_is_the_important_one(goals: tuple[str, ...]) -> None:
    """Of three parameters one decides alone; shares sum to 1, and a constant has none. Chance says nothing early."""
    chance = random.Random(0)
    parameters = {
        n: {"x": chance.random(), "kind": chance.choice(["a", "b"]), "y": chance.randint(1, 9), "same": 3}
        for n in range(60)
    }
    values = {n: (given["x"], given["y"] * 0.0 - given["x"])[: len(goals)] for n, given in parameters.items()}
    found = importances([Candidate(n, value) for n, value in values.items()], parameters, goals)
    assert next(iter(found)) == "x"
    assert set(found) == {"x", "kind", "y"}
    assert found["x"] > 0.5
    assert sum(found.values()) == pytest.approx(1.0)
    assert importances([Candidate(n, values[n]) for n in range(9)], parameters, goals) == {}
    # The same trials say the same, whatever their order.
    backwards = [Candidate(n, values[n]) for n in reversed(range(60))]
    assert importances(backwards, parameters, goals) == found


def test_the_report_tells_all_of_it() -> None:
    """A curve, the parameters, the error of the best score with its peers, and who is not comparable."""
    trials = [trial(n, {"default": 0.8 + n / 1000, "macs": 900.0 - n, "samples": 900.0}) for n in range(12)]
    trials.append(trial(12, {"default": 0.5, "macs": 1000.0, "samples": 900.0}, seed=4))
    shown = Frame("digits", "s3://out/x", OBJECTIVES, best=11, front=frozenset({11}))
    found = findings(shown, trials)
    page = render(found).decode()
    assert 'id="attained"' in page
    assert 'id="importances"' in page
    assert "The standard error of the best score is 0.013. Chance" in page
    assert "not comparable: seed 4, not 0" in page
    assert search_section(findings(shown, trials[:1])) == ""
    told = sentences(found)
    assert told[0] == "The search gained last with trial 11, of 13."
    assert told[2].startswith(
        "The standard error of the best score is 0.013. Chance alone may set it apart from trials 0,"
    )
    assert told[3:] == ["Trial 12 is not comparable with the best: seed 4, not 0."]
