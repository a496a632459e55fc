"""Bits for a budget, and tuning by scores: the layer that breaks is found and left as it was."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn

import modelpress as mp
from modelpress.api.errors import SpecError
from modelpress.api.v1alpha1 import BitBudget, Stage
from modelpress.result import missed_by_tuning
from modelpress.store import open_store
from modelpress_runner.edits.quantize import FrozenLayer
from modelpress_runner.engine.checkpoint import Checkpointer
from modelpress_runner.engine.run import run_stages
from modelpress_runner.errors import InvalidSpecError
from modelpress_runner.methods.quantize.allocation import Layers, Option, hull, solve
from modelpress_runner.methods.quantize.strategies import STRATEGIES, Choice, Field, Outcome, rounds
from modelpress_runner.process.stopping import Stopped
from modelpress_runner.subject.subject import Subject

LINEAR = [{"opTypes": ["Linear"]}]
NAMES = ["first", "breaks", "mid", "last"]


class Net(nn.Module):
    """`breaks` takes one number ten thousand times the others, and needs them all: eight bits lose one or the other."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.breaks, self.mid = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.last = nn.Linear(8, 3)
        with torch.no_grad():
            self.first.weight[7] *= 1e4
            self.first.bias[7] *= 1e4
            self.breaks.weight[:, 7] /= 1e4

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.mid(torch.tanh(self.breaks(self.first(x))))))


class Case:
    """The net, inputs, and an evaluator that says how near outputs are to the net's own: 1 for itself."""

    def __init__(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = Net().eval()
            self.x = torch.randn(256, 4)
        with torch.no_grad():
            self.wanted = self.net(self.x)
        self.scored = 0

    def score(self, model: nn.Module) -> dict[str, float]:
        self.scored += 1
        with torch.no_grad():
            noise = float((model(self.x) - self.wanted).square().sum() / self.wanted.square().sum())
        return {"default": 1 - noise, "noise": 0.01 + noise}

    def compress(self, **block: Any) -> mp.CompressionResult:
        return mp.compress(
            self.net,
            [{"quantize": {"configList": LINEAR, **block}}],
            mp.TorchEvaluator(evaluating_func=self.score, dummy_input=self.x[:2]),
            calibration_data=[self.x[:64]],
            target={"format": "eager"},
        )


@pytest.fixture
def case() -> Case:
    return Case()


def floats(result: mp.CompressionResult) -> list[str]:
    return [name for name in NAMES if not isinstance(result.model.get_submodule(name), FrozenLayer)]


# Tuning ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_layer_that_breaks_is_left_as_it_was(case, strategy):
    """With int8 everywhere a tenth of the outputs is lost and more; without that layer less than a hundredth."""
    plain = case.compress()
    assert plain.metrics["compressed"]["default"] < 0.9
    result = case.compress(tune={"strategy": strategy, "criteria": [{"relative": 0.01}]})
    tuning = result.metrics["stages"][0]["tuning"]
    assert tuning["met"]
    assert "breaks" in floats(result)
    assert floats(result) == [name for name in NAMES if name in tuning["floats"]]
    assert result.metrics["compressed"]["default"] > 0.99
    assert tuning["after"]["default"] == pytest.approx(result.metrics["compressed"]["default"], abs=1e-6)
    if strategy in ("basic", "mse", "exhaustive"):
        assert floats(result) == ["breaks"]


@pytest.mark.parametrize("strategy", ["basic", "mse"])
def test_the_first_success_ends_it(case, strategy):
    """mse needs two trials behind that of the one type; basic those of observers and of each layer alone first."""
    result = case.compress(tune={"strategy": strategy})
    tuning = result.metrics["stages"][0]["tuning"]
    assert floats(result) == ["breaks"]
    assert tuning["trials"] == {"mse": 2, "basic": 7}[strategy]


def test_a_timeout_goes_on_behind_a_success(case):
    """All that mse proposes is tried, and of what holds that is taken which saves most."""
    result = case.compress(tune={"strategy": "mse", "timeout": 600})
    assert result.metrics["stages"][0]["tuning"]["trials"] == 4
    assert floats(result) == ["breaks"]


def test_a_bound_that_nothing_reaches(case):
    """The best is given, with how much it missed."""
    result = case.compress(
        tune={
            "criteria": [{"relative": -0.1}, {"metric": "noise", "goal": "minimize", "absolute": 0.1}],
            "maxTrials": 8,
        }
    )
    tuning = result.metrics["stages"][0]["tuning"]
    assert not tuning["met"]
    assert "breaks" in floats(result)
    assert tuning["trials"] == 8
    (sentence,) = tuning["unmet"]
    assert sentence.startswith("default 1 -> 0.99")
    assert "more than the -0.1 of spec.stages[0].quantize.tune" in sentence
    assert missed_by_tuning(result.metrics["stages"]) == [sentence]
    assert missed_by_tuning([{"name": "other"}]) is None


def test_levels(case):
    """0 goes by types: the only one misses, and the trial that missed least is given."""
    result = case.compress(tune={"quantLevel": 0})
    tuning = result.metrics["stages"][0]["tuning"]
    assert (tuning["trials"], tuning["met"], floats(result)) == (1, False, [])
    field = Field({"Linear": ("a", "b"), "Conv2d": ("c",)}, 1, dict, 0, 10)
    seen = []
    for name, trials in rounds(field, "exhaustive", None):
        told = None
        while True:
            try:
                choice = trials.send(told) if told is not None else next(trials)
            except StopIteration:
                break
            told = Outcome(float("c" not in choice.floats), 0.0, 0)
            seen.append((name, "".join(sorted(choice.floats))))
    # Linear by itself holds and stays; with Conv2d it misses.
    assert seen[:2] == [("types", "c"), ("types", "")]
    assert [floats for name, floats in seen[2:]] == ["", "a", "b", "c", "ab", "ac", "bc"]


def test_a_killed_tuning_goes_on(case, tmp_path):
    """Trials that were made are not made again; the result is that of one run."""
    recipe = [Stage.model_validate({"quantize": {"configList": LINEAR, "tune": {"strategy": "mse"}}})]

    def run(own: Case, **options: Any) -> Any:
        evaluator = mp.TorchEvaluator(evaluating_func=own.score, dummy_input=own.x[:2])
        subject = Subject(own.net, evaluator, own.x[:2], [own.x[:64]])
        return run_stages(subject, recipe, seed=0, scores=False, **options)

    run(case)
    other, store = Case(), open_store(str(tmp_path))
    inner = other.score

    def dies(model: nn.Module) -> dict[str, float]:
        if other.scored == 2:  # the model as it was, and one trial
            raise Stopped
        return inner(model)

    other.score = dies
    with pytest.raises(Stopped):
        run(other, checkpointer=Checkpointer(store, "", "same", 1))
    again = Case()
    outcome = run(again, checkpointer=Checkpointer(store, "", "same", 2))
    assert again.scored == 2
    assert outcome.stages[0]["tuning"]["trials"] == 2
    for key, value in case.net.state_dict().items():
        assert torch.equal(value, again.net.state_dict()[key])


def test_pruned_weights_stay_zero_in_what_was_tuned(case):
    prune = {"algorithm": "level", "shrink": False, "configList": [{"opNames": ["mid"], "sparsity": 0.5}]}
    block = {"configList": LINEAR, "tune": {"criteria": [{"absolute": 0.05}]}}
    result = mp.compress(
        case.net,
        [{"prune": prune}, {"quantize": block}],
        mp.TorchEvaluator(evaluating_func=case.score, dummy_input=case.x[:2]),
        calibration_data=[case.x[:64]],
        target={"format": "eager"},
    )
    assert floats(result) == ["breaks"]
    mask = result.masks["mid"]["weight"]
    assert not result.model.mid.weight[mask == 0].any()


# Budgets --------------------------------------------------------------------------------------------------------------


def test_hull():
    """What another beats is out, and so is a step that is cheaper than the one before."""
    whole, eight, four, three = Option(None, 32, 0.0), Option(8, 8, 0.29), Option(4, 4, 0.3), Option(3, 8, 9.0)
    assert hull([three, four, eight, whole]) == [whole, four]
    eight = Option(8, 8, 0.1)
    assert hull([whole, eight, four, three]) == [whole, eight, four]
    assert hull([whole, Option(8, 8, 0.0)]) == [Option(8, 8, 0.0)]


def test_bits_are_those_of_the_least_effect():
    """All combinations of three layers: none within the budget has a smaller sum but for the path's last step."""
    options = {
        name: [Option(None, 400, 0.0), Option(8, 100, effect / 100), Option(4, 50, effect)]
        for name, effect in (("a", 0.5), ("b", 0.01), ("c", 4.0))
    }
    layers = Layers.of(options)
    for bound in (150, 200, 250, 500, 600, 1200):
        budget = BitBudget(metric="sizeBytes", max=bound)
        bits, cost = solve(layers, budget, 1200, layers.cost, "budget")
        assert cost <= bound
        own = {name: {each.bits: each for each in row} for name, row in options.items()}
        effect = sum(own[name][each].effect for name, each in bits.items())
        better = [
            sum(each.effect for each in row)
            for row in itertools.product(*options.values())
            if sum(each.cost for each in row) <= cost
        ]
        assert effect == pytest.approx(min(better))
    with pytest.raises(InvalidSpecError, match=r"sizeBytes cannot come down to 100: with the fewest bits .* it is 150"):
        solve(layers, BitBudget(metric="sizeBytes", max=100), 1200, layers.cost, "budget")


def test_allocation_alone_leaves_the_layer_as_it_was(case):
    """Without a single score: by what each layer does to the outputs."""
    result = case.compress(budget={"metric": "effectiveBits", "max": 22, "bits": [8]})
    allocation = result.metrics["stages"][0]["allocation"]
    assert floats(result) == ["breaks"]
    assert allocation["bits"] == {"first": 8, "breaks": None, "mid": 8, "last": 8}
    # 184 weights; of `breaks` 64 of 4 bytes, of the others 120 of 1, with a scale of 4 for each of 19 outputs.
    assert allocation["after"] == (64 * 4 + 120 + 19 * 4) * 8 / 184
    assert allocation["before"] == 32
    assert allocation["scoreBefore"]["default"] == 1
    assert allocation["scoreAfter"]["default"] > 0.99


def test_sizes_are_measured():
    """What the result weighs is within the budget, and the budget's own figure."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    budget = {"metric": "sizeBytes", "maxRatio": 0.3, "bits": [2, 4, 8]}
    stage = {"quantize": {"algorithm": "weight_only", "configList": LINEAR, "budget": budget}}
    result = mp.compress(model, [stage], dummy_input=torch.randn(2, 32), target={"format": "eager"})
    allocation = result.metrics["stages"][0]["allocation"]
    assert allocation["after"] <= 0.3 * allocation["before"]
    assert result.metrics["compressed"]["sizeBytes"] == allocation["after"]
    assert set(allocation["bits"].values()) <= {2, 4, 8, None}


@pytest.mark.parametrize("algorithm", ["gptq", "awq", "smoothquant", "hqq", "weight_only", "ptq_dynamic"])
def test_budgets_and_tuning_of_every_method(case, algorithm):
    """Together: the budget's bits, then layers that cost too much stay."""
    result = case.compress(
        algorithm=algorithm,
        budget={"metric": "effectiveBits", "max": 20, "bits": [4, 8], "keepFloat": False},
        tune={"criteria": [{"relative": 0.5}], "maxTrials": 3, "strategy": "mse", "quantLevel": 1},
    )
    stage = result.metrics["stages"][0]
    assert set(stage["allocation"]["bits"]) == set(NAMES)
    assert stage["tuning"]["trials"] <= 3
    kept = {entry["name"]: entry["weight"] for entry in stage["layers"]}
    assert kept == {
        name: f"int{bits}"
        for name, bits in stage["allocation"]["bits"].items()
        if name not in stage["tuning"]["floats"]
    }


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"algorithm": "qat", "epochs": 1, "tune": {}}, "qat would train for each trial of tuning"),
        ({"algorithm": "lsq", "epochs": 1, "budget": {"metric": "effectiveBits", "max": 4}}, "trial of a budget"),
        ({"backend": "onnxruntime", "tune": {}}, "tuning is for backend torch"),
        ({"quantBits": 4, "budget": {"metric": "effectiveBits", "max": 4}}, "the budget says the bits of weights"),
        ({"budget": {"metric": "effectiveBits", "max": 4, "maxRatio": 0.5}}, "exactly one of max, maxRatio is needed"),
        (
            {"budget": {"metric": "effectiveBits", "max": 4, "bits": [4], "keepFloat": False}},
            "with one number there is nothing to solve",
        ),
        ({"tune": {"criteria": [{"relative": 0.1, "absolute": 1}]}}, "relative and absolute are two bounds"),
        ({"tune": {"criteria": [{"metric": "f1"}]}}, "the evaluator returns no metric 'f1'; it returns default, noise"),
        (
            {"budget": {"metric": "effectiveBits", "max": 1}},
            "effectiveBits cannot come down to 1: with the fewest bits",
        ),
    ],
)
def test_what_is_refused(case, block, message):
    with pytest.raises((SpecError, InvalidSpecError), match=message):
        case.compress(**block)


def test_tuning_needs_scores(case):
    block = {"algorithm": "weight_only", "configList": LINEAR, "tune": {}}
    with pytest.raises(InvalidSpecError, match="tuning goes by scores, but nothing here evaluates"):
        mp.compress(case.net, [{"quantize": block}], dummy_input=case.x[:2])


def test_choices_are_proposed_once_by_lot():
    """Equal seeds propose alike; other seeds otherwise."""

    def drawn(strategy: str, seed: int) -> list[Choice]:
        field = Field({"Linear": tuple("abcdef")}, 2, dict, seed, 12)
        trials, out = STRATEGIES[strategy](field), []
        choice = next(trials)
        for _ in range(11):
            out.append(choice)
            choice = trials.send(Outcome(float("b" not in choice.floats), 0.0, 6 - len(choice.floats)))
        return out

    for strategy in ("random", "bayesian"):
        assert drawn(strategy, 1) == drawn(strategy, 1)
        assert drawn(strategy, 1) != drawn(strategy, 2)
        assert drawn(strategy, 1)[0] == Choice()
