"""The first rung: what it runs, by what it is ranked, and how two orders agree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from modelpress.api.semantic_sweep import sweep_problems
from modelpress.search.outcomes import TrialOutcome
from modelpress.search.screening import Screen, ordered, spearman

Make = Callable[..., Any]


def outcome(number: int, *values: float, violation: float = 0.0) -> TrialOutcome:
    """A trial that succeeded."""
    return TrialOutcome(number, f"t-{number}", {}, {}, values, (violation,))


def test_one_objective_decides_and_several_go_by_fronts() -> None:
    """Feasible first; of several objectives the ends of a front before its middle, then the next front."""
    missed = outcome(9, 1.0, violation=0.1)
    assert ordered([missed, outcome(0, 0.3), outcome(1, 0.7), outcome(2, 0.5)], ["maximize"]) == [1, 2, 0, 9]
    points = [outcome(0, 0.9, 9.0), outcome(1, 0.8, 5.0), outcome(2, 0.5, 1.0), outcome(3, 0.5, 5.0)]
    assert ordered(points, ["maximize", "minimize"]) == [0, 2, 1, 3]


def test_two_orders_agree_or_not() -> None:
    """1 where they are the same, -1 where one is the other backwards, and by Spearman's formula between."""
    assert spearman([4, 2, 7], [4, 2, 7]) == 1
    assert spearman([4, 2, 7], [7, 2, 4]) == -1
    assert spearman([1, 2, 3, 4], [2, 1, 3, 4]) == 0.8
    assert spearman([1], [1]) is None


def test_what_may_come_back_is_ranked_by(make_sweep: Make) -> None:
    """Counts are judged at once where only training follows; all else is an objective until the end."""
    spec = make_sweep("tpe", objectives=("macs",), screening={"stages": 1, "top": 2})
    screen = Screen(spec, 1)
    assert screen.objectives.metrics == ("macs", "default")
    assert screen.objectives.goals == ("minimize", "maximize")
    assert [item.metric for item in screen.constraints] == ["macs"]
    cut = screen.cut(spec.template.spec)
    assert (len(cut.stages), [item.metric for item in cut.constraints]) == (1, ["macs"])
    document = spec.to_dict()
    document["template"]["spec"]["stages"].append({"mixedPrecision": {"dtype": "bf16"}})
    later = Screen(type(spec).model_validate(document), 1)
    assert later.constraints == []
    assert later.objectives.metrics == ("macs", "default")


@pytest.mark.parametrize(
    ("fields", "path", "part"),
    [
        ({"screening": {"stages": 2, "top": 2}}, "spec.screening.stages", "use at most 1"),
        ({"screening": {"stages": 1, "top": 9}, "maxTrials": 8}, "spec.screening.top", "use at most maxTrials"),
        (
            {"screening": {"stages": 1, "top": 2}, "algorithm": "cmaes"},
            "spec.algorithm.name",
            "use tpe or nsga2",
        ),
    ],
)
def test_what_cannot_be_screened_is_refused(make_sweep: Make, fields: dict[str, Any], path: str, part: str) -> None:
    """With the field and the fix."""
    problems = sweep_problems(make_sweep(objectives=("macs",), **fields))
    assert [problem.path for problem in problems] == [path]
    assert part in str(problems[0])
