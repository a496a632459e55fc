"""prune.reconstruct: what layers that lost inputs get back from calibration data, worked out by hand."""

from __future__ import annotations

import copy
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
from modelpress_runner.methods.reconstruct import recover
from modelpress_runner.methods.reconstruct.inputs import input_rows, is_matrix_product, weight_matrix
from modelpress_runner.methods.reconstruct.recover import STRENGTH
from modelpress_runner.process.stopping import Stopped
from modelpress_runner.subject.subject import Subject

ROWS = torch.tensor([[1.0], [2.0], [3.0], [4.0]])  # of mean 2.5


class TwoFeatures(nn.Module):
    """Features x and .1 x + .5 of a number x, and x + 2 (.1 x + .5) + 3 of them: the second one has the smaller L1."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(1, 2), nn.Linear(2, 1, bias=bias)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[1.0], [0.1]]))
            self.first.bias.copy_(torch.tensor([0.0, 0.5]))
            self.last.weight.copy_(torch.tensor([[1.0, 2.0]]))
            if bias:
                self.last.bias.fill_(3.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, 1) -> (n, 1)."""
        return self.last(self.first(x))


def stage(kind: str, names: list[str], sparsity: float = 0.5, **more: Any) -> dict[str, Any]:
    return {"prune": {"reconstruct": kind, "configList": [{"opNames": names, "sparsity": sparsity}], **more}}


def compressed(model: nn.Module, recipe: dict[str, Any], data: list[torch.Tensor], evaluator: Any = None) -> Any:
    return mp.compress(model, [recipe], evaluator, data[0], calibration_data=data)


def error(model: nn.Module, like: nn.Module, x: torch.Tensor) -> float:
    with torch.no_grad():
        return float((model(x) - like(x)).square().mean())


# Fits -----------------------------------------------------------------------------------------------------------------


def test_bias_gives_what_is_missing_on_average() -> None:
    """2 (.1 * 2.5 + .5) = 1.5 goes with the second feature."""
    last = compressed(TwoFeatures(), stage("bias", ["first"]), [ROWS[:3], ROWS[3:]]).model.last
    assert last.weight.tolist() == [[1.0]]
    assert last.bias.tolist() == pytest.approx([4.5])


def test_least_squares_predicts_what_is_missing() -> None:
    """C_SS is v, C_RS .1 v, and the ridge `STRENGTH` v: the weight grows by 2 * .1 / (1 + STRENGTH) = .1."""
    last = compressed(TwoFeatures(), stage("leastSquares", ["first"]), [ROWS[:3], ROWS[3:]]).model.last
    assert STRENGTH == 1
    assert last.weight.tolist() == [[pytest.approx(1.1)]]
    assert last.bias.tolist() == pytest.approx([4.5 - 0.1 * 2.5])


def test_a_layer_without_bias_is_fitted_about_zero() -> None:
    """Second moments 7.5 of x, .1 * 7.5 + .5 * 2.5 = 2 of both; the weight grows by 2 * 2 / (7.5 + 7.5)."""
    result = compressed(TwoFeatures(bias=False), stage("leastSquares", ["first"]), [ROWS])
    assert result.model.last.weight.tolist() == [[pytest.approx(1 + 4 / 15)]]
    assert result.model.last.bias is None


@pytest.mark.parametrize("shrink", [True, False])
@pytest.mark.parametrize("kind", ["bias", "leastSquares"])
def test_masked_and_shrunk_models_get_the_same(kind: str, shrink: bool) -> None:
    """Layers that depend on each other lose the same channels either way, and those that follow recover alike."""
    model = prune_zoo.trained_like(prune_zoo.Residual(16)).eval()
    x = torch.randn((8, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    recipe = stage(kind, ["conv1"], shrink=shrink)
    results = {each: compressed(model, stage(each, ["conv1"], shrink=True), [x]).model for each in ("none", kind)}
    result = compressed(model, recipe, [x])
    assert error(result.model, results[kind], x) < 1e-10
    assert result.model.conv2.in_channels == (8 if shrink else 16)
    if not shrink:
        gone = (result.masks["conv1"]["weight"] == 0).flatten(1).all(dim=1)
        assert int(gone.sum()) == 8
        assert not result.model.conv2.weight[:, gone].any()
    assert error(result.model, model, x) < 0.9 * error(results["none"], model, x)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(5, 3),
        nn.Conv1d(4, 3, 3, stride=2, padding=1),
        nn.Conv2d(3, 4, 3, stride=2, padding=(1, 2), dilation=2),
        nn.Conv2d(3, 4, (2, 3), padding="same", padding_mode="circular", bias=False),
    ],
)
def test_rows_times_weight_is_what_the_layer_gives(layer: nn.Module) -> None:
    """Rows in the order of the output's positions, a batch's images one after the other."""
    shape = {nn.Linear: (2, 7, 5), nn.Conv1d: (2, 4, 9), nn.Conv2d: (2, 3, 8, 7)}[type(layer)]
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    layer = layer.double()
    rows = torch.cat(list(input_rows(layer, x)))
    bias = 0 if layer.bias is None else layer.bias
    product = rows @ weight_matrix(layer.weight).T + bias
    expected = layer(x) if isinstance(layer, nn.Linear) else layer(x).transpose(1, -1)
    if isinstance(layer, nn.Conv2d):
        expected = layer(x).permute(0, 2, 3, 1)
    assert torch.allclose(product, expected.reshape(product.shape))


def test_what_computes_otherwise_is_no_matrix_product() -> None:
    """Groups, transposed convolutions, and classes with a forward of their own."""

    class Scaled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    others = (Scaled(2, 2), nn.Conv2d(4, 4, 1, groups=2), nn.ConvTranspose2d(2, 2, 1), nn.Conv3d(1, 1, 1), nn.ReLU())
    assert not any(map(is_matrix_product, others))


def test_layers_of_other_kinds_are_left_with_a_note() -> None:
    """A transposed convolution that lost half of its inputs."""
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.ConvTranspose2d(4, 2, 2))
    result = compressed(model, stage("leastSquares", ["0"]), [torch.randn(3, 1, 4, 4)])
    assert "Not reconstructed: '2', of a kind that has no refit" in result.notes


def test_single_weights_get_their_mean_back() -> None:
    """level takes .1 of the first layer, whose input has mean 2.5."""
    recipe = stage("bias", ["first"], algorithm="level", shrink=False)
    first = compressed(TwoFeatures(), recipe, [ROWS]).model.first
    assert first.weight.tolist() == [[1.0], [0.0]]
    assert first.bias.tolist() == pytest.approx([0.0, 0.75])


def test_little_memory_takes_more_passes_and_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bound of one byte: each layer is gathered in a pass of its own."""
    model = prune_zoo.trained_like(prune_zoo.Residual(16)).eval()
    x = torch.randn((8, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    recipe = stage("leastSquares", ["stem", "conv1", "conv2"])
    whole = compressed(model, recipe, [x]).model.state_dict()
    monkeypatch.setattr(recover, "_BYTES", 1)
    parts = compressed(model, recipe, [x]).model.state_dict()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


# BatchNorm ------------------------------------------------------------------------------------------------------------


def test_statistics_behind_the_cut_are_those_of_the_data() -> None:
    """The mean and the unbiased variance of what the second BatchNorm takes; the first one stays as it is."""
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(
        nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3), nn.BatchNorm1d(3)
    )
    x = torch.randn(32, 4, generator=generator)
    with torch.no_grad():
        for norm in (model[1], model[5]):
            norm.running_mean.normal_(generator=generator)
    before = model[1].running_mean.clone()
    result = compressed(model, stage("batchNorm", ["2"]), [x]).model
    assert torch.equal(result[1].running_mean, before)
    normal = torch.nn.functional.batch_norm(result[0](x), None, None, result[1].weight, result[1].bias, training=True)
    taken = result[2:5](normal)
    assert torch.allclose(result[5].running_mean, taken.mean(dim=0), atol=1e-6)
    assert torch.allclose(result[5].running_var, taken.var(dim=0), atol=1e-6)


# auto -----------------------------------------------------------------------------------------------------------------


def closeness(model: nn.Module, x: torch.Tensor, sign: int = -1) -> Any:
    dense = copy.deepcopy(model).eval()
    return lambda other: sign * error(other, dense, x)


def test_auto_takes_what_scores_best() -> None:
    """What is missing is linear in what is left, so the weakest ridge scores best."""
    model = TwoFeatures()
    result = compressed(model, stage("auto", ["first"]), [ROWS], closeness(model, ROWS))
    assert any("auto chose leastSquares, ridge 0.01" in note for note in result.notes)
    assert error(result.model, model, ROWS) < 1e-4


def test_auto_is_never_below_none() -> None:
    """A score that is best where nothing was touched, and one that is to be small."""
    model = TwoFeatures()
    masked = compressed(model, stage("none", ["first"]), [ROWS]).model.eval()
    result = compressed(model, stage("auto", ["first"]), [ROWS], closeness(masked, ROWS))
    assert "reconstruct: auto chose none" in result.notes
    assert error(result.model, masked, ROWS) == 0.0
    recipe = [Stage.model_validate(stage("auto", ["first"]))]
    subject = Subject(copy.deepcopy(model), closeness(model, ROWS, sign=1), ROWS, [ROWS])
    outcome = run_stages(subject, recipe, seed=0, goal="minimize")
    assert any("leastSquares, ridge 0.01" in note for note in outcome.notes)


def test_auto_tries_statistics_too() -> None:
    """Best is what gives numbers of mean 0 and variance 1: no fit does, and the statistics of a BatchNorm do."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3), nn.BatchNorm1d(3)).eval()
    x = torch.randn(64, 4, generator=generator)

    @torch.no_grad()
    def score(model: nn.Module) -> float:
        given = model(x)
        return -float(given.mean(dim=0).square().sum() + (given.var(dim=0) - 1).square().sum())

    result = compressed(model, stage("auto", ["0"], 0.75), [x], score)
    (chosen,) = (note for note in result.notes if note.startswith("reconstruct"))
    assert "batchNorm" in chosen
    assert score(result.model) > -1e-3


# Restarts and artifacts -----------------------------------------------------------------------------------------------

ROUNDS = {"type": "linear", "rounds": 2, "train": {"maxSteps": 3}}


def test_a_run_that_is_stopped_ends_as_one_that_is_not(task, tmp_path) -> None:
    """Stopped at every safe point in turn, in passes, scores and trainings; the end is the same, bit for bit."""
    recipe = [Stage.model_validate(stage("auto", ["0"], schedule=ROUNDS))]
    dense = copy.deepcopy(task.model)

    def run(checkpointer: Checkpointer | None, stop: Any) -> Any:
        task.model = copy.deepcopy(dense)
        subject = Subject(task.model, task.evaluator(), None, [task.x[:20], task.x[20:]])
        return run_stages(subject, recipe, seed=1, checkpointer=checkpointer, stop=stop)

    whole = run(None, lambda: None).model.state_dict()
    asked, attempts = 0, 0
    store = open_store(str(tmp_path))

    def stop() -> None:
        nonlocal asked
        asked += 1
        if asked == 3 * attempts:
            raise Stopped

    while True:
        asked, attempts = 0, attempts + 1
        try:
            outcome = run(Checkpointer(store, "", "same", attempts), stop)
            break
        except Stopped:
            assert attempts < 30
    assert attempts >= 4
    assert all(torch.equal(whole[name], value) for name, value in outcome.model.state_dict().items())


def test_the_artifact_has_what_came_back(tmp_path) -> None:
    """Loaded into the dense model's class it gives the recovered outputs."""
    model = TwoFeatures()
    result = compressed(model, stage("leastSquares", ["first"]), [ROWS])
    uri = result.save(tmp_path / "out")
    loaded = mp.load(uri, into=TwoFeatures())
    assert torch.equal(loaded(ROWS), result.model(ROWS))


# What is refused ------------------------------------------------------------------------------------------------------


def test_without_calibration_data_nothing_runs() -> None:
    """Each kind; the message says what to give."""
    for kind in ("bias", "leastSquares", "batchNorm", "auto"):
        with pytest.raises(InvalidSpecError, match=f"{kind} looks at calibration data, and there is none") as raised:
            mp.compress(TwoFeatures(), [stage(kind, ["first"])], lambda model: 1.0, ROWS)
        assert raised.value.path == "spec.stages[0].prune.reconstruct"


def test_auto_without_a_score_is_refused() -> None:
    """With the kinds that need none."""
    for evaluator in (None, mp.TorchEvaluator()):
        with pytest.raises(
            InvalidSpecError, match="auto goes by the score, and nothing here evaluates; give "
        ) as raised:
            compressed(TwoFeatures(), stage("auto", ["first"]), [ROWS], evaluator)
        assert raised.value.path == "spec.stages[0].prune.reconstruct"


def test_data_that_are_not_finite_are_refused() -> None:
    """They would make a model of NaN."""
    with pytest.raises(CompressionError, match="the calibration data give 'last' inputs that are not finite"):
        compressed(TwoFeatures(), stage("leastSquares", ["first"]), [ROWS, torch.tensor([[float("inf")]])])


def test_layers_that_the_data_do_not_reach_are_told() -> None:
    """The calibration batches take another way through the model than the dummy input."""

    class Ways(TwoFeatures):
        def forward(self, x: torch.Tensor, half: bool = False) -> torch.Tensor:
            return self.first(x) if half else super().forward(x)

    data = [{"x": ROWS, "half": True}]
    result = mp.compress(Ways(), [stage("bias", ["first"])], None, ROWS, calibration_data=data)
    assert "Not reconstructed: 'last', which the calibration data do not reach" in result.notes


def test_rules_without_torch() -> None:
    """Single weights have no refit; a training that goes along recovers by itself."""
    with pytest.raises(SpecError, match=r"reconstruct: .*level removes single weights; write bias or auto"):
        compressed(TwoFeatures(), stage("leastSquares", ["first"], algorithm="level", shrink=False), [ROWS])
    with pytest.raises(SpecError, match=r"of\[0\].prune.reconstruct: bias would be trained over"):
        compressed(TwoFeatures(), {"together": {"epochs": 1, "of": [stage("bias", ["first"])]}}, [ROWS])
