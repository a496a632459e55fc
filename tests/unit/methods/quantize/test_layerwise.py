"""GPTQ, AWQ, SmoothQuant and HQQ on numbers worked out by hand; blocks one after another; a killed run that goes on."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import modelpress as mp
from modelpress.api.v1alpha1 import Stage
from modelpress.store import open_store
from modelpress_runner.edits.quantize import FrozenLayer
from modelpress_runner.engine.checkpoint import Checkpointer
from modelpress_runner.engine.run import run_stages
from modelpress_runner.errors import CompressionError, InvalidSpecError
from modelpress_runner.methods.context import StageContext
from modelpress_runner.methods.quantize import layerwise, streaming
from modelpress_runner.methods.quantize.algorithms import hqq
from modelpress_runner.methods.quantize.algorithms.awq import Awq
from modelpress_runner.methods.quantize.algorithms.gptq import Grid, nearest, solve
from modelpress_runner.methods.quantize.algorithms.smoothquant import factors
from modelpress_runner.methods.quantize.products import error
from modelpress_runner.methods.quantize.smoothing import Smoothing, scale, smoothings
from modelpress_runner.process.stopping import Stopped
from modelpress_runner.subject.subject import Subject
from modelpress_runner.testing.quantize_methods import Residual, batches, net

LINEAR = [{"opTypes": ["Linear"]}]


def grid(outputs: int, inputs: int, scale: float = 1.0, group: int | None = None, bits: int = 4) -> Grid:
    groups = inputs // (group or inputs)
    most = 2 ** (bits - 1) - 1
    zero = torch.zeros(outputs, groups, dtype=torch.int32)
    return Grid(torch.full((outputs, groups), scale), zero, group or inputs, -most, most, "symmetric", "minMax")


def stage(algorithm: str, **block: Any) -> dict[str, Any]:
    return {"quantize": {"algorithm": algorithm, "configList": LINEAR, **block}}


# GPTQ -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("products", "act_order", "wanted"),
    [
        # .4 goes down to 0; the other one makes up for it by .9 * .4 = .36, and .76 goes up.
        ([[1.0, 0.9], [0.9, 1.0]], False, [0, 1]),
        # It is seen so strongly that it moves by .225 * .4 = .09 only.
        ([[1.0, 0.9], [0.9, 4.0]], False, [0, 0]),
        # The strong one goes first.
        ([[1.0, 0.9], [0.9, 4.0]], True, [1, 0]),
        ([[1.0, 0.0], [0.0, 1.0]], False, [0, 0]),
        # What is never seen is rounded to the nearest.
        ([[1.0, 0.0], [0.0, 0.0]], False, [0, 0]),
    ],
)
def test_two_weights(products, act_order, wanted):
    weight, seen = torch.tensor([[0.4, 0.4]]).double(), torch.tensor(products).double()
    found = solve(weight, seen, grid(1, 2), damping=1e-9, act_order=act_order)
    assert found.tolist() == [wanted]


def test_a_pruned_weight_stays_zero():
    """.45 goes down to 0, and the other one would make up for it by 1.5 * .45 = .675, which goes up to 1."""
    weight, seen = torch.tensor([[0.45, 0.0]]).double(), torch.tensor([[4.0, 1.5], [1.5, 1.0]]).double()
    assert solve(weight, seen, grid(1, 2), damping=1e-9).tolist() == [[0, 1]]
    assert solve(weight, seen, grid(1, 2), damping=1e-9, mask=torch.tensor([[1.0, 0.0]])).tolist() == [[0, 0]]


def test_groups_take_their_range_from_weights_that_have_moved():
    """The second group's greatest weight is 7 + .36: its scale is 7.36 / 7; with act_order scales stay."""
    weight = torch.tensor([[7.4, 0.0, 7.0, 0.0]]).double()
    seen = torch.eye(4).double()
    seen[0, 2] = seen[2, 0] = 0.9
    moved = grid(1, 4, group=2)
    moved.set(0, weight[:, :2])
    kept = copy.deepcopy(moved)
    for each in (moved, kept):
        each.scale[:, 0] = 1.0  # so that 7.4 becomes 7
    moved.set = lambda number, columns, own=moved.set: own(number, columns) if number else None  # type: ignore[method-assign]
    solve(weight, seen, moved, damping=1e-9)
    assert float(moved.scale[0, 1]) == pytest.approx(7.36 / 7)
    solve(weight, seen, kept, damping=1e-9, act_order=True)
    assert float(kept.scale[0, 1]) == 1.0


@pytest.mark.parametrize("group", [None, 4])
def test_blocks_of_columns_change_nothing(monkeypatch, group):
    """Errors are spread late or at once: the integers are the same."""
    from modelpress_runner.methods.quantize.algorithms import gptq

    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 24, generator=generator).double()
    x = (torch.randn(200, 24, generator=generator) @ torch.randn(24, 24, generator=generator)).double()
    found = []
    for columns in (128, 8):
        monkeypatch.setattr(gptq, "_COLUMNS", columns)
        own = grid(6, 24, 0.4, group)
        found.append(solve(weight, x.T @ x, own, damping=0.01))
    assert torch.equal(*found)
    plain = error(grid(6, 24, 0.4).floats(nearest(weight, grid(6, 24, 0.4))) - weight, x.T @ x).sum()
    if group is None:
        assert float(error(grid(6, 24, 0.4).floats(found[0]) - weight, x.T @ x).sum()) < 0.5 * float(plain)


@pytest.mark.parametrize("block", [{}, {"actOrder": True}, {"granularity": "group", "groupSize": 4}])
@pytest.mark.parametrize("scheme", ["symmetric", "affine"])
def test_outputs_are_never_further_off_than_rounded_ones(block, scheme):
    """On correlated inputs, of a linear layer and of a convolution: what the layer gives on the data it was set by."""
    generator = torch.Generator().manual_seed(3)
    mix = torch.randn(8, 8, generator=generator)
    x = [(torch.randn(16, 8, generator=generator) @ mix).reshape(16, 8) for _ in range(2)]
    with torch.random.fork_rng():
        torch.manual_seed(5)
        models = nn.Sequential(nn.Linear(8, 8)), nn.Sequential(nn.Conv2d(2, 4, 2))
    for model, data in zip(models, (x, [each.reshape(8, 2, 2, 4) for each in x]), strict=True):
        errors = {}
        wanted = torch.cat([model(each) for each in data]).detach()
        for name in ("gptq", "weight_only"):
            own = dict(block) if name == "gptq" else {k: v for k, v in block.items() if k != "actOrder"}
            full = {"algorithm": name, "quantBits": 3, "scheme": scheme, **own}
            full["configList"] = [{"opTypes": ["default"]}]
            result = mp.compress(
                model, [{"quantize": full}], dummy_input=data[0], calibration_data=data, target={"format": "eager"}
            )
            errors[name] = float((torch.cat([result.model(each) for each in data]) - wanted).detach().square().sum())
        assert errors["gptq"] < errors["weight_only"]
        layer = result.metrics["stages"][0]["layers"][0]
        assert layer["sqnrDb"] > 5


def test_moments_that_are_of_no_use():
    with pytest.raises(CompressionError, match="NaN or infinite"):
        solve(torch.ones(1, 2).double(), torch.full((2, 2), torch.nan).double(), grid(1, 2), damping=0.01)
    with pytest.raises(CompressionError, match="the input of '0' is NaN or infinite"):
        mp.compress(net(), [stage("gptq")], dummy_input=batches(1)[0], calibration_data=[batches(1)[0] * torch.inf])
    with pytest.raises(InvalidSpecError, match="gptq looks at inputs: there is neither calibration data"):
        mp.compress(net(), [stage("gptq")], dummy_input=batches(1)[0])


# Scaling --------------------------------------------------------------------------------------------------------------


def context(model: nn.Module) -> StageContext:
    return StageContext(model, None, batches(1)[0], 0, calibration_data=batches())


def test_what_can_be_scaled_together_is_found_and_proven():
    """Norms with all that take their output, layers with those behind them; a branch past the norm forbids it."""
    model = net()
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    assert smoothings(context(model), names, "") == [
        Smoothing("1.norm", ("1.up",)),
        Smoothing("2.norm", ("2.up",)),
        Smoothing("1.up", ("1.down",)),
        Smoothing("2.up", ("2.down",)),
    ]

    class Past(Residual):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.norm(x)
            return x + self.down(torch.sigmoid(self.up(x)))

    model[1] = Past()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    found = smoothings(context(model), names, "")
    assert found == [Smoothing("2.norm", ("2.up",)), Smoothing("2.up", ("2.down",))]
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_smoothquant_factors():
    """max|x| = [16, 1, 0], max|w| = [1, 4, 1], alpha 1/2: [4, 1/2, 1]; a layer scaled by them computes the same."""
    model = nn.Sequential(nn.LayerNorm(3), nn.Linear(3, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, -4.0, 1.0], [0.5, 2.0, -1.0]]))
    fold = Smoothing("0", ("1",))
    found = factors(context(model), fold, [torch.tensor([16.0, 1.0, 0.0]).double()], 0.5)
    assert found.tolist() == [4.0, 0.5, 1.0]
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    before = model(x).detach()
    scale(model, fold, found)
    torch.testing.assert_close(model(x), before)
    assert model[1].weight[0].tolist() == [4.0, -2.0, 1.0]


def outliers() -> tuple[nn.Module, list[torch.Tensor]]:
    """A norm gives one input a hundred times the others, as large language models have it."""
    model = net()
    with torch.no_grad():
        for number in (1, 2):
            model[number].norm.weight[3] = 100.0
            model[number].up.weight[:, 3] /= 100.0
    return model, batches()


def sqnr(algorithm: str, layer: str, **block: Any) -> tuple[float, mp.CompressionResult]:
    model, data = outliers()
    result = mp.compress(
        model, [stage(algorithm, **block)], dummy_input=data[0], calibration_data=data, target={"format": "eager"}
    )
    entries = result.metrics["stages"][0]["layers"]
    return next(entry["sqnrDb"] for entry in entries if entry["name"] == layer), result


def test_smoothquant_takes_outliers_out_of_inputs():
    """Of the layer behind an outlier the error is less than a tenth of what it was."""
    plain, (smooth, result) = sqnr("ptq_static", "1.up")[0], sqnr("smoothquant", "1.up")
    assert smooth > plain + 10
    assert any("smoothquant: 4 of 6 layers are scaled" in note for note in result.notes)


def test_awq_keeps_what_large_inputs_need():
    """Weights behind an outlier are small beside the others; scaled up they have more of the numbers."""
    plain, (scaled, result) = sqnr("weight_only", "1.up", quantBits=4)[0], sqnr("awq", "1.up", quantBits=4)
    assert scaled > plain + 6
    assert not torch.equal(result.model[1].norm.weight, outliers()[0][1].norm.weight)


def test_awq_leaves_alone_what_no_exponent_betters():
    """Numbers that rounding keeps cost nothing: the factors are ones."""
    layer = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[7.0, 3.0], [-7.0, 1.0]]))
    model = nn.Sequential(nn.LayerNorm(2), layer)
    seen: list[torch.Tensor] = []

    class Looking(Awq):
        def factors(self, block, fold):
            seen.append(super().factors(block, fold))
            return seen[-1]

    from modelpress_runner.methods.quantize.algorithms import awq

    before, awq.METHOD = awq.METHOD, Looking()
    try:
        data = [torch.randn(8, 2, generator=torch.Generator().manual_seed(0))]
        mp.compress(model, [stage("awq", quantBits=4)], dummy_input=data[0], calibration_data=data)
    finally:
        awq.METHOD = before
    assert all(torch.equal(each, torch.ones(2).double()) for each in seen)


# HQQ ------------------------------------------------------------------------------------------------------------------


def test_hqq_leaves_outliers_to_themselves():
    """One weight of 16 among those that three bits hold exactly: the p-norm is a third of that of the whole range."""
    rows = torch.tensor([[-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0] * 9 + [4.2]])
    scale, zero = hqq.solve(rows, -3, 3, "symmetric")
    own = hqq._cost(rows, scale, zero, -3, 3)
    whole = hqq._cost(rows, torch.tensor([4.2 / 3]), zero, -3, 3)
    assert float(own) < 0.34 * float(whole)
    exact = rows[:, :-1]
    scale, zero = hqq.solve(exact, -3, 3, "symmetric")
    assert (float(scale), int(zero)) == (1.0, 0)
    scale, zero = hqq.solve(exact + 3.0, 0, 7, "affine")
    assert float(hqq._cost(exact + 3.0, scale, zero, 0, 7)) <= float(
        hqq._cost(exact + 3.0, torch.tensor([6 / 7]), torch.zeros(1), 0, 7)
    )


# Block by block -------------------------------------------------------------------------------------------------------


class Model(nn.Module):
    """A stem, blocks and a head; `skips`: the first block's output is used again behind the last."""

    def __init__(self, skips: bool = False) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(4, 8), nn.Linear(8, 3)
        self.blocks = nn.ModuleList(Residual() for _ in range(3))
        self.skips = skips
        self.runs = [0, 0, 0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = first = self.stem(x)
        for number, block in enumerate(self.blocks):
            x = block(x + first if number == 2 and self.skips else x)
            first = x if number == 0 else first
        return self.head(x)


def model(skips: bool = False) -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Model(skips).eval()


def outcome(own: nn.Module, data: Any = None, **options: Any) -> Any:
    recipe = [Stage.model_validate(stage("gptq", quantBits=3))]
    subject = Subject(own, None, batches(1)[0], data or batches())
    return run_stages(subject, recipe, seed=0, scores=False, **options)


def test_a_block_sees_integers_before_it(monkeypatch):
    """The moments of each layer are those of a plain run of the model whose earlier blocks have their integers."""
    own, seen = model(), []
    inner = layerwise._settled

    def look(context, unit, scopes, taken, *rest):
        plain = {name: [] for name in unit.layers}
        hooks = [
            own.get_submodule(name).register_forward_hook(lambda m, a, o, name=name: plain[name].append(a[0]))
            for name in unit.layers
        ]
        with torch.no_grad():
            for batch in batches():
                own(batch)
        for hook in hooks:
            hook.remove()
        for name in unit.layers:
            x = torch.cat(plain[name]).double()
            torch.testing.assert_close(taken[name].products, x.T @ x, rtol=1e-12, atol=1e-12)
        seen.append(unit.layers)
        return inner(context, unit, scopes, taken, *rest)

    monkeypatch.setattr(layerwise, "_settled", look)
    outcome(own)
    assert seen == [("stem",), *((f"blocks.{n}.up", f"blocks.{n}.down") for n in range(3)), ("head",)]


def test_each_block_runs_twice_for_each_batch():
    """Once for what its layers take, once with integers, and for no block behind it."""
    counts = []
    for more in (0, 4):
        own, calls = model(), [0, 0, 0]
        for number, block in enumerate(own.blocks):
            block.norm.register_forward_hook(lambda m, a, o, n=number, calls=calls: calls.__setitem__(n, calls[n] + 1))
        outcome(own, data=batches(3 + more))
        counts.append(calls)
    assert [b - a for a, b in zip(*counts, strict=True)] == [2 * 4] * 3


def test_a_model_that_is_no_chain_is_looked_at_as_a_whole():
    own = model(skips=True)
    result = outcome(own)
    assert any("it is no chain of blocks" in note for note in result.notes)
    assert isinstance(own.blocks[2].up, FrozenLayer)


def test_outputs_on_disk_give_the_same_bits(monkeypatch):
    first, second = model(), model()
    outcome(first)
    monkeypatch.setattr(streaming, "ROOM", 0)
    outcome(second)
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key


@pytest.mark.parametrize("killed", [0, 1, 3])
def test_a_killed_run_goes_on_where_it_was(tmp_path, monkeypatch, killed):
    """The blocks that were over are taken from beside the checkpoint; all bits are those of one run."""
    plain = model()
    outcome(plain)
    done: list[tuple[str, ...]] = []
    inner = layerwise._settled

    def counted(context, unit, *rest):
        if len(done) == killed and not resumed:
            raise Stopped
        done.append(unit.layers)
        return inner(context, unit, *rest)

    monkeypatch.setattr(layerwise, "_settled", counted)
    store, resumed = open_store(str(tmp_path)), False
    with pytest.raises(Stopped):
        outcome(model(), checkpointer=Checkpointer(store, "", "same", 1))
    resumed = True
    again = model()
    outcome(again, checkpointer=Checkpointer(store, "", "same", 2))
    assert len(done) == 5
    for key, value in plain.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    done.clear()
    outcome(model(), checkpointer=Checkpointer(store, "", "another", 3))
    assert len(done) == 5


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"algorithm": "gptq", "targets": ["weight", "input"]}, "gptq leaves inputs as they are"),
        ({"algorithm": "awq", "damping": 0.1}, "damping: awq takes none; gptq does"),
        ({"algorithm": "gptq", "alpha": 0.1}, "alpha: gptq takes none; smoothquant does"),
        ({"algorithm": "hqq", "weightObserver": "mse"}, "hqq finds the range of weights itself"),
        ({"algorithm": "gptq", "calibration": {"observer": "kl"}}, "gptq looks at inputs, and needs no range of them"),
        ({"algorithm": "hqq", "calibration": {"steps": 2}}, "hqq needs no range of activations here"),
    ],
)
def test_blocks_that_are_refused(block, message):
    with pytest.raises(Exception, match=message):
        mp.compress(net(), [{"quantize": {"configList": LINEAR, **block}}], dummy_input=batches(1)[0])
