"""What each method scores, worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import modelpress as mp
from modelpress.api.v1alpha1 import Prune
from modelpress_runner.errors import CompressionError, InvalidSpecError
from modelpress_runner.methods.context import StageContext, Transform
from modelpress_runner.methods.prune.registry import method
from modelpress_runner.methods.prune.selection import select
from modelpress_runner.methods.prune.statistics import collect
from modelpress_runner.stages.prune import steps
from modelpress_runner.testing.prune_methods import generator, masked


def score(name: str, module: nn.Module) -> list[Any]:
    """Of a method that looks at weights only."""
    found: list[Any] = method(name).score(module, generator()).tolist()
    return found


def linear(rows: list[list[float]]) -> nn.Linear:
    """A layer of these weights, without a bias."""
    made = nn.Linear(len(rows[0]), len(rows), bias=False)
    with torch.no_grad():
        made.weight.copy_(torch.tensor(rows))
    return made


def collected(name: str, module: nn.Module, data: list[torch.Tensor], evaluator: Any = None, steps: Any = None) -> Any:
    """Scores of a method that looks at calibration data, or at an evaluator's training."""
    model = nn.Sequential(module)
    entry = {"opTypes": [type(module).__name__], "sparsity": 0.5}
    prune = Prune.model_validate({"algorithm": name, "configList": [entry]})
    context = StageContext(model, evaluator, None, 0, calibration_data=data or None)
    return collect(context, select(model, prune, "p"), steps, (0, 1), "p")["0"].tolist()


# Weights --------------------------------------------------------------------------------------------------------------


def test_fpgm_takes_the_middle() -> None:
    """Filters k = 0 to 9 filled with k + 1, at .6: those in the middle, k = 2 to 7, are nearest to all others."""
    conv = nn.Conv2d(3, 10, 3)
    with torch.no_grad():
        conv.weight.copy_(torch.arange(1.0, 11).view(-1, 1, 1, 1).expand_as(conv.weight))
    # A filter of 27 equal weights is sqrt(27) |k - j| away from another: k = 0 has 0 + 1 + ... + 9 of those.
    apart = [45, 37, 31, 27, 25, 25, 27, 31, 37, 45]
    assert score("fpgm", conv) == pytest.approx([math.sqrt(27) * each for each in apart], rel=1e-7)
    context = masked(nn.Sequential(conv), algorithm="fpgm", configList=[{"sparsity": 0.6}])
    assert torch.nonzero(context.masks["0"]["bias"] == 0).flatten().tolist() == [2, 3, 4, 5, 6, 7]


def test_fpgm_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same whatever the size of a block."""
    layer = nn.Linear(5, 7)
    whole = score("fpgm", layer)
    monkeypatch.setattr("modelpress_runner.methods.prune.channels.BLOCK", 10)
    assert score("fpgm", layer) == pytest.approx(whole, rel=1e-7)


def test_slim_keeps_the_largest_factors() -> None:
    """Factors 0 to 4 at .6 keep 3 and 4; the sign does not matter."""
    for sign in (1, -1):
        norm = nn.BatchNorm2d(5)
        with torch.no_grad():
            norm.weight.copy_(sign * torch.arange(5.0))
        context = masked(nn.Sequential(norm), algorithm="slim", configList=[{"sparsity": 0.6}])
        for parameter in ("weight", "bias"):
            assert torch.nonzero(context.masks["0"][parameter]).flatten().tolist() == [3, 4]


def test_slim_compares_factors_across_layers() -> None:
    """One norm with small factors loses all but its largest, as they are: .1 to .3 against 1 to 3, half of six."""
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([0.1, 0.2, 0.3]))
        model[1].weight.copy_(torch.tensor([1.0, 2.0, 3.0]))
    context = masked(model, algorithm="slim", scope="global", configList=[{"sparsity": 0.5}])
    assert context.masks["0"]["weight"].tolist() == [0, 0, 1]
    assert context.masks["1"]["weight"].tolist() == [0, 1, 1]


def test_lamp_by_hand() -> None:
    """Squares 1, 4, 9, 16: 1/30, 4/29, 9/25 and 1. Of equal ones the lower index counts as smaller: 1/2 and 1."""
    assert score("lamp", linear([[1.0, -2.0], [4.0, 3.0]])) == [
        pytest.approx([1 / 30, 4 / 29]),
        pytest.approx([1, 9 / 25]),
    ]
    assert score("lamp", linear([[2.0, -2.0]])) == [[0.5, 1.0]]
    assert score("lamp", linear([[0.0, 0.0]])) == [[0.0, 0.0]]


def test_lamp_across_layers() -> None:
    """A layer whose weights are a hundred times as large has the same scores: both lose their smaller half."""
    small, large = linear([[1.0, 2.0, 3.0, 4.0]]), linear([[100.0, 200.0, 300.0, 400.0]])
    context = masked(nn.Sequential(small, large), algorithm="lamp", scope="global", configList=[{"sparsity": 0.5}])
    assert context.masks["0"]["weight"].tolist() == context.masks["1"]["weight"].tolist() == [[0, 0, 1, 1]]


class Chain(nn.Module):
    """first (2 to 3), a norm, second (3 to 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = linear([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]])
        self.norm = nn.BatchNorm1d(3)
        self.second = linear([[0.0, 6.0, 0.0], [12.0, 0.0, 1.0]])
        with torch.no_grad():
            self.norm.weight.copy_(torch.tensor([0.0, 2.0, 2.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.second(self.norm(self.first(x)).relu())
        return out


def shrunk(algorithm: str, **entry: Any) -> tuple[Chain, StageContext]:
    """A chain after a stage with its shrink."""
    model = Chain().eval()
    block = {"algorithm": algorithm, "configList": [{"sparsity": 0.34, **entry}]}
    context = StageContext(model, None, torch.randn(4, 2), 0)
    for step in steps(Prune.model_validate(block), 0):
        assert isinstance(step, Transform)
        step.apply(context)
    return model, context


def test_group_norm_counts_everything_that_goes_with_a_channel() -> None:
    """25 + 0 + 144, 1 + 4 + 36 and 4 + 4 + 1 under the root: the third goes, although the second has the least norm."""
    model, _ = shrunk("group_norm", opNames=["first"])
    assert model.first.weight.tolist() == [[3.0, 4.0], [1.0, 0.0]]
    assert model.second.weight.tolist() == [[0.0, 6.0], [12.0, 0.0]]
    model, _ = shrunk("l2", opNames=["first"])
    assert model.first.weight.tolist() == [[3.0, 4.0], [0.0, 2.0]]
    assert score("group_norm", Chain().first) == [5.0, 1.0, 2.0]


def test_group_norm_of_a_group_by_hand() -> None:
    """The numbers themselves, in the order of the group's units."""
    from modelpress_runner.dependency.analyse import find_dependencies

    model = Chain().eval()
    dependencies = find_dependencies(model, torch.randn(4, 2))
    (group,) = dependencies.groups
    units = torch.zeros(dependencies.unit_count, dtype=torch.bool)
    units[group.vector] = True
    found = method("group_norm").score_units(model, dependencies, units)
    assert found is not None
    assert found[group.vector].tolist() == pytest.approx([13.0, math.sqrt(41), 3.0], rel=1e-12)


def test_a_norm_stands_for_its_group() -> None:
    """slim selects the norm only; the layer that makes its channels and the next one shrink with it."""
    model, context = shrunk("slim")
    assert (model.first.out_features, model.norm.num_features, model.second.in_features) == (2, 2, 2)
    assert model.first.weight.tolist() == [[1.0, 0.0], [0.0, 2.0]]
    assert {edit.module for edit in context.edits} == {"first", "norm", "second"}


def test_attention_is_scored_by_the_rows_of_its_projections() -> None:
    """nn.MultiheadAttention has queries, keys and values in one weight."""
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=True)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.last = attention, nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.last(self.attention(x, x, x)[0])
            return out

    model = Net().eval()
    block = {"configList": [{"opNames": ["attention"], "opTypes": ["MultiheadAttention"], "sparsity": 0.5}]}
    for name in ("fpgm", "group_norm"):
        context = StageContext(model, None, torch.randn(2, 3, 8), 0)
        selection = select(model, Prune.model_validate({"algorithm": name, **block}), "p")
        assert list(selection.choices) == ["attention"]
        found = method(name).score(attention, generator())
        assert found.shape[0] in (8, 24)
        assert bool((found > 0).all())
        assert context.masks == {}


# Activations ----------------------------------------------------------------------------------------------------------

ROWS = [torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([[-1.0, 1.0], [2.0, -4.0]])]


def test_apoz_and_means_by_hand() -> None:
    """Outputs a, b, -a: above zero in 3, 2 and 1 of 4 rows; behind a ReLU they sum up to 6, 3 and 1."""
    layer = linear([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    assert collected("apoz", layer, ROWS) == [0.75, 0.5, 0.25]
    assert collected("mean_activation", layer, ROWS) == [1.5, 0.75, 0.25]
    assert collected("apoz", layer, ROWS, steps=1) == [1.0, 0.5, 0.0]


def test_positions_of_a_convolution_count_one_by_one() -> None:
    """1x1 filters 1 and -1 on 1, 0, 2, -3, batched or not: above zero at 2 and 1 of 4 places."""
    conv = nn.Conv1d(1, 2, 1, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1))
    for shape in ((1, 4), (1, 1, 4), (4, 1, 1)):
        data = [torch.tensor([1.0, 0.0, 2.0, -3.0]).view(shape)]
        assert collected("apoz", conv, data) == [0.5, 0.25]
        assert collected("mean_activation", conv, data) == [0.75, 0.75]


def test_outputs_are_looked_at_where_the_module_is() -> None:
    """Behind a norm that shifts both channels down by 2, 1 and 3 of (1, 3) leave one half above zero."""
    norm = nn.BatchNorm1d(2, eps=0).eval()
    with torch.no_grad():
        norm.bias.fill_(-2.0)
    data = [torch.tensor([[1.0, 3.0], [3.0, 5.0]])]
    assert collected("apoz", norm, data) == [0.5, 1.0]
    assert collected("mean_activation", norm, data) == [0.5, 2.0]


def test_wanda_of_a_linear_layer() -> None:
    """Inputs of squares 15 and 21 over 4 rows: |w| times the roots of 15/4 and 21/4; the other's share of 1 and 2."""
    one, two = math.sqrt(15 / 4), math.sqrt(21 / 4)
    found = collected("wanda", linear([[1.0, -2.0], [3.0, 1.0]]), ROWS)
    assert found == [pytest.approx([one, 2 * two]), pytest.approx([3 * one, two])]


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv1d(4, 6, 3, groups=2, stride=2, padding=1),
        nn.Conv2d(2, 4, (3, 2), dilation=(1, 2), padding=1),
        nn.Conv2d(2, 4, 3, padding="same", padding_mode="reflect"),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.Conv3d(2, 2, 2),
        nn.ConvTranspose1d(4, 6, 3, groups=2, stride=2, padding=1, output_padding=1),
        nn.ConvTranspose2d(2, 4, 3),
    ],
)
def test_wanda_of_convolutions_is_wanda_of_the_matrix_that_they_are(conv: Any) -> None:
    """The squares that each weight meets are found one by one: with a weight alone the output is w x at all places."""
    torch.manual_seed(0)
    shape = (3, conv.in_channels, *[5] * (conv.weight.dim() - 2))
    data = torch.randn(shape)
    found = torch.tensor(collected("wanda", conv, [data]))
    count = conv(data).numel() / conv.out_channels
    weight = conv.weight.detach().clone()
    with torch.no_grad():
        conv.bias.zero_()
        for index in torch.randperm(weight.numel())[:12].tolist():
            conv.weight.zero_()
            conv.weight.view(-1)[index] = 1.0
            squares = conv(data).double().square().sum() / count
            wanted = weight.flatten()[index].abs() * squares.sqrt()
            assert found.flatten()[index] == pytest.approx(float(wanted), rel=1e-5)


def test_wanda_takes_the_same_share_of_every_output() -> None:
    """The first row is the smaller one by far, and loses half like the second; the layer's count is exact."""
    data = [torch.ones(2, 4)]
    settings = {"speedup": False, "algorithm": "wanda"}

    def masks(layer: nn.Module, sparsity: float, **more: Any) -> Any:
        (step,) = steps(Prune.model_validate({**settings, "configList": [{"sparsity": sparsity}], **more}), 0)
        context = StageContext(nn.Sequential(layer), None, None, 0, calibration_data=data)
        assert isinstance(step, Transform)
        step.apply(context)
        return context.masks["0"]["weight"].tolist()

    rows = [[1.0, 2.0, 3.0, 4.0], [40.0, 10.0, 30.0, 20.0]]
    assert masks(linear(rows), 0.5) == [[0, 0, 1, 1], [1, 0, 1, 0]]
    assert masks(linear(rows), 0.4) == [[0, 0, 1, 1], [1, 0, 1, 1]]  # 3 of 8: one each, and the lowest next one
    assert masks(linear(rows), 0.5, scope="global") == [[0, 0, 0, 0], [1, 1, 1, 1]]


def test_a_module_that_the_data_do_not_reach_has_no_score() -> None:
    """The message names it."""

    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.left = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.used(x)
            return out

    model = Half()
    for name in ("wanda", "apoz", "mean_activation"):
        prune = Prune.model_validate({"algorithm": name, "configList": [{"sparsity": 0.5}]})
        context = StageContext(model, None, None, 0, calibration_data=ROWS)
        with pytest.raises(CompressionError, match="'left' was not called in the pass over data"):
            collect(context, select(model, prune, "p"), None, (0, 1), "p")
        context = StageContext(model, None, None, 0, calibration_data=[torch.full((1, 2), math.inf)])
        only = Prune.model_validate({"algorithm": name, "configList": [{"opNames": ["used"], "sparsity": 0.5}]})
        if name != "apoz":
            with pytest.raises(CompressionError, match="takes or gives is NaN or infinite"):
                collect(context, select(model, only, "p"), None, (0, 1), "p")


# Gradients ------------------------------------------------------------------------------------------------------------


def trainer() -> mp.TorchEvaluator:
    """Half the square of the outputs for the rows (1, 2) and (2, 0) in turn, so that dL/dw[i, j] = y[i] x[j]."""
    batches = (torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 0.0]]))

    def training_func(model: Any, optimizer: Any, step: Any, scheduler: Any, max_steps: Any, max_epochs: Any) -> None:
        for number in range(max_steps):
            optimizer.zero_grad()
            step(batches[number % 2], model).backward()
            optimizer.step()

    return mp.TorchEvaluator(
        training_func,
        lambda params: torch.optim.SGD(params, lr=1.0),
        lambda batch, model: model(batch).square().sum() / 2,
    )


# y = (a + 2b, 3a - b). Row (1, 2): y = (5, 1), g = ((5, 10), (1, 2)), wg = ((5, 20), (3, -2)).
# Row (2, 0): y = (2, 6), g = ((4, 0), (12, 0)), wg = ((4, 0), (36, 0)).
@pytest.mark.parametrize(
    ("name", "one", "two"),
    [
        ("gradient", [[5, 10], [1, 2]], [[9, 10], [13, 2]]),
        ("snip", [[5, 20], [3, 2]], [[9, 20], [39, 2]]),
        ("snip_momentum", [[5, 20], [3, 2]], [[0.9 * 5 + 4, 18], [0.9 * 3 + 36, 1.8]]),
        ("movement", [[-5, -20], [-3, 2]], [[-9, -20], [-39, 2]]),
        ("fisher", [[12.5, 200], [4.5, 2]], [[20.5, 200], [4.5 * 145, 2]]),
    ],
)
def test_gradients_by_hand(name: str, one: list[list[float]], two: list[list[float]]) -> None:
    """After one step, and after two."""
    layer = linear([[1.0, 2.0], [3.0, -1.0]])
    for count, wanted in ((1, one), (2, two)):
        assert torch.tensor(collected(name, layer, [], trainer(), count)).tolist() == [
            pytest.approx(row, rel=1e-6) for row in wanted
        ]


def test_snip_sums_before_it_takes_the_size() -> None:
    """Steps whose products cancel leave nothing; those of snip_momentum do not cancel."""
    layer = linear([[1.0]])
    batches = (torch.tensor([[1.0]]), torch.tensor([[-1.0]]))

    def training_func(model: Any, optimizer: Any, step: Any, scheduler: Any, max_steps: Any, max_epochs: Any) -> None:
        for number in range(max_steps):
            optimizer.zero_grad()
            step(batches[number % 2], model).backward()
            optimizer.step()

    evaluator = mp.TorchEvaluator(
        training_func, lambda params: torch.optim.SGD(params, lr=1.0), lambda batch, model: model(batch).sum()
    )
    assert collected("snip", layer, [], evaluator, 2) == [[0.0]]
    assert collected("snip_momentum", layer, [], evaluator, 2) == [[pytest.approx(1.9)]]


def test_movement_removes_what_training_shrinks() -> None:
    """Of weights of one size those go that descent moves towards zero, whatever their sign."""
    layer = linear([[1.0, -1.0], [1.0, -1.0]])
    wanted = torch.tensor([[2.0, -2.0], [0.0, 0.0]])  # the first row is to grow, the second to vanish

    def loss(batch: Any, model: Any) -> Any:
        return (model[0].weight - wanted).square().sum()

    def training_func(model: Any, optimizer: Any, step: Any, scheduler: Any, max_steps: Any, max_epochs: Any) -> None:
        for _ in range(max_steps):
            optimizer.zero_grad()
            step(None, model).backward()
            optimizer.step()

    evaluator = mp.TorchEvaluator(training_func, lambda params: torch.optim.SGD(params, lr=0.1), loss)
    assert collected("movement", layer, [], evaluator, 3) == [[6.0, 6.0], [-6.0, -6.0]]


def test_a_norm_without_factors_is_left() -> None:
    """By type with a note, by name with an error."""
    model = nn.Sequential(nn.BatchNorm1d(4, affine=False), nn.BatchNorm1d(4))
    context = masked(model, algorithm="slim", configList=[{"sparsity": 0.5}])
    assert list(context.masks) == ["1"]
    assert context.notes == ["Left as it was: '0' (BatchNorm1d) has no weight"]
    with pytest.raises(InvalidSpecError, match=r"configList\[0\]\.opNames: '0' \(BatchNorm1d\) has no weight"):
        masked(model, algorithm="slim", configList=[{"opNames": ["0"], "sparsity": 0.5}])
