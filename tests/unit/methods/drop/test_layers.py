"""dropLayers: which layers go, that they are gone from model, configuration and files, and what cannot be."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_models import decoder, subject
from torch import nn

import modelpress as mp
from modelpress.api.errors import SpecError
from modelpress.api.v1alpha1 import Stage
from modelpress.store import open_store
from modelpress_runner.edits.bypass import Bypass, Bypassed
from modelpress_runner.edits.replay import read, replay, write
from modelpress_runner.engine.checkpoint import Checkpointer
from modelpress_runner.engine.run import run_stages
from modelpress_runner.errors import CompressionError, InvalidSpecError
from modelpress_runner.process.stopping import Stopped
from modelpress_runner.subject.subject import Subject


class Turn(nn.Module):
    """Adds a multiple of its input's neighbour, so that the angle is known: its tangent is the factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.factor * (x @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=x.dtype))


class Net(nn.Module):
    def __init__(self, *factors: float) -> None:
        super().__init__()
        self.stem = nn.Linear(2, 2)
        self.layers = nn.ModuleList(map(Turn, factors))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        return x


X = torch.randn((8, 2), generator=torch.Generator().manual_seed(0))


def net() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net(0.5, 0.1, 0.9, 0.3)


def dropped(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, Bypassed)]


def compress(model: nn.Module, block: dict[str, Any], evaluator: Any = None, **more: Any) -> mp.CompressionResult:
    return mp.compress(model, [{"dropLayers": block}], evaluator, X, calibration_data=[X], **more)


# Which go -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("amount", "expected"),
    [
        ({"count": 1}, ["layers.1"]),
        ({"sparsity": 0.74}, ["layers.1", "layers.3"]),
        ({"count": 3}, ["layers.0", "layers.1", "layers.3"]),
        ({"budget": {"metric": "parameters", "maxRatio": 0.8}}, ["layers.1", "layers.3"]),  # 10 -> 8 parameters
        ({"count": 2, "configList": [{"opNames": ["layers.1"], "exclude": True}]}, ["layers.0", "layers.3"]),
        ({"count": 1, "configList": [{"opNamesRe": [r"layers\.[02]"]}]}, ["layers.0"]),
        ({"count": 2, "rounds": 2}, ["layers.1", "layers.3"]),
    ],
)
def test_those_that_turn_least_go_first(amount: dict[str, Any], expected: list[str]) -> None:
    """Tangents .5, .1, .9 and .3; what is left is the model without them."""
    model = net()
    result = compress(model, amount)
    assert dropped(result.model) == expected
    assert not dropped(model)
    left = copy.deepcopy(model)
    left.layers = nn.ModuleList(layer for number, layer in enumerate(left.layers) if f"layers.{number}" not in expected)
    assert torch.equal(result.model(X), left(X))
    assert read(write([Bypass(name) for name in expected])) == [Bypass(name) for name in expected]


def test_influence_is_one_minus_the_cosine() -> None:
    """1 - 1 / sqrt(1 + t^2) for a tangent t."""
    from modelpress_runner.methods.context import StageContext
    from modelpress_runner.methods.drop.layers import influences

    context = StageContext(net().eval(), None, X, 0, calibration_data=[X[:3], X[3:]])
    found = influences(context, [Bypass(f"layers.{number}") for number in range(4)], None, 0, "spec")
    expected = [1 - 1 / (1 + t * t) ** 0.5 for t in (0.5, 0.1, 0.9, 0.3)]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), atol=1e-6, rtol=1e-5)


def test_by_loss_the_score_decides() -> None:
    """The score is best without the third, which turns most; then without the first."""

    def score(model: nn.Module) -> float:
        return -sum(float(layer.factor) for layer in model.layers if isinstance(layer, Turn))

    result = compress(net(), {"by": "loss", "count": 2}, score)
    assert dropped(result.model) == ["layers.0", "layers.2"]


# Pretrained models ----------------------------------------------------------------------------------------------------


def first(model: Any, inputs: Any) -> torch.Tensor:
    with torch.no_grad():
        return next(iter(model(**inputs).values()))


def test_depth_and_width_of_a_decoder(tmp_path: Path) -> None:
    """Two of four layers, and half of the others' feed-forward width: config.json says so, and plain transformers reads
    the very model; shrink.json makes it of the dense one."""
    task = subject(decoder(tmp_path / "dense"), "causal-lm")
    task.calibration_data = [task.dummy_input]
    dense = copy.deepcopy(task.model)
    outcome = run_stages(task, [Stage.model_validate({"dropLayers": {"count": 2}})], seed=0)
    gone = dropped(outcome.model)
    assert len(gone) == 2
    assert outcome.stages[0]["dropped"] == gone
    ffn = [name for name, module in outcome.model.named_modules() if getattr(module, "out_features", 0) == 32]
    second = {"prune": {"configList": [{"opNames": ffn, "sparsity": 0.5}]}}
    narrow = run_stages(task, [Stage.model_validate(second)], seed=0)
    edits = [*outcome.edits, *narrow.edits]
    model = narrow.model.eval()
    again = copy.deepcopy(dense)
    replay(again, read(write(edits)))
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(first(again, task.dummy_input), first(model, task.dummy_input), rtol=1e-5, atol=1e-7)
    task.layout.write(model, task.dummy_input, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["num_hidden_layers"], config["intermediate_size"]) == (2, 16)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(first(loaded, task.dummy_input), first(model, task.dummy_input), rtol=1e-5, atol=1e-7)
    ids = task.dummy_input["input_ids"][:1, :4]
    with_cache = loaded.generate(ids, max_new_tokens=5, do_sample=False, use_cache=True, pad_token_id=0)
    assert torch.equal(with_cache, model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0))


def test_kinds_of_layers_follow(tmp_path: Path) -> None:
    """Of a decoder whose layers look at windows in turn; the entries of layer_types go with their layers."""
    kinds = ["sliding_attention", "full_attention"] * 2
    task = subject(
        decoder(tmp_path / "dense", "Qwen2", layer_types=kinds, use_sliding_window=True, sliding_window=3), "causal-lm"
    )
    replay(task.model, [Bypass("model.layers.2")])
    task.layout.write(task.model, task.dummy_input, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["layer_types"] == [kinds[0], kinds[1], kinds[3]]
    assert config["num_hidden_layers"] == 3


# On the way -----------------------------------------------------------------------------------------------------------


def test_a_run_that_was_stopped_goes_on(task: Any, tmp_path: Path) -> None:
    """Between rounds with training: the same layers, the same bits."""

    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(4, 6), nn.Linear(6, 2)
            self.layers = nn.ModuleList(Wide() for _ in range(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            for layer in self.layers:
                x = layer(x)
            return self.head(x)

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(6, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.relu(self.inner(x))

    with torch.random.fork_rng():
        torch.manual_seed(1)
        task.model = Deep()
    start = copy.deepcopy(task.model)
    stage = {"dropLayers": {"count": 2, "rounds": 2, "train": {"maxSteps": 3}}}
    store = open_store(str(tmp_path))

    def go(attempt: int, stop_at: int | None) -> Any:
        task.model = copy.deepcopy(start)
        asked = 0

        def stop() -> None:
            nonlocal asked
            asked += 1
            if stop_at is not None and asked > stop_at:
                raise Stopped

        given = Subject(task.model, task.evaluator(), task.x[:1])
        keeper = Checkpointer(store, "p", "same", attempt, every=1) if stop_at is not None or attempt > 1 else None
        return run_stages(given, [Stage.model_validate(stage)], seed=3, checkpointer=keeper, stop=stop)

    whole = go(1, None)
    with pytest.raises(Stopped):
        go(1, 9)
    rest = go(2, None)
    assert rest.resumed
    assert dropped(rest.model) == dropped(whole.model)
    assert all(torch.equal(a, b) for a, b in zip(rest.model.parameters(), whole.model.parameters(), strict=True))


# What cannot be -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"count": 4}, "of 4 of them 4 cannot go; give at most 3"),
        ({"sparsity": 0.2}, "0.2 of 4 of them is less than one"),
        ({"count": 1, "configList": [{"opNames": ["stem"]}]}, r"'stem' \(Linear\) does not give what it takes plus"),
        ({"count": 1, "configList": [{"opNamesRe": ["gone.*"]}]}, "matches no module"),
        ({"budget": {"metric": "parameters", "max": 5}}, "cannot come down to 5: with all that may go it is 7"),
    ],
)
def test_what_cannot_go_is_said(block: dict[str, Any], message: str) -> None:
    """With the place and the fix."""
    with pytest.raises((InvalidSpecError, CompressionError), match=message):
        compress(net(), block)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({}, "exactly one of sparsity, count, budget is needed"),
        ({"count": 1, "sparsity": 0.5}, "exactly one of sparsity, count, budget is needed"),
        ({"count": 1, "rounds": 2}, "in 2 rounds 1 cannot go in equal parts"),
        ({"count": 1, "by": "loss", "scores": {"steps": 1}}, "there are no scores to collect"),
        ({"count": 1, "by": "cosine"}, "did you mean influence"),
    ],
)
def test_what_is_wrong_in_a_recipe_is_said(block: dict[str, Any], message: str) -> None:
    """Before anything runs."""
    with pytest.raises(SpecError, match=message):
        compress(net(), block)


def test_scores_need_data() -> None:
    """Neither calibration data nor an evaluator."""
    with pytest.raises(InvalidSpecError, match="scores are seen in a pass over data, but there is neither"):
        mp.compress(net(), [{"dropLayers": {"count": 1}}], None, X)
