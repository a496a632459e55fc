"""The quantize stage: what becomes of a model, what is saved, and what goes along with a training."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from backend_nets import SeparableTask
from small_task import Task
from torch import nn

import modelpress as mp
from modelpress.api.errors import SpecError
from modelpress.api.v1alpha1 import Stage, algorithms
from modelpress.store import open_store
from modelpress_runner.edits.quantize import FrozenLayer, thawed
from modelpress_runner.engine.checkpoint import Checkpointer
from modelpress_runner.engine.run import run_stages
from modelpress_runner.errors import CompressionError, InvalidSpecError
from modelpress_runner.process.stopping import Stopped
from modelpress_runner.subject.subject import Subject

ALL = [{"opTypes": ["default"]}]
NAMES = algorithms.names("quantize")
TRAINS = [row.name for row in algorithms.algorithms("quantize") if row.trains]


def stage(algorithm: str = "ptq_static", **block: Any) -> dict[str, Any]:
    length = {"epochs": 2} if algorithm in TRAINS else {}
    return {"quantize": {"algorithm": algorithm, "configList": ALL, **length, **block}}


def compress(task: Task, *stages: dict[str, Any], **options: Any) -> mp.CompressionResult:
    return mp.compress(
        task.model, stages, task.evaluator(), calibration_data=options.pop("calibration_data", [task.x]), **options
    )


class Mixed(nn.Module):
    """Every kind of layer that can be quantized, one that is tied, one that is left."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 16, padding_idx=0)
        self.conv = nn.Conv1d(16, 32, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm1d(32)
        self.back = nn.ConvTranspose1d(32, 16, 3, padding=1)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 20)
        self.head.weight = self.embedding.weight
        self.drop = nn.Dropout(0.3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.conv(self.embedding(ids).transpose(1, 2))).relu()
        x = self.back(x).transpose(1, 2)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(self.drop(x))


def mixed() -> tuple[Mixed, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, ids = Mixed(), torch.randint(1, 20, (4, 8))
        with torch.no_grad():
            model.train()(ids)
    return model.eval(), ids


@pytest.mark.parametrize("name", NAMES)
def test_saved_and_loaded_again(task, tmp_path, name):
    """Integers are kept; the dense model takes them, the program needs none; both give what the result gives."""
    dense = copy.deepcopy(task.model)
    result = compress(task, stage(name))
    wanted = result.model.eval()(task.x).detach()
    uri = result.save(tmp_path / "out")
    assert all(isinstance(result.model[number], FrozenLayer) for number in (0, 3))
    assert result.model[0].weight_integers.dtype in (torch.int8, torch.uint8)
    assert torch.equal(mp.load(uri, into=dense).eval()(task.x), wanted)
    if name in ("ptq_dynamic", "dorefa", "bnn"):  # other graphs than in test_all_kinds_of_layers
        torch.testing.assert_close(mp.load(uri)(task.x), wanted, rtol=1e-5, atol=1e-6)
    layers = result.metrics["stages"][0]["layers"]
    assert [layer["name"] for layer in layers] == ["0", "3"]
    assert ("sqnrDb" in layers[0]) == algorithms.algorithm("quantize", name).keeps_zero
    card = next((tmp_path / "out").rglob("README.md")).read_text()
    assert "quantized with" in card
    assert f"| 0 | {layers[0]['weight']} |" in card


def test_counts_and_bytes():
    """A layer of 256 to 256: an eighth of its bytes with four bits, and as many parameters as before."""
    model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 8))
    x = torch.randn(16, 256, generator=torch.Generator().manual_seed(0))
    for bits, least in ((8, 3.7), (4, 6.9)):
        result = mp.compress(model, [stage("weight_only", quantBits=bits)], dummy_input=x[:1])
        metrics = result.metrics
        assert metrics["compressed"]["parameters"] == metrics["baseline"]["parameters"]
        assert metrics["compressed"]["macs"] == metrics["baseline"]["macs"]
        assert metrics["compressed"]["compressionRatio"] > least
    assert all(each.is_leaf for each in result.model.parameters())


@pytest.mark.parametrize("name", ["ptq_static", "ptq_dynamic", "weight_only"])
def test_all_kinds_of_layers(name, tmp_path):
    """Tied weights stay tied; what attention takes without calling it is left, with a note."""
    model, ids = mixed()
    dense, wanted = copy.deepcopy(model), model(ids).detach()
    result = mp.compress(model, [stage(name)], dummy_input=ids, calibration_data=[ids])
    found = result.model(ids).detach()
    assert 10 * math.log10(wanted.square().sum() / (wanted - found).square().sum()) > 25
    assert {name for name, module in result.model.named_modules() if isinstance(module, FrozenLayer)} == {
        "embedding",
        "conv",
        "back",
        "head",
    }
    assert result.model.embedding.weight_integers is result.model.head.weight_integers
    assert isinstance(result.model.norm, nn.Identity)  # folded, as example inputs prove
    assert any("'attention.out_proj' is a part of nn.MultiheadAttention" in note for note in result.notes)
    if name == "ptq_static":
        uri = result.save(tmp_path / "out")
        assert torch.equal(mp.load(uri, into=dense).eval()(ids), found)
        torch.testing.assert_close(mp.load(uri)(ids), found, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(thawed(result.model)(ids), found, rtol=1e-5, atol=1e-5)


def test_fused_encoders_see_the_rounding():
    """torch's fast path takes weights without calling layers; a quantized one goes the plain way."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    model = nn.TransformerEncoder(layer, 2).eval()
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    result = mp.compress(model, [stage("ptq_dynamic", quantBits=2)], dummy_input=x)
    with torch.no_grad():
        fused, plain = result.model(x), model(x)
    torch.testing.assert_close(fused, result.model(x).detach(), rtol=1e-5, atol=1e-5)
    assert float((fused - plain).abs().max()) > 0.05


@pytest.mark.parametrize("observer", ["minMax", "ema", "percentile", "kl", "mse"])
def test_observers_find_ranges(task, observer):
    """With each the layers are near what they were, and no range is wider than all there is."""
    x = task.x.clone()
    result = compress(task, stage(calibration={"observer": observer}), calibration_data=[x[:16], x[16:]])
    assert min(layer["sqnrDb"] for layer in result.metrics["stages"][0]["layers"]) > 20
    scale = result.model[0].input_quantizer.scale
    span = float((x.max() - x.min()) / 255)
    assert float(scale) <= span * 1.0001
    assert float(scale) == pytest.approx(span, rel=1e-5) or observer != "minMax"
    assert float(scale) < 0.999 * span or observer not in ("ema", "kl")


def test_ranges_come_from_the_evaluation_else(task):
    """Without calibration data; without either it is an error before anything runs."""
    result = mp.compress(task.model, [stage()], task.evaluator())
    span = float((task.x.max() - task.x.min()) / 255)
    assert float(result.model[0].input_quantizer.scale) == pytest.approx(span, rel=1e-5)
    with pytest.raises(InvalidSpecError, match="finds ranges of inputs in data: there is neither calibration data"):
        mp.compress(task.model, [stage()], dummy_input=task.x[:1])


def test_entries_override_and_exclude(task):
    """Field by field; what is excluded stays as it is."""
    entries = [{"opTypes": ["Linear"], "targets": ["weight"]}, {"opNames": ["3"], "exclude": True}]
    result = compress(task, stage(configList=entries, quantBits={"weight": 4}))
    layer = result.model[0]
    assert (layer.weight_quantizer.dtype, layer.input_quantizer) == ("int4", None)
    assert type(result.model[3]) is nn.Linear


# Along with a training ------------------------------------------------------------------------------------------------


def test_training_leaves_modes_and_norms_as_they_were():
    """Dropout's p, a norm's eps and momentum: what is not folded is what it was."""
    model, ids = mixed()
    model.norm.eps, model.norm.momentum = 0.01, 0.2
    data = mp.TorchEvaluator(
        training_func=_train_mixed,
        optimizers=mp.trace(torch.optim.SGD)(model.parameters(), lr=0.01),
        training_step=lambda batch, model: model(batch).square().mean(),
        dummy_input=ids,
    )
    result = mp.compress(model, [stage("qat", foldBatchNorm=False, maxSteps=3, epochs=None)], data)
    assert result.model.drop.p == 0.3
    assert (result.model.norm.eps, result.model.norm.momentum) == (0.01, 0.2)
    assert result.model.training == model.training
    assert int(result.model.norm.num_batches_tracked) == int(model.norm.num_batches_tracked) + 3


def _train_mixed(model, optimizer, training_step, scheduler, max_steps, max_epochs):
    ids = torch.randint(1, 20, (4, 8), generator=torch.Generator().manual_seed(1))
    model.train()
    for _ in range(max_steps):
        optimizer.zero_grad()
        training_step(ids, model).backward()
        optimizer.step()


@pytest.mark.parametrize("name", ["qat", "lsq"])
def test_a_norm_is_folded_behind_the_training(task, name):
    """The integers stay what they are: the outputs are those of the same training without a fold."""
    plain = compress(task, stage(name, foldBatchNorm=False)).model.eval()
    folded = compress(Task(), stage(name)).model.eval()
    assert isinstance(folded[1], nn.Identity)
    torch.testing.assert_close(folded(task.x), plain(task.x), rtol=1e-4, atol=1e-5)


def test_training_beats_rounding_at_two_bits(task):
    """From one trained net: what trained through two bits has a smaller loss than what was rounded behind."""
    trained = compress(task, {"finetune": {"epochs": 30}}).model
    losses = {}
    for name in ("ptq_static", "qat", "lsq"):
        other = Task()
        other.model = trained
        block = stage(name, quantBits=2, **({} if name == "ptq_static" else {"epochs": 20}))
        model = compress(other, block).model.eval()
        losses[name] = float(torch.nn.functional.cross_entropy(model(task.x), task.y).detach())
    assert losses["qat"] < 0.8 * losses["ptq_static"], losses
    assert losses["lsq"] < 0.5 * losses["ptq_static"], losses


def test_start_step(task):
    """Before it nothing is rounded: losses are those of a later start, and of no other."""
    losses: dict[int, list[float]] = {}
    for start in (0, 3, 4):
        other = Task()
        step, seen = other.training_step, losses.setdefault(start, [])

        def noted(batch, model, step=step, seen=seen):
            loss = step(batch, model)
            seen.append(float(loss.detach()))
            return loss

        other.training_step = noted
        compress(other, stage("qat", startStep=start, maxSteps=5, epochs=None, quantBits=2))
    assert losses[3][:3] == losses[4][:3]
    assert losses[3][3] != losses[4][3]
    assert losses[0][0] != losses[3][0]
    with pytest.raises(CompressionError, match="so nothing was rounded from step 5 on"):
        compress(Task(), stage("qat", startStep=5, maxSteps=3, epochs=None))


@pytest.mark.parametrize("name", ["qat", "lsq"])
def test_a_stopped_training_goes_on(task, name, tmp_path):
    """Stopped within, it ends with the very integers of one that was left alone."""
    recipe = [Stage.model_validate(stage(name, quantBits=4))]

    def run(task: Task, **options: Any) -> Any:
        return run_stages(Subject(task.model, task.evaluator()), recipe, seed=3, scores=False, **options)

    run(task)
    steps = [0]

    def stop() -> None:
        steps[0] += 1
        if steps[0] > 5:
            raise Stopped

    store, other = open_store(str(tmp_path)), Task()
    with pytest.raises(Stopped):
        run(other, stop=stop, checkpointer=Checkpointer(store, "", "same", 1, every=1))
    other = Task()
    outcome = run(other, checkpointer=Checkpointer(store, "", "same", 2))
    assert outcome.resumed
    for key, value in other.model.state_dict().items():
        assert torch.equal(value, task.model.state_dict()[key]), key


@pytest.mark.parametrize("name", ["qat", "lsq"])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_together_with_pruning_and_a_teacher(task, name, order):
    """In any order: pruned weights are zero among the integers, too."""
    prune = {
        "algorithm": "level",
        "shrink": False,
        "configList": [{"opNames": ["0"], "sparsity": 0.5}],
        "schedule": {"type": "agp", "startStep": 1, "endStep": 6, "frequency": 2},
    }
    block = stage(name)["quantize"]
    del block["epochs"]
    parts = [{"prune": prune}, {"distill": {}}, {"quantize": block}]
    result = compress(task, {"together": {"epochs": 3, "of": [parts[number] for number in order]}})
    layer = result.model[0]
    assert int((layer.weight_integers == 0).sum()) >= 12
    mask = result.masks["0"]["weight"]
    assert int(mask.sum()) == 12
    assert not layer.weight[mask == 0].any()


def test_pruned_weights_and_methods_without_a_zero(task):
    """They would come back, so it is refused."""
    prune = {"algorithm": "level", "shrink": False, "configList": [{"opNames": ["0"], "sparsity": 0.5}]}
    with pytest.raises(InvalidSpecError, match="the pruned weights of '0' would not stay zero: bnn has no zero"):
        compress(task, {"prune": prune}, stage("bnn"))
    result = compress(Task(), {"prune": prune}, stage("ptq_static", scheme={"weight": "affine"}))
    assert int((result.model[0].weight == 0).sum()) >= 12


def test_channels_that_differ_a_thousandfold():
    """A depthwise convolution's: with a scale of its own for each, or with the norm that makes them alike in it, no
    answer changes; with one scale for all those as they are, one of seven does."""
    scores = {}
    for granularity, folded in (("channel", False), ("tensor", True), ("tensor", False)):
        task = SeparableTask()
        scores[granularity, folded] = compress(
            task, stage(granularity=granularity, foldBatchNorm=folded), target={"format": "eager"}
        ).metrics["compressed"]["default"]
    assert scores["channel", False] == scores["tensor", True] == 1.0
    assert scores["tensor", False] < 0.9


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"backend": "torchao"}, "results of quantize are not made for torchao"),
        ({"backend": "openvino"}, "what openvino makes is measured as openvino, and target.format is eager"),
        ({"quantBits": {"weights": 4}}, "'weights' is no target; write weight, input or output"),
        ({"quantBits": {"weight": 9}}, r"quantBits.weight: '9' is not a number from 1 to 8"),
        ({"quantDtype": {"weight": "fp8"}}, "'fp8' is not int2 to uint8"),
        ({"quantBits": 8, "quantDtype": "int8"}, "quantDtype says the bits of the weight already"),
        ({"quantBits": 1}, "ptq_static takes 2 to 8 bits, not 1"),
        ({"algorithm": "lsq", "epochs": 1, "scheme": "affine"}, "lsq is symmetric"),
        ({"algorithm": "weight_only", "targets": ["input"]}, "weight_only leaves inputs as they are"),
        ({"algorithm": "weight_only", "calibration": {}}, "weight_only needs no range of activations here"),
        ({"algorithm": "qat"}, "nothing says how long to train"),
        ({"epochs": 1}, "ptq_static trains nothing"),
        ({"startStep": 1}, "ptq_static trains nothing"),
        ({"groupSize": 32}, "there are groups only with granularity group"),
        ({"algorithm": "bnn", "epochs": 1, "granularity": "channel"}, "bnn has one scale for a weight"),
        ({"configList": [{"opNames": ["0"], "exclude": True}]}, "every entry excludes"),
        ({"configList": [{"opNames": ["0"], "exclude": True, "quantBits": 4}, *ALL]}, "takes nothing but selectors"),
        ({"calibration": {"percentile": 99.0}}, "minMax takes no percentile"),
        ({"configList": [{"opNames": ["9"]}]}, "the model has no module '9'"),
        ({"configList": [{"opNames": ["1"]}]}, "'1' is a BatchNorm1d"),
        ({"granularity": "group", "groupSize": 3}, "groups of 3 do not divide the 4 weights of an output of '0'"),
    ],
)
def test_blocks_that_are_refused(task, block, message):
    """Each with its place and what to do."""
    with pytest.raises((SpecError, InvalidSpecError), match=message):
        compress(task, {"quantize": {"configList": ALL, **block}})


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([stage(), {"finetune": {"epochs": 1}}], "weights have few bits, which this stage cannot change"),
        ([{"together": {"epochs": 1, "of": [{"quantize": {"configList": ALL}}]}}], "ptq_static needs no training"),
        (
            [
                {
                    "together": {
                        "epochs": 1,
                        "of": [
                            {"prune": {"configList": [{"opNames": ["0"], "sparsity": 0.5}]}},
                            {"quantize": {"algorithm": "qat", "configList": ALL}},
                        ],
                    }
                }
            ],
            "trains through rounded weights, which cannot be cut meanwhile",
        ),
    ],
)
def test_recipes_that_are_refused(task, stages, message):
    """Integers neither train nor shrink."""
    with pytest.raises(SpecError, match=message):
        compress(task, *stages)


def test_two_stages_of_different_layers(task):
    """Each takes its own; a layer is quantized once."""
    first = stage("weight_only", configList=[{"opNames": ["0"]}], quantBits=4)
    result = compress(task, first, stage(configList=[{"opNames": ["3"]}]))
    assert result.model[0].weight_quantizer.dtype == "int4"
    assert result.model[3].weight_quantizer.dtype == "int8"
    with pytest.raises(InvalidSpecError, match="'0' is quantized already"):
        compress(Task(), first, stage(configList=[{"opNames": ["0"]}]))


def test_other_tools_spellings(task):
    """NNI's and Neural Compressor's, in Python."""
    entry = {"quant_types": ["weight", "input"], "quant_bits": {"weight": 8, "input": 8}, "op_types": ["Linear"]}
    result = compress(task, {"quantize": {"quantizer": "naive", "config_list": [entry]}})
    assert result.metrics["stages"][0]["algorithm"] == "ptq_static"
