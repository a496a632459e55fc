"""Blocks that learn from their twins in the dense model, without labels."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from modelpress.api.v1alpha1 import Stage
from modelpress_runner.engine.run import run_stages
from modelpress_runner.errors import CompressionError, InvalidSpecError
from modelpress_runner.methods.context import StageContext
from modelpress_runner.methods.distill.blocks import BlockDistillation, layers_of
from modelpress_runner.subject.subject import Subject

WIDTH = 6


class Block(nn.Module):
    """A residual layer with a mask as an argument by name."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, 12)
        self.drop = nn.Dropout(0.5)
        self.down = nn.Linear(12, WIDTH)

    def forward(self, x: torch.Tensor, *, scale: torch.Tensor) -> tuple[torch.Tensor, None]:
        return x + scale * self.down(self.drop(torch.relu(self.up(x)))), None


class Net(nn.Module):
    """Tokens (batch, tokens, WIDTH) through three layers, defined in another order than called."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(WIDTH, 2)
        self.layers = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        scale = torch.ones(())
        for layer in (self.layers[1], self.layers[0], self.layers[2]):
            x, _ = layer(x, scale=scale)
        return self.head(x)


@pytest.fixture
def dense() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net().eval()


def data(count: int = 6) -> list[dict[str, torch.Tensor]]:
    """Batches of 8 x 5 tokens, of which the last two are padding with numbers of another kind."""
    generator = torch.Generator().manual_seed(1)
    batches = []
    for _ in range(count):
        x = torch.randn(8, 5, WIDTH, generator=generator)
        x[:, 3:] *= 50
        batches.append({"x": x, "attention_mask": torch.tensor([1, 1, 1, 0, 0]).expand(8, 5)})
    return batches


def damaged(model: Net) -> Net:
    """A third of the inner units of every layer is gone; masks say which."""
    out = copy.deepcopy(model)
    with torch.no_grad():
        for layer in out.layers:
            layer.down.weight[:, :4] = 0
    return out


def context(model: nn.Module, dense: nn.Module, **fields) -> StageContext:
    given = {"evaluator": None, "dummy_input": None, "seed": 3, "calibration_data": data(), **fields}
    return StageContext(model=model, dense=dense, **given)


def test_every_block_comes_nearer_to_its_twin_in_the_order_of_calls(dense: Net) -> None:
    model = damaged(dense)
    masks = {f"layers.{n}.down": {"weight": (m.down.weight != 0).float()} for n, m in enumerate(model.layers)}
    work = BlockDistillation(context(model, dense, masks=masks), layers_of(model), 120, 0.01, "here")
    before = copy.deepcopy(dense.state_dict())
    results = work.run()
    assert [one.name for one in results] == ["layers.1", "layers.0", "layers.2"]
    assert all(one.after < 0.5 * one.before for one in results), results
    assert work.notes == []
    for layer in model.layers:  # what was pruned stays so
        assert bool((layer.down.weight[:, :4] == 0).all())
    assert not model.training
    torch.testing.assert_close(dense.state_dict(), before, rtol=0, atol=0)
    torch.testing.assert_close(model.head.state_dict(), dense.head.state_dict(), rtol=0, atol=0)
    x, keep = data(1)[0]["x"], slice(0, 3)
    with torch.no_grad():
        lost = (damaged(dense)(x) - dense(x))[:, keep].square().mean()
        left = (model(x) - dense(x))[:, keep].square().mean()
    assert left < 0.3 * lost


def test_equal_seeds_give_equal_weights(dense: Net) -> None:
    def run(seed: int) -> dict[str, torch.Tensor]:
        model = damaged(dense)
        BlockDistillation(context(model, dense, seed=seed), ["layers.0"], 5, 0.01, "here").run()
        return model.state_dict()

    torch.testing.assert_close(run(3), run(3), rtol=0, atol=0)
    assert not torch.equal(run(3)["layers.0.up.weight"], run(4)["layers.0.up.weight"])


def test_a_block_is_never_worse_than_before(dense: Net) -> None:
    """At a learning rate that blows up, weights are put back."""
    model = damaged(dense)
    before = copy.deepcopy(model.state_dict())
    (result,) = BlockDistillation(context(model, dense), ["layers.0"], 3, 10.0, "here").run()
    assert result.after == result.before
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_half_precision_learns_in_single(dense: Net) -> None:
    half = copy.deepcopy(dense).bfloat16()
    model = damaged(half)
    batches = [{key: value.bfloat16() for key, value in batch.items()} for batch in data()]
    results = BlockDistillation(context(model, half, calibration_data=batches), ["layers.0"], 60, 0.01, "x").run()
    assert results[0].after < 0.6 * results[0].before
    assert {each.dtype for each in model.parameters()} == {torch.bfloat16}


def test_what_cannot_learn_is_named(dense: Net) -> None:
    model = damaged(dense)
    model.layers[0].requires_grad_(False)
    model.layers[2] = nn.Identity()
    model.layers[2].forward = lambda x, scale: (x[..., :4], None)
    model.head = nn.Linear(4, 2)
    names = ["head", "layers.0", "layers.1", "layers.2"]
    work = BlockDistillation(context(model, dense), names, 2, 0.01, "here")
    assert [one.name for one in work.run()] == ["layers.1", "head"]
    assert work.notes == ["layers.0 has nothing to train", "layers.2 has nothing to train"]
    narrow = damaged(dense)
    narrow.head = nn.Linear(WIDTH, 3)
    with pytest.raises(CompressionError, match=r"no block can learn: head gives \(8, 5, 3\) where .* \(8, 5, 2\)"):
        BlockDistillation(context(narrow, dense), ["head"], 2, 0.01, "here").run()


def test_layers_are_the_members_of_the_outermost_lists() -> None:
    def conv() -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU())

    model = nn.ModuleDict(
        {
            "stem": conv(),  # of two kinds
            "stages": nn.ModuleList([nn.ModuleList([conv(), conv()]), nn.ModuleList([conv(), conv()])]),
            "norms": nn.ModuleList([nn.BatchNorm2d(2), nn.BatchNorm2d(2)]),  # single layers
        }
    )
    assert layers_of(model) == ["stages.0", "stages.1"]


def stage(**block) -> list[Stage]:
    return [
        Stage.model_validate(
            {"prune": {"algorithm": "level", "configList": [{"opNames": ["layers.0.down"], "sparsity": 0.5}]}}
        ),
        Stage.model_validate({"distillBlocks": {"steps": 40, "learningRate": 0.01, **block}}),
    ]


def test_it_runs_as_a_stage_and_says_what_it_did(dense: Net) -> None:
    model = copy.deepcopy(dense)
    subject = Subject(model, None, data(1)[0], calibration_data=data())
    outcome = run_stages(subject, stage(), seed=0)
    (note,) = [note for note in outcome.notes if note.startswith("distillBlocks")]
    assert "layers.1 0 -> 0" in note  # nothing was lost before the layer that was pruned
    assert "layers.0 0.0" in note
    assert float((model.layers[0].down.weight == 0).float().mean()) == 0.5
    assert outcome.stages[1]["stepsOfEachBlock"] == 40


@pytest.mark.parametrize(
    ("block", "calibration", "words"),
    [
        ({"opNames": ["layer.0"]}, True, r"distillBlocks.opNames\[0\].*no module 'layer.0'.*did you mean layers.0"),
        ({"opNamesRe": ["blocks.*"]}, True, r"distillBlocks.opNamesRe\[0\].*no module of the model has a name"),
        ({"opNames": ["layers", "layers.0"]}, True, r"layers.0 lies in layers"),
        ({}, False, "calibration data, and there is none"),
    ],
)
def test_what_is_missing_is_said_before_anything_runs(dense: Net, block, calibration, words) -> None:
    before = copy.deepcopy(dense.state_dict())
    subject = Subject(dense, None, data(1)[0], calibration_data=data() if calibration else None)
    with pytest.raises(InvalidSpecError, match=words):
        run_stages(subject, stage(**block), seed=0)
    torch.testing.assert_close(dense.state_dict(), before, rtol=0, atol=0)
