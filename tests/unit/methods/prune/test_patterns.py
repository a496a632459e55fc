"""Patterns, thresholds, bounds, groups and rounding of a stage: what is removed, by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import modelpress as mp
from modelpress.api.v1alpha1 import Prune
from modelpress_runner.errors import InvalidSpecError
from modelpress_runner.methods.context import StageContext, Transform
from modelpress_runner.methods.prune.patterns import divide
from modelpress_runner.stages.prune import steps
from modelpress_runner.testing.prune_methods import masked


def linear(rows: list[list[float]]) -> nn.Linear:
    """A layer of these weights."""
    made = nn.Linear(len(rows[0]), len(rows))
    with torch.no_grad():
        made.weight.copy_(torch.tensor(rows))
    return made


def weight_mask(module: nn.Module, sparsity: float | None, pattern: str | None, **more: Any) -> Any:
    """Of a stage over one module by magnitude; the bias stays."""
    entry = {} if sparsity is None else {"sparsity": sparsity}
    context = masked(nn.Sequential(module), algorithm="level", pattern=pattern, configList=[{**entry, **more}])
    assert bool((context.masks["0"]["bias"] == 1).all())
    return context.masks["0"]["weight"]


# Two by two blocks of means 2.5, 3, 3.5 and 1.
SQUARE = [[1.0, 2.0, 6.0, 0.0], [3.0, 4.0, 6.0, 0.0], [7.0, 7.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]]


def test_blocks_go_by_the_mean_of_their_weights() -> None:
    """2x2 at .25 and .5; 4x1 is a column, 1x4 a row; 1x1 is no pattern."""
    assert weight_mask(linear(SQUARE), 0.25, "2x2").tolist() == [[1] * 4, [1] * 4, [1, 1, 0, 0], [1, 1, 0, 0]]
    assert weight_mask(linear(SQUARE), 0.5, "2x2").tolist() == [[0, 0, 1, 1]] * 2 + [[1, 1, 0, 0]] * 2
    assert weight_mask(linear(SQUARE), 0.25, "4x1").tolist() == [[1, 1, 1, 0]] * 4  # sums 11, 13, 14, 2
    assert weight_mask(linear(SQUARE), 0.25, "1x4").tolist() == [[1] * 4, [1] * 4, [1] * 4, [0] * 4]
    assert torch.equal(weight_mask(linear(SQUARE), 0.5, "1x1"), weight_mask(linear(SQUARE), 0.5, None))


def test_n_of_m_keeps_the_best_n_of_every_m_inputs() -> None:
    """2:4 without a sparsity is half of each four; of equal ones the lower index goes; 1:4 keeps one."""
    layer = linear([[1.0, -4.0, 3.0, 2.0, 5.0, 5.0, 5.0, 6.0]])
    assert weight_mask(layer, None, "2:4").tolist() == [[0, 1, 1, 0, 0, 0, 1, 1]]
    layer = linear([[1.0, -4.0, 3.0, 2.0, 5.0, 5.0, 5.0, 6.0]])
    assert weight_mask(layer, None, "1:4").tolist() == [[0, 1, 0, 0, 0, 0, 0, 1]]
    layer = linear([[1.0, -4.0, 3.0, 2.0, 5.0, 5.0, 5.0, 6.0]])
    # A quarter of the weights is half of the groups: the one that would lose less, 1 + 2 against 5 + 5.
    assert weight_mask(layer, 0.25, "2:4").tolist() == [[0, 1, 1, 0, 1, 1, 1, 1]]


def test_n_of_m_goes_on_where_it_was() -> None:
    """Weights that are masked already are the first of their group to go, whatever they would score."""
    layer = linear([[9.0, 1.0, 2.0, 3.0]])
    context = StageContext(nn.Sequential(layer), None, None, 0)
    context.masks = {"0": {"weight": torch.tensor([[0.0, 1, 1, 1]])}}
    (step,) = steps(
        Prune.model_validate({"algorithm": "level", "shrink": False, "pattern": "2:4", "configList": [{}]}), 0
    )
    assert isinstance(step, Transform)
    step.apply(context)
    assert context.masks["0"]["weight"].tolist() == [[0, 0, 1, 1]]


def test_inputs_of_a_convolution_are_beside_each_other_at_each_position() -> None:
    """1:2 of 2 inputs and 2 positions: of the two inputs at one position one goes, not of the positions."""
    conv = nn.Conv1d(2, 1, 2)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[[1.0, 9.0], [2.0, 3.0]]]))  # input 0: 1, 9; input 1: 2, 3
    assert weight_mask(conv, None, "1:2").tolist() == [[[0, 1], [1, 0]]]
    up = nn.ConvTranspose1d(2, 1, 2)
    with torch.no_grad():
        up.weight.copy_(torch.tensor([[[1.0, 9.0]], [[2.0, 3.0]]]))
    assert weight_mask(up, None, "1:2").tolist() == [[[0, 1]], [[1, 0]]]


def test_input_channels() -> None:
    """channelx1: of a linear layer a column, of a convolution all that meets one input; grouped ones, too."""
    assert weight_mask(linear(SQUARE), 0.25, "channelx1").tolist() == [[1, 1, 1, 0]] * 4
    conv = nn.Conv1d(4, 2, 1, groups=2)
    with torch.no_grad():
        conv.weight.copy_(
            torch.tensor([[[1.0], [2.0]], [[3.0], [0.5]]])
        )  # inputs 0, 1 of the first, 2, 3 of the second
    assert weight_mask(conv, 0.25, "channelx1").tolist() == [[[1], [1]], [[1], [0]]]


def test_output_channels_by_single_weights() -> None:
    """1xchannel: the mean of a row, and the bias goes with it, as with methods that score channels."""
    context = masked(
        nn.Sequential(linear(SQUARE)), algorithm="level", pattern="1xchannel", sparsity=0.25, configList=[{}]
    )
    assert context.masks["0"]["bias"].tolist() == [1, 1, 1, 0]
    assert context.masks["0"]["weight"].tolist() == [[1] * 4] * 3 + [[0] * 4]


def test_output_channels_by_single_weights_shrink() -> None:
    """They are removed with all that depends on them."""
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)).eval()
    result = mp.compress(
        model,
        [
            {
                "prune": {
                    "algorithm": "lamp",
                    "pattern": "1xchannel",
                    "config_list": [{"op_names": ["0"], "sparsity": 0.5}],
                }
            }
        ],
        dummy_input=torch.randn(4, 3),
    )
    assert (result.model[0].out_features, result.model[1].num_features, result.model[3].in_features) == (4, 4, 4)


@pytest.mark.parametrize(
    "module", [nn.Conv2d(4, 8, 3, groups=2), nn.ConvTranspose2d(8, 8, 3, groups=2), nn.Linear(8, 8)]
)
@pytest.mark.parametrize("pattern", [None, "1x1", "2x2", "4x1", "1x2", "1:2", "channelx1"])
def test_blocks_cover_every_weight_once(module: nn.Module, pattern: str | None) -> None:
    """Each block alone has as many weights as it says; all are the share that goes; `whole` finds them again."""
    weight: Any = module.weight
    scores = torch.rand_like(weight).detach()
    none = torch.zeros_like(scores, dtype=torch.bool)
    blocks = divide(module, "it", pattern, scores, none)
    total = torch.zeros_like(scores, dtype=torch.long)
    for number in range(len(blocks.scores)):
        one = torch.arange(len(blocks.scores)) == number
        lost = blocks.weights(one)
        assert int(lost.sum()) == blocks.size
        assert torch.equal(blocks.whole(lost), one)
        total += lost
    assert int(total.max()) == 1
    assert int(total.sum()) == round(blocks.share * weight.numel())


def test_a_global_ranking_weighs_blocks_by_their_weights() -> None:
    """4x1 blocks of two layers: a quarter of all weights are two of eight blocks, the lowest of both together."""
    first, second = linear([[1.0] * 4] * 4), linear([[1.0, 1.0, 9.0, 9.0]] * 4)
    context = masked(
        nn.Sequential(first, second), algorithm="snip", pattern="4x1", scope="global", sparsity=0.25, configList=[{}]
    )
    gone = [int((context.masks[name]["weight"] == 0).sum()) for name in "01"]
    assert sum(gone) == 8
    assert all(count % 4 == 0 for count in gone)


def test_what_a_pattern_does_not_divide() -> None:
    """By type it stays, with a note; by name it is an error at the pattern."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4))
    settings = {"algorithm": "level", "pattern": "2:4"}
    context = masked(model, **settings, configList=[{"opTypes": ["Linear"]}])
    assert list(context.masks) == ["1"]
    assert context.notes == ["Left as it was: '0' has 3 inputs, which 2:4 does not divide"]
    with pytest.raises(InvalidSpecError, match=r"configList\[0\]\.pattern: '0' has 3 inputs, which 2:4"):
        masked(model, **settings, configList=[{"opNames": ["0"]}])
    with pytest.raises(InvalidSpecError, match=r"l1 scores the output channels of '0', which 2:4 would divide"):
        masked(model, algorithm="l1", configList=[{"pattern": "2:4", "sparsity": 0.5}])
    with pytest.raises(InvalidSpecError, match=r"2:4 removes 0.5 of '1' at most"):
        masked(model, **settings, configList=[{"opNames": ["1"], "sparsity": 0.6}])


# Thresholds, bounds, groups, rounding ---------------------------------------------------------------------------------


def test_a_threshold_in_place_of_a_sparsity() -> None:
    """Magnitudes below .5; channels of an L1 norm below 3; the later of two ways to say how much holds."""
    assert weight_mask(linear([[0.4, -0.5], [0.1, 2.0]]), None, None, sparsityThreshold=0.5).tolist() == [
        [0, 1],
        [0, 1],
    ]
    rows = [[1.0, 1.0], [3.0, 0.0], [2.0, 2.0], [0.0, 0.5]]
    context = masked(nn.Sequential(linear(rows)), algorithm="l1", configList=[{"sparsityThreshold": 3}])
    assert context.masks["0"]["bias"].tolist() == [0, 1, 1, 0]
    entries = [{"sparsity": 0.25}, {"opNames": ["0"], "sparsityThreshold": 3}]
    assert masked(nn.Sequential(linear(rows)), configList=entries).masks["0"]["bias"].tolist() == [0, 1, 1, 0]
    entries = [{"sparsityThreshold": 3}, {"opNames": ["0"], "sparsity": 0.25}]
    assert masked(nn.Sequential(linear(rows)), configList=entries).masks["0"]["bias"].tolist() == [1, 1, 1, 0]
    context = masked(nn.Sequential(linear(rows)), configList=[{"sparsityThreshold": 100, "maxSparsity": 0.5}])
    assert context.masks["0"]["bias"].tolist() == [0, 1, 1, 0]


def test_pattern_lock_keeps_what_is_there() -> None:
    """Zeros, and nothing else, stay zero in a training that follows."""
    model = nn.Sequential(linear([[0.0, 1.0], [2.0, 0.0]]))

    def training_func(model: Any, optimizer: Any, step: Any, scheduler: Any, max_steps: Any, max_epochs: Any) -> None:
        for _ in range(max_steps):
            optimizer.zero_grad()
            step(torch.ones(1, 2), model).backward()
            optimizer.step()

    evaluator = mp.TorchEvaluator(
        training_func, lambda params: torch.optim.SGD(params, lr=0.1), lambda batch, model: model(batch).square().sum()
    )
    stages = [
        {"prune": {"algorithm": "pattern_lock", "config_list": [{}], "shrink": False}},
        {"finetune": {"max_steps": 3}},
    ]
    result = mp.compress(model, stages, evaluator, torch.ones(1, 2))
    assert (result.model[0].weight == 0).tolist() == [[True, False], [False, True]]


def test_bounds_of_each_layer_in_a_global_ranking() -> None:
    """By lamp both layers rank alike; with bounds one loses at most a quarter of it, the other makes up for it."""
    model = nn.Sequential(linear([[1.0, 2.0, 3.0, 4.0]]), linear([[1.0, 2.0, 3.0, 4.0]]))
    entries = [{"sparsity": 0.5}, {"opNames": ["0"], "maxSparsity": 0.25}]
    context = masked(model, algorithm="lamp", scope="global", configList=entries)
    assert [context.masks[name]["weight"].tolist() for name in "01"] == [[[0, 1, 1, 1]], [[0, 0, 0, 1]]]


def test_groups_are_ranked_apart() -> None:
    """Four layers in two groups: each group loses half of its own, the smaller layer of it all but one."""
    model = nn.Sequential(*(linear([[1.0 * each, 2.0 * each, 3.0 * each]]) for each in (1, 10, 100, 1000)))
    entries = [
        {"opNames": ["0", "1"], "globalGroup": "low"},
        {"opNames": ["2", "3"], "globalGroup": "high"},
    ]
    settings = {"algorithm": "gradient", "scope": "global", "sparsity": 0.5}
    whole = masked(model, **settings, configList=[{}], scores={"steps": 1})
    assert sum(int((whole.masks[name]["weight"] == 0).sum()) for name in "0123") == 6
    context = masked(model, **settings, configList=entries, scores={"steps": 1})
    gone = [int((context.masks[name]["weight"] == 0).sum()) for name in "0123"]
    assert gone[0] + gone[1] >= 3
    assert gone[2] + gone[3] >= 3


def _widths(round_to: Any, device: str = "cpu", sparsity: float = 0.5) -> tuple[int, int]:
    model = nn.Sequential(nn.Linear(3, 40), nn.ReLU(), nn.Linear(40, 20), nn.ReLU(), nn.Linear(20, 2)).eval()
    context = StageContext(model, None, torch.randn(4, 3), 0, target_device=device)
    block = {"configList": [{"opNames": ["0", "2"], "sparsity": sparsity}], "roundTo": round_to}
    for step in steps(Prune.model_validate(block), 0):
        assert isinstance(step, Transform)
        step.apply(context)
    shrunk: Any = context.model
    return shrunk[0].out_features, shrunk[2].out_features


def test_what_is_kept_is_rounded_up_for_the_target() -> None:
    """20 and 10 of 40 and 20: by eights 24 and 16; on a GPU 32 and 16; never more than there are."""
    assert _widths(None) == (20, 10)
    assert _widths(8) == _widths("8") == _widths("auto") == (24, 16)
    assert _widths("auto", "cuda") == (32, 16)
    assert _widths(16, sparsity=0.1) == (40, 20)
    context = masked(nn.Sequential(nn.Linear(3, 16), nn.Linear(3, 16)), configList=[{"sparsity": 0.4}], roundTo=8)
    assert context.notes == [
        "Left as it was: '0', '1', where what a sparsity of 0.4 keeps of 16 is rounded up to all of them by roundTo"
    ]
    context = masked(nn.Sequential(nn.Linear(3, 16)), configList=[{"sparsity": 0.4, "maxSparsity": 0.01}])
    assert context.notes == ["Left as it was: '0', where maxSparsity lets nothing go of 16"]


def test_channels_that_go_in_pairs_are_counted_one_by_one() -> None:
    """A unit of four channels (PixelShuffle) needs even numbers of units to be kept, where eights are asked for."""
    model = nn.Sequential(nn.Conv2d(1, 24, 1), nn.PixelShuffle(2), nn.Conv2d(6, 2, 1)).eval()
    context = StageContext(model, None, torch.randn(1, 1, 4, 4), 0)
    block = {"configList": [{"opNames": ["0"], "sparsity": 0.5}], "roundTo": 8}
    for step in steps(Prune.model_validate(block), 0):
        assert isinstance(step, Transform)
        step.apply(context)
    shrunk: Any = context.model
    assert shrunk[0].out_channels == 16  # 3 of 6 units are 12 channels


def test_several_pruners_in_one_stage() -> None:
    """Each entry with its own method, pattern and amount."""
    model = nn.Sequential(linear(SQUARE), linear(SQUARE), linear(SQUARE))
    entries = [
        {"opNames": ["0"], "algorithm": "level", "pattern": "4x1", "sparsity": 0.25},
        {"opNames": ["1"], "algorithm": "lamp", "sparsity": 0.5},
        {"opNames": ["2"], "algorithm": "l1", "sparsity": 0.25},
    ]
    masks = masked(model, configList=entries).masks
    assert masks["0"]["weight"].tolist() == [[1, 1, 1, 0]] * 4
    assert int((masks["1"]["weight"] == 0).sum()) == 8
    assert masks["2"]["bias"].tolist() == [1, 1, 1, 0]
