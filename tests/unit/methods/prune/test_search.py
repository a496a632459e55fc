"""Searches for the sparsity of each layer: what they propose and find, by hand, and as stages."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import modelpress as mp
from modelpress.api.v1alpha1 import Prune, Stage
from modelpress_runner.engine.run import run_stages
from modelpress_runner.errors import InvalidSpecError
from modelpress_runner.methods.context import Evaluation, StageContext, TrainingContext, Transform
from modelpress_runner.methods.procedure import plain_state
from modelpress_runner.methods.prune.allocation import MOST, Allocation, Annealing, NetAdapt, Sensitivity, scaled
from modelpress_runner.stages.prune import KIND
from modelpress_runner.subject.subject import Subject


def test_sparsities_are_brought_to_a_mean() -> None:
    """(.2, .4) of equal sizes to .6: doubled; of sizes 3 and 1, times .6/.25 = 2.4; .99 is the most."""
    assert scaled([0.2, 0.4], [1, 1], 0.6) == pytest.approx([0.4, 0.8])
    assert scaled([0.2, 0.4], [3, 1], 0.6) == pytest.approx([0.48, 0.96])
    assert scaled([0.2, 0.8], [1, 1], 0.75) == pytest.approx([0.51, 0.99])
    assert scaled([0.0, 0.0], [1, 9], 0.3) == [0.3, 0.3]
    assert scaled([0.0, 0.5], [9, 1], 0.5) == pytest.approx([(5 - 0.99) / 9, 0.99])


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(1, 10_000)), min_size=1, max_size=8), st.floats(0.01, 0.95))
def test_the_mean_is_met_whatever_is_wanted(layers: list[tuple[float, int]], mean: float) -> None:
    """Within 1e-6, and no layer loses more than MOST."""
    wanted, sizes = zip(*layers, strict=True)
    found = scaled(wanted, sizes, mean)
    assert sum(share * size for share, size in zip(found, sizes, strict=True)) / sum(sizes) == pytest.approx(
        mean, abs=1e-6
    )
    assert max(found) <= MOST
    assert min(found) >= 0


def finish(search: Allocation, score: Any) -> list[list[float]]:
    """Runs it to its end; what it proposed."""
    proposed = []
    while (shares := search.propose()) is not None:
        proposed.append(shares)
        search.told(score(shares))
    return proposed


def test_sensitivity_takes_more_where_it_costs_less() -> None:
    """The first layer costs nothing up to .5, the second all that is taken of it: (.5, .5) costs .5, (.9, .5) more."""
    costs = {0.0: 0.0, 0.1: 0.0, 0.5: 0.01, 0.9: 1.0}
    search = Sensitivity([1, 1], 0.3, 0, [0.1, 0.5, 0.9])
    proposed = finish(search, lambda shares: 1 - costs[shares[0]] - 2 * shares[1])
    assert proposed == [[0, 0], [0.1, 0], [0.5, 0], [0.9, 0], [0, 0.1], [0, 0.5], [0, 0.9]]
    # A bound of .01 takes (.5, 0), whose mean is .25; one of .2 takes (.5, .1), whose mean is .3.
    assert search.found == pytest.approx([0.5, 0.1])


def test_sensitivity_stops_at_the_first_level_that_costs_too_much() -> None:
    """A level behind it that costs nothing by luck is not taken."""
    search = Sensitivity([1, 1], 0.1, 0, [0.1, 0.5, 0.9])
    finish(search, lambda shares: -{0.0: 0.0, 0.1: 0.0, 0.5: 1.0, 0.9: 0.0}[shares[0]] - shares[1])
    assert search.found == pytest.approx([0.1, 0.1])


def annealing(seed: int = 0, **changes: float) -> Annealing:
    """From 100 to 20 by .9."""
    return Annealing([1, 3], 0.5, seed, **{"start": 100.0, "stop": 20.0, "rate": 0.9, "perturbation": 0.35, **changes})


def test_annealing_finds_what_scores_best() -> None:
    """100 times .9^15 is above 20 and .9^16 below: the even begin and 16 tries, all of the mean; the best of them."""

    def score(shares: list[float]) -> float:
        return -abs(shares[0] - 0.9)

    search = annealing()
    proposed = finish(search, score)
    assert len(proposed) == 17
    assert proposed[0] == [0.5, 0.5]
    for shares in proposed:
        assert (shares[0] + 3 * shares[1]) / 4 == pytest.approx(0.5, abs=1e-6)
    assert search.found == max(proposed, key=score)
    assert score(search.found) > score(proposed[0])
    assert finish(annealing(), score) == proposed
    assert finish(annealing(1), score) != proposed


def test_annealing_goes_on_where_it_was() -> None:
    """State in JSON after each try, another object: the same proposals."""

    def score(shares: list[float]) -> float:
        return 10 - (shares[0] - 0.7) ** 2

    whole = finish(annealing(), score)
    search, proposed = annealing(), []
    while (shares := search.propose()) is not None:
        proposed.append(shares)
        search.told(score(shares))
        state = json.loads(json.dumps(search.state_dict()))
        search = annealing()
        search.load_state_dict(state)
    assert proposed == whole


def test_net_adapt_goes_on_from_what_scored_best() -> None:
    """.25 of 4 weights, .1 at a time: .1 4 / 3 of the first layer or .1 4 / 1 of the second. Of the second what is
    above .5 is dear. The last step is as small as what is missing."""
    search = NetAdapt([3, 1], 0.25, 0, 0.1)
    proposed = finish(search, lambda shares: 10 - max(0.0, shares[1] - 0.5) - shares[0] / 100)
    a, b, c = 0.4 / 3, 0.4, 0.2 / 3
    wanted = [[a, 0], [0, b], [a, b], [0, 2 * b], [a + c, b], [a, b + 0.2]]
    assert [pytest.approx(shares) for shares in proposed] == wanted
    assert search.found == pytest.approx([a + c, b])


@settings(max_examples=30)
@given(
    st.lists(st.integers(1, 1000), min_size=1, max_size=5), st.floats(0.05, 0.95), st.floats(0.05, 0.5), st.integers()
)
def test_net_adapt_meets_the_mean(sizes: list[int], mean: float, step: float, seed: int) -> None:
    """Whatever the scores are, never taking back; and it goes on from its state in JSON."""
    search, last, chance = NetAdapt(sizes, mean, 0, step), [0.0] * len(sizes), random.Random(seed)
    while (shares := search.propose()) is not None:
        assert sum(one < other for one, other in zip(last, shares, strict=True)) == 1
        assert all(one <= other <= MOST + 1e-9 for one, other in zip(last, shares, strict=True))
        search.told(chance.random())
        state = json.loads(json.dumps(search.state_dict()))
        search = NetAdapt(sizes, mean, 0, step)
        search.load_state_dict(state)
        last = search.found
    total = sum(share * size for share, size in zip(search.found, sizes, strict=True)) / sum(sizes)
    assert total == pytest.approx(mean, abs=1e-6)


# Stages ---------------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """Two layers of 10 outputs whose weights are 1 to 10."""

    def __init__(self) -> None:
        super().__init__()
        self.cheap, self.dear = (nn.Linear(1, 10, bias=False) for _ in range(2))
        with torch.no_grad():
            for layer in (self.cheap, self.dear):
                layer.weight.copy_(torch.arange(1.0, 11).view(10, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.cheap(x), self.dear(x)], dim=1)


def kept(model: Any) -> tuple[int, int]:
    return int((model.cheap.weight != 0).sum()), int((model.dear.weight != 0).sum())


def evaluator(sign: int = 1, seen: list[Any] | None = None) -> mp.TorchEvaluator:
    """Layers `dear` matters a hundred times as much."""

    def score(model: Any) -> float:
        cheap, dear = kept(model)
        if seen is not None:
            seen.append((cheap, dear))
        return sign * (dear + cheap / 100)

    return mp.TorchEvaluator(evaluating_func=score)


def block(kind: str, **more: Any) -> dict[str, Any]:
    return {"algorithm": "l1", "shrink": False, "configList": [{"sparsity": 0.3}], "search": {"type": kind, **more}}


@pytest.mark.parametrize("goal", ["maximize", "minimize"])
def test_the_layer_that_matters_less_loses_more(goal: Any) -> None:
    """6 of 20 channels go, all of them of the cheap layer; a score that is to be small says the same."""
    seen: list[Any] = []
    given = evaluator(1 if goal == "maximize" else -1, seen)
    stage = Stage.model_validate({"prune": block("sensitivity", sparsities=[0.1, 0.6, 0.9])})
    outcome = run_stages(Subject(Net(), given), [stage], seed=0, scores=False, goal=goal)
    assert kept(outcome.model) == (4, 10)
    assert seen[:7] == [(10, 10), (9, 10), (4, 10), (1, 10), (10, 9), (10, 4), (10, 1)]
    assert outcome.model.cheap.weight.flatten().tolist() == [0.0] * 6 + [7.0, 8.0, 9.0, 10.0]
    assert "sensitivity found the sparsities cheap 0.600, dear 0.000" in outcome.notes


def test_annealing_as_a_stage_is_never_worse_than_the_same_for_all() -> None:
    """What it ends with scores as well as the best that it tried, which the even one is among."""
    seen: list[Any] = []
    stage = Stage.model_validate({"prune": block("simulated_annealing")})
    outcome = run_stages(Subject(Net(), evaluator(seen=seen)), [stage], seed=0, scores=False)
    cheap, dear = kept(outcome.model)
    assert seen[0] == (7, 7)
    assert dear + cheap / 100 == max(dear + cheap / 100 for cheap, dear in seen)
    assert (cheap, dear) in seen


def test_a_search_goes_on_from_its_state() -> None:
    """Interrupted behind every score and taken up by another object with the same model: the same end."""
    prune = Prune.model_validate(block("simulated_annealing"))

    def run(interrupted: bool) -> Any:
        model, given = Net(), evaluator()
        context = StageContext(model, given, None, 0)
        procedure, score = KIND.procedure(prune, 0), None
        state = plain_state(procedure)
        while (step := procedure.next(score)) is not None:
            score = None
            if isinstance(step, Transform):
                step.apply(context)
            elif isinstance(step, Evaluation):
                score = {"default": given.evaluate(model)["default"]}
                if interrupted:  # as the engine: the state before the step, and the score that it was asked with
                    state = plain_state(procedure)
                    procedure = KIND.procedure(prune, 0)
                    procedure.load_state_dict(state)
        return context.masks

    first, second = run(False), run(True)
    for name in ("cheap", "dear"):
        assert torch.equal(first[name]["weight"], second[name]["weight"])


def test_layers_that_lose_the_same_channels_are_one_dimension() -> None:
    """Two layers whose outputs are added up: 3 tries each of 2 dimensions, and one of nothing."""

    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.three = nn.Linear(2, 8), nn.Linear(2, 8), nn.Linear(8, 8)
            self.last = nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.last(self.three((self.one(x) + self.two(x)).relu()).relu())
            return out

    torch.manual_seed(0)
    model, seen = Added().eval(), []
    inputs = torch.randn(4, 2)

    def score(model: Any) -> float:
        seen.append(1)
        return -float(model(inputs).square().mean())

    stage = {"search": {"type": "sensitivity", "sparsities": [0.25, 0.5, 0.75]}, "sparsity": 0.5}
    stage["configList"] = [{"opNames": ["one", "two", "three"]}]
    outcome = run_stages(
        Subject(model, mp.TorchEvaluator(evaluating_func=score), inputs),
        [Stage.model_validate({"prune": stage})],
        seed=0,
        scores=False,
    )
    assert len(seen) == 7
    made: Any = outcome.model
    assert made.one.out_features == made.two.out_features == made.three.in_features
    assert made.last.in_features == made.three.out_features


def test_without_scores_there_is_no_search() -> None:
    """An error before anything runs."""
    stage = Stage.model_validate({"prune": block("sensitivity")})
    with pytest.raises(InvalidSpecError, match="this stage goes by scores, but nothing here evaluates"):
        run_stages(Subject(Net(), mp.TorchEvaluator()), [stage], seed=0)


def finished(prune: dict[str, Any], interrupted: bool) -> tuple[StageContext, list[Any], list[str]]:
    """The context behind all steps of a stage, what was scored, and the labels of its steps. A training adds 1 to every
    weight that is left. Interrupted, another object takes over behind each step."""
    parsed, model, seen, labels = Prune.model_validate(prune), Net(), [], []
    given = evaluator()
    context, procedure, score = StageContext(model, given, None, 0), KIND.procedure(parsed, 0), None
    while (step := procedure.next(score)) is not None:
        labels.append(step.label)
        score = None
        if isinstance(step, Transform):
            step.apply(context)
        elif isinstance(step, Evaluation):
            seen.append((*kept(model), float(model.dear.weight.detach().max())))
            score = {"default": given.evaluate(model)["default"]}
        else:
            for part in step.participants(TrainingContext(context, given, print)) if step.participants else []:
                part.attach(model)
                part.begin()
            with torch.no_grad():
                for layer in (model.cheap, model.dear):
                    layer.weight += (layer.weight != 0).float()
        if interrupted:
            state = plain_state(procedure)
            procedure = KIND.procedure(parsed, 0)
            procedure.load_state_dict(state)
    return context, seen, labels


@pytest.mark.parametrize("interrupted", [False, True])
def test_net_adapt_trains_each_try_and_keeps_the_best(interrupted: bool) -> None:
    """6 of 20 channels, 2 at a time: 3 steps of 2 tries, each trained once, from the best of the step before. The cheap
    layer loses all, and the dear one has three trainings behind it. Another object goes on where the first one was."""
    search = block("net_adapt", sparsityPerStep=0.1, train={"maxSteps": 1})
    context, seen, labels = finished(search, interrupted)
    assert seen == [(8, 10, 11), (10, 8, 11), (6, 10, 12), (8, 8, 12), (4, 10, 13), (6, 8, 13)]
    model: Any = context.model
    assert model.cheap.weight.flatten().tolist() == [0.0] * 6 + [10.0, 11.0, 12.0, 13.0]
    assert model.dear.weight.flatten().tolist() == [4.0 + k for k in range(10)]
    assert float(context.masks["cheap"]["weight"].mean()) == pytest.approx(0.4)
    assert [labels.count(f"search: {what}") for what in ("train", "keep")] == [6, 3]


@pytest.mark.parametrize("interrupted", [False, True])
def test_auto_compress_anneals_and_trains_before_each_round(interrupted: bool) -> None:
    """Two rounds to 6 of 20 channels (exp: 1 - .7^(1/2) = .163 behind the first): what the first has taken stays taken,
    and ADMM trains towards what annealing found before it goes."""
    prune = {
        **block("auto_compress", stopTemperature=60),
        "sparsify": {"penalty": "admm", "maxSteps": 1},
        "schedule": {"type": "exp", "rounds": 2, "train": {"maxSteps": 1}},
    }
    context, seen, labels = finished(prune, interrupted)
    behind = [label for label in labels if not label.startswith("search: ") or label == "search: put back"]
    assert behind == ["search: put back", "sparsify", "prune", "train after prune"] * 2
    found = [note for note in context.notes if "found the sparsities" in note]
    assert [note.rpartition(" in ")[2] for note in found] == ["round 1", "round 2"]
    half = len(seen) // 2
    assert all(17 <= cheap + dear <= 18 for cheap, dear, _ in seen[:half])
    assert all(14 <= cheap + dear <= 16 for cheap, dear, _ in seen[half:])
    assert 14 <= sum(kept(context.model)) <= 16
    assert max(cheap for cheap, _, _ in seen[half:]) <= 10 - int(10 * float(found[0].split("cheap ")[1][:5]))
