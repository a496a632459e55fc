"""quantize in a loop of the user's own: quantizers from the first step on, integers behind the last."""

from __future__ import annotations

import copy

import pytest
import torch
from own_loop import Task, level
from torch import nn

import modelpress as mp
from modelpress.api.errors import SpecError
from modelpress_runner.edits.quantize import FrozenLayer, QuantizedLayer

QAT = {"quantize": {"algorithm": "qat", "config_list": [{"op_types": ["Linear"], "quant_bits": 4}]}}


@pytest.mark.parametrize("name", ["qat", "lsq"])
def test_a_loop_trains_through_rounded_numbers(name, tmp_path):
    """The user's optimizer goes on with the parameters that it has; masks hold among the integers."""
    task = Task()
    dense = copy.deepcopy(task.model)
    weight = task.model[0].weight
    stages = [level(0.5), {"quantize": {**QAT["quantize"], "algorithm": name}}]
    compression = mp.prepare_compression(task.model, stages, dummy_input=task.x[:1], optimizers=task.optimizer)
    assert isinstance(task.model[0], QuantizedLayer)
    assert task.model[0].weight is weight
    callbacks = compression.callbacks
    callbacks.on_train_begin()
    task.train(callbacks, 3)
    with torch.no_grad():
        trained = task.model.eval()(task.x)
        task.model.train()
    callbacks.on_train_end()
    result = compression.result
    assert isinstance(result.model[0], FrozenLayer)
    assert isinstance(result.model[1], nn.Identity)
    assert int((result.model[0].weight == 0).sum()) >= 16
    assert not result.model[0].weight[result.masks["0"]["weight"] == 0].any()
    torch.testing.assert_close(result.model.eval()(task.x), trained, rtol=1e-4, atol=1e-5)
    uri = result.save(tmp_path / "out")
    assert torch.equal(mp.load(uri, into=dense).eval()(task.x), result.model.eval()(task.x))
    assert [layer["name"] for layer in result.metrics["stages"][1]["layers"]] == ["0", "3"]


def test_what_needs_no_training_has_no_place_there():
    """It would see weights that still change."""
    task = Task()
    stage = {"quantize": {"config_list": [{"op_types": ["Linear"]}]}}
    with pytest.raises(SpecError, match="ptq_static needs no training"):
        mp.prepare_compression(task.model, [stage], dummy_input=task.x[:1])
