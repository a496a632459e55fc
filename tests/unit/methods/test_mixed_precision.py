"""Layers in half precision between others: as a stage, in files, and where they cannot be."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import modelpress as mp
from modelpress.api.errors import SpecError
from modelpress_runner.edits.half_precision import HalfLayer, HalfPrecision
from modelpress_runner.edits.replay import read, write
from modelpress_runner.errors import CompressionError, InvalidModelError, InvalidSpecError


class Net(nn.Module):
    """Words (batch, 5) -> logits over words, by a tied head; a norm, and a layer that nothing calls."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.conv = nn.Conv1d(16, 16, 3, padding=1)
        self.norm = nn.LayerNorm(16)
        self.up = nn.Linear(16, 32)
        self.down = nn.Linear(32, 16)
        self.head = nn.Linear(16, 20)
        self.head.weight = self.embed.weight
        self.spare = nn.Linear(3, 3)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        x = self.embed(words)
        x = x + self.conv(x.transpose(1, 2)).transpose(1, 2)
        return self.head(self.norm(x + self.down(torch.relu(self.up(x)))))


@pytest.fixture
def net() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net().eval()


WORDS = torch.arange(10).reshape(2, 5)


def convert(model: nn.Module, example=WORDS, **block) -> mp.CompressionResult:
    return mp.compress(model, [{"mixed_precision": block}], dummy_input=example)


def halves(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, HalfLayer)]


def test_layers_get_half_precision_and_what_lies_between_does_not(net: Net) -> None:
    result = convert(net)
    model = result.model
    assert halves(model) == ["embed", "conv", "up", "down", "head"]
    assert model.head.weight is model.embed.weight
    types = {name: parameter.dtype for name, parameter in model.named_parameters()}
    assert {name for name, dtype in types.items() if dtype == torch.bfloat16} == {
        *("embed.weight", "conv.weight", "conv.bias", "up.weight", "up.bias", "down.weight", "down.bias", "head.bias"),
    }
    seen: list[torch.dtype] = []
    model.norm.register_forward_hook(lambda module, inputs, output: seen.extend((inputs[0].dtype, output.dtype)))
    with torch.no_grad():
        out, dense = model(WORDS), net(WORDS)
    assert seen == [torch.float32, torch.float32]
    assert out.dtype == torch.float32
    assert not torch.equal(out, dense)
    torch.testing.assert_close(out, dense, rtol=0.05, atol=0.05)
    assert halves(net) == []
    assert any("'spare' is not called" in note for note in result.notes)
    assert any(note.startswith("5 layers compute in bf16; on the example inputs") for note in result.notes)


def test_a_layer_computes_as_torch_does_in_half_precision() -> None:
    layer = nn.Linear(4, 3)
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    expected = copy.deepcopy(layer).to(torch.float16)(x.half()).float()
    HalfPrecision(("0",), "fp16").apply(model := nn.Sequential(layer))
    torch.testing.assert_close(model(x), expected, rtol=0, atol=0)


def test_excluded_layers_stay(net: Net) -> None:
    left = [{"op_types": ["default"]}, {"op_names": ["up", "spare"], "exclude": True}]
    assert halves(convert(net, config_list=left).model) == ["embed", "conv", "down", "head"]
    assert halves(convert(net, config_list=left[1:]).model) == ["embed", "conv", "down", "head"]


def test_a_weight_that_another_layer_has_stays_with_it(net: Net) -> None:
    result = convert(net, config_list=[{"op_types": ["Linear"]}])
    assert halves(result.model) == ["up", "down"]
    assert any("'head' shares a weight with 'embed'" in note for note in result.notes)
    with pytest.raises(InvalidSpecError, match=r"configList\[0\].opNames: 'head' shares a weight with 'embed'"):
        convert(net, config_list=[{"op_names": ["head"]}])


def test_files_are_half_as_large_and_open_again(net: Net, tmp_path) -> None:
    result = convert(net, config_list=[{"op_types": ["default"]}, {"op_names": ["spare"], "exclude": True}])
    uri = result.save(str(tmp_path / "out"))
    with torch.no_grad():
        expected = result.model.eval()(WORDS)
        torch.testing.assert_close(mp.load(uri)(WORDS), expected, rtol=0, atol=0)
        again = mp.load(uri, into=Net()).eval()
        torch.testing.assert_close(again(WORDS), expected, rtol=0, atol=0)
    assert halves(again) == halves(result.model)
    assert read(write(result.edits)) == result.edits
    dense, half = (result.metrics[side]["sizeBytes"] for side in ("baseline", "compressed"))
    assert half < 0.75 * dense  # of a net whose norm and whose spare layer stay


def test_what_overflows_is_an_error() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight.fill_(30_000.0)
    x = torch.ones(1, 4)
    with pytest.raises(CompressionError, match="in fp16 the outputs are not finite on the example inputs; write bf16"):
        convert(model, x, dtype="fp16")
    assert halves(convert(model, x, dtype="bf16").model) == ["0", "1"]


def test_pruned_weights_stay_zero_and_nothing_trains_behind(net: Net) -> None:
    prune = {"prune": {"algorithm": "level", "shrink": False, "config_list": [{"op_names": ["up"], "sparsity": 0.5}]}}
    result = mp.compress(net, [prune, {"mixed_precision": {}}], dummy_input=WORDS)
    assert float((result.model.up.weight == 0).float().mean()) == 0.5
    assert result.masks["up"]["weight"].dtype == torch.bfloat16
    with pytest.raises(SpecError, match="weights have few bits, which this stage cannot change"):
        mp.compress(net, [{"mixed_precision": {}}, {"finetune": {"epochs": 1}}], dummy_input=WORDS)


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ({"config_list": [{"op_names": ["spare"]}]}, r"configList\[0\].opNames: 'spare' is not called"),
        ({"config_list": [{"op_types": ["LSTM"]}]}, r"configList\[0\].opTypes: no module is of type 'LSTM'"),
        ({"config_list": [{"op_types": ["Linear"]}, {"op_types": ["Linear"], "exclude": True}]}, "is excluded again"),
        ({"dtype": "int8"}, "dtype"),
    ],
)
def test_what_cannot_be_is_said(net: Net, block, words) -> None:
    with pytest.raises((InvalidSpecError, SpecError), match=words):
        convert(net, **block)


def test_an_edit_of_another_model_is_refused(net: Net) -> None:
    for names in (("nowhere",), ("norm",), ("up", "up")):
        with pytest.raises(InvalidModelError, match=r"(the model|it) is not the one"):
            HalfPrecision(names, "bf16").apply(copy.deepcopy(net))
