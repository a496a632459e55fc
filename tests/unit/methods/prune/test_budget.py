"""prune.budget: shares that are solved for it, met exactly, the same after a restart, and cheap to solve again."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import prune_zoo
import pytest
import torch
from torch import nn

import modelpress as mp
from modelpress.api.errors import SpecError
from modelpress.api.v1alpha1 import Stage
from modelpress.store import open_store
from modelpress_runner.engine.checkpoint import Checkpointer
from modelpress_runner.engine.run import run_stages
from modelpress_runner.errors import CompressionError, InvalidSpecError
from modelpress_runner.measure import counts
from modelpress_runner.methods.context import Measures
from modelpress_runner.methods.prune.budget import Path, first_within
from modelpress_runner.methods.prune.ranking import Candidates
from modelpress_runner.process.stopping import Stopped
from modelpress_runner.runs.tables import StoreTables
from modelpress_runner.subject.subject import Subject


def of(*scores: float, **bounds: Any) -> Candidates:
    return Candidates(
        torch.tensor(scores, dtype=torch.float64), None, torch.zeros(len(scores), dtype=torch.bool), **bounds
    )


# The path -------------------------------------------------------------------------------------------------------------


def test_units_go_where_the_least_is_lost_for_what_is_saved() -> None:
    """Of the first log 9/8, log 8/5 (5 stays), of the second half of log 14/13, log 13/9 (9 stays), as its units save
    twice as much."""
    path = Path.through([of(1, 3, 5), of(4, 1, 9)], [1.0, 2.0])
    assert path.start == (0, 0)
    assert path.steps == ((1, 1), (0, 1), (1, 2), (0, 2))
    assert [path.removed(steps) for steps in range(5)] == [(0, 0), (0, 1), (1, 1), (1, 2), (2, 2)]


def test_bounds_and_multiples_hold_at_every_place() -> None:
    """Of 10 units 4, then 8 can stay where 4 divides, half at most may go; of 4 a quarter must; what saves nothing
    stays whole."""
    groups = [
        of(*range(1, 11), multiple=4),
        of(*range(1, 11), most=0.5, multiple=4),
        of(1, 2, 3, 4, least=0.25),
        of(1, 2),
    ]
    path = Path.through(groups, [1.0, 1.0, 1.0, 0.0])
    places = [path.removed(steps) for steps in range(len(path.steps) + 1)]
    assert {place[0] for place in places} == {0, 2, 6}
    assert {place[1] for place in places} == {0, 2}
    assert {place[2] for place in places} == {1, 2, 3}
    assert {place[3] for place in places} == {0}


def test_scores_count_by_the_share_that_is_left() -> None:
    """3 of (3, 4) and 60 of (60, 80) weigh the same; of equal steps that of the earlier group comes first.

    Of four alike go log 4/3, log 3/2 and log 2, of two log 2, of three log 3/2 and log 2, where a unit saves half.
    """
    path = Path.through([of(60, 80), of(3, 4)], [1.0, 1.0])
    assert path.steps == ((0, 1), (1, 1))
    path = Path.through([of(1, 1, 1, 1), of(2, 2), of(5, 5, 5)], [1.0, 1.0, 0.5])
    assert path.steps == ((0, 1), (0, 2), (0, 3), (1, 1), (2, 1), (2, 2))
    path = Path.through([of(0, 0, 1), of(0, 0)], [1.0, 1.0])
    assert path.steps == ((0, 1), (0, 2), (1, 1))


def test_what_is_gone_stays_gone() -> None:
    """It costs nothing, and is the begin of the path."""
    one = of(1, 9, 5, 7)
    one.already_pruned[1] = True
    path = Path.through([one], [1.0])
    assert path.start == (1,)
    assert path.steps == ((0, 2), (0, 3))


@pytest.mark.parametrize("bound", [0, 1, 24, 25, 26, 500, 999, 1000, 1001])
def test_the_first_place_within_a_bound_is_found(bound: int) -> None:
    """Of costs that fall unevenly, in fewer measurements than there are places by far."""
    costs = sorted((place**3 % 1009 for place in range(200)), reverse=True)
    asked: list[int] = []
    found = first_within(199, bound, lambda steps: asked.append(steps) or costs[steps], {})
    expected = next((place for place, cost in enumerate(costs) if cost <= bound), None)
    assert found == expected
    assert len(asked) <= 2 + 3 * 8


def test_known_costs_are_not_measured_again_and_clocks_need_not_be_exact() -> None:
    """Near enough below the bound is taken; so is what was reached after so many tries."""
    costs = [1000.0 - step for step in range(1000)]
    known: dict[int, float] = {}
    first_within(999, 500.0, costs.__getitem__, known)
    assert first_within(999, 500.0, {}.__getitem__, known) == 500
    near = first_within(999, 500.0, costs.__getitem__, {}, near=0.05)
    assert 475 <= costs[near] <= 500
    tried = first_within(999, 500.0, lambda step: 1.0 if step > 700 else 1000.0, {}, tries=2)
    assert tried is not None
    assert tried > 700


# The stage ------------------------------------------------------------------------------------------------------------


def recipe(metric: str, **more: Any) -> dict[str, Any]:
    bound = {name: more.pop(name) for name in ("max", "maxRatio") if name in more}
    names = more.pop("names", ["stem", "conv1", "conv2"])
    return {"prune": {"budget": {"metric": metric, **bound}, "configList": [{"opNames": names}], **more}}


def residual() -> tuple[nn.Module, torch.Tensor]:
    return prune_zoo.trained_like(prune_zoo.Residual(32)).eval(), torch.randn(2, 1, 8, 8)


def cost(model: nn.Module, x: torch.Tensor, metric: str) -> float:
    return counts.macs(model, x) if metric == "macs" else counts.parameters(model)


@pytest.mark.parametrize("metric", ["macs", "parameters"])
@pytest.mark.parametrize("ratio", [0.75, 0.5, 0.2])
def test_a_counted_budget_is_met_and_not_by_more_than_a_unit(metric: str, ratio: float) -> None:
    """Never above; and one unit more of any group would be."""
    model, x = residual()
    result = mp.compress(model, [recipe(metric, maxRatio=ratio)], None, x)
    whole, now = cost(model, x, metric), cost(result.model, x, metric)
    assert now <= ratio * whole
    widths = [result.model.conv1.out_channels, result.model.conv2.out_channels]
    bigger = prune_zoo.Residual(32)  # a unit of what is shared by stem, conv2 and head is the largest
    assert now + cost(bigger, x, metric) / 32 * 1.5 > ratio * whole, widths
    assert any(note.startswith(f"budget: {metric}") for note in result.notes)


def test_an_absolute_budget_and_the_bytes_of_a_file() -> None:
    """As a number of parameters, and as bytes of the target's format."""
    model, x = residual()
    assert cost(mp.compress(model, [recipe("parameters", max=9000)], None, x).model, x, "parameters") <= 9000
    metrics = mp.compress(model, [recipe("sizeBytes", maxRatio=0.5)], None, x).metrics
    assert metrics["compressed"]["sizeBytes"] <= 0.5 * metrics["baseline"]["sizeBytes"]


def test_bounds_and_multiples_hold_with_a_budget() -> None:
    """conv1 keeps a multiple of 8, and half of it at least."""
    model, x = residual()
    stage = recipe("macs", maxRatio=0.6, roundTo="8", maxSparsity=0.5)
    result = mp.compress(model, [stage], None, x)
    widths = {result.model.conv1.out_channels, result.model.conv2.out_channels}
    assert all(width % 8 == 0 and width >= 16 for width in widths)
    assert cost(result.model, x, "macs") <= 0.6 * cost(model, x, "macs")


def test_models_of_smaller_budgets_are_nested() -> None:
    """What the larger budget removes, the smaller one removes, too."""
    model, x = residual()
    kept = []
    for ratio in (0.8, 0.5, 0.3):
        cuts = mp.compress(model, [recipe("macs", maxRatio=ratio)], None, x).cuts
        kept.append({(cut.module, cut.axis): set(cut.kept) for cut in cuts})
    for larger, smaller in itertools.pairwise(kept):
        assert all(smaller[key] <= larger[key] for key in larger)


def test_what_cannot_be_met_is_an_error_with_the_least_there_is() -> None:
    """One unit of each group stays."""
    model, x = residual()
    with pytest.raises(
        InvalidSpecError, match=r"parameters cannot come down to 0.001 of what it is: .* it is 0\."
    ) as raised:
        mp.compress(model, [recipe("parameters", maxRatio=0.001)], None, x)
    assert raised.value.path == "spec.stages[0].prune.budget"


def test_layers_that_were_left_wide_do_not_pass_for_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shrink is refuted behind the rounds: the model is too large, and that is said."""
    from modelpress_runner.stages import prune

    def refuted(*args: Any, **more: Any) -> Any:
        raise CompressionError("no")

    model, x = residual()
    monkeypatch.setattr(prune, "prove", refuted)
    stage = recipe("macs", maxRatio=0.5)
    stage["prune"]["configList"] = [{"opTypes": ["Conv2d"]}]
    with pytest.raises(CompressionError, match=r"above the budget's .* kept their width") as raised:
        mp.compress(model, [stage], None, x)
    assert raised.value.path == "spec.stages[0].prune.budget"


def test_a_latency_is_asked_of_the_models_themselves() -> None:
    """By a clock that says what is counted, so that the result is known: within two per cent below the bound."""
    model, x = residual()

    def of(metric: str, models: Any) -> list[float]:
        return [float(counts.macs(each, x)) for each in models]

    outcome = run_stages(
        Subject(copy.deepcopy(model), None, x), stages(recipe("latencyMs", maxRatio=0.6)), seed=0, measures=Measures(of)
    )
    ratio = cost(outcome.model, x, "macs") / cost(model, x, "macs")
    assert 0.55 <= ratio <= 0.6


# Tables and restarts --------------------------------------------------------------------------------------------------


def stages(*recipes: dict[str, Any]) -> list[Stage]:
    return [Stage.model_validate(each) for each in recipes]


def test_another_budget_measures_few_models_and_scores_nothing(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Analysis, scores, the table of costs and what was measured on the way come from the store."""
    from modelpress_runner.stages import prune, prune_budget

    model, x = residual()
    calls: list[str] = []

    def of(metric: str, models: Any) -> list[float]:
        calls.append(metric)
        return [float(cost(each, x, metric)) for each in models]

    def run(ratio: float) -> nn.Module:
        calls.clear()
        measures = Measures(of, tables=StoreTables(open_store(str(tmp_path)), "dense/abc"))
        subject = Subject(copy.deepcopy(model), None, x)
        return run_stages(subject, stages(recipe("macs", maxRatio=ratio)), seed=0, measures=measures).model

    run(0.5)
    first = len(calls)
    monkeypatch.setattr(prune, "find_dependencies", None)  # called again it would fail
    monkeypatch.setattr(prune_budget, "collect", None)
    again = run(0.5)
    assert len(calls) == 1  # of the result, whether it is met
    other = run(0.4)
    assert len(calls) < first / 2
    assert cost(again, x, "macs") <= 0.5 * cost(model, x, "macs")
    assert cost(other, x, "macs") <= 0.4 * cost(model, x, "macs")


def test_a_restart_goes_on_with_the_shares_that_were_solved(task, tmp_path) -> None:
    """Stopped in the training behind the first of two rounds: the second one goes to what was solved before."""
    schedule = {"type": "linear", "rounds": 2, "train": {"maxSteps": 3}}
    plan = stages(recipe("parameters", maxRatio=0.6, names=["0"], schedule=schedule))
    dense = copy.deepcopy(task.model)

    def of(metric: str, models: Any) -> list[float]:
        return [float(counts.parameters(each)) for each in models]

    def run(checkpointer: Checkpointer | None, stop: Any) -> Any:
        task.model = copy.deepcopy(dense)
        subject = Subject(task.model, task.evaluator())
        return run_stages(subject, plan, seed=1, checkpointer=checkpointer, stop=stop, measures=Measures(of))

    whole = run(None, lambda: None).model.state_dict()
    store, asked, attempts = open_store(str(tmp_path)), 0, 0

    def stop() -> None:
        nonlocal asked
        asked += 1
        if asked == 5 * attempts:
            raise Stopped

    while True:
        asked, attempts = 0, attempts + 1
        try:
            outcome = run(Checkpointer(store, "", "same", attempts), stop)
            break
        except Stopped:
            assert attempts < 30
    assert attempts > 1
    assert all(torch.equal(whole[name], value) for name, value in outcome.model.state_dict().items())


def test_a_table_that_is_damaged_is_none(tmp_path) -> None:
    """It is worked out again."""
    tables = StoreTables(open_store(str(tmp_path)), "dense/abc")
    assert tables.get("x") is None
    tables.put("x", {"a": [0.1]})
    assert tables.get("x") == {"a": [0.1]}
    (tmp_path / "dense/abc/tables/x.json").write_text("{")
    assert tables.get("x") is None


# Rules ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sparsity": 0.5}, r"prune.sparsity: the budget says how much goes; remove it"),
        ({"configList": [{"sparsity": 0.5}]}, r"configList\[0\].sparsity: the budget says how much goes"),
        ({"shrink": False}, "prune.shrink: masks alone cost what they cost before"),
        ({"algorithm": "level"}, "level removes single weights, and a budget is met by channels"),
        ({"schedule": {"type": "agp", "rounds": 2, "initialSparsity": 0.1}}, "a round cannot begin with a sparsity"),
        ({"budget": {"metric": "macs"}}, "budget"),
        ({"budget": {"metric": "macs", "max": 1, "maxRatio": 0.5}}, "budget"),
        ({"budget": {"metric": "macs", "maxRatio": 1.5}}, "budget.maxRatio"),
    ],
)
def test_what_does_not_go_with_a_budget_is_refused(changes: dict[str, Any], words: str) -> None:
    """With the field, and what to do."""
    model, x = residual()
    block = {"budget": {"metric": "macs", "maxRatio": 0.5}, "configList": [{"opTypes": ["Conv2d"]}], **changes}
    with pytest.raises(SpecError, match=words):
        mp.compress(model, [{"prune": block}], None, x)


def test_a_budget_has_no_place_in_a_training() -> None:
    """It is solved before the first round."""
    model, x = residual()
    with pytest.raises(SpecError, match=r"of\[0\].prune.budget: a budget is solved before the first round"):
        mp.compress(model, [{"together": {"epochs": 1, "of": [recipe("macs", maxRatio=0.5)]}}], None, x)
