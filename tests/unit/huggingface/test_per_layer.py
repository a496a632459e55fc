"""Pretrained models whose layers differ in width: saved, and loaded by the shipped loader without modelpress."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_models import bert, decoder, rows, subject

from modelpress.api.v1alpha1 import Stage
from modelpress_runner.edits.bypass import Bypass
from modelpress_runner.edits.cuts import Cut
from modelpress_runner.edits.replay import replay
from modelpress_runner.engine.run import run_stages
from modelpress_runner.export.layout import LayoutError
from modelpress_runner.subject.subject import Subject

ALONE = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from loader import load
model = load()
ids = torch.tensor([[5, 6, 7]])
tokens = model.generate(ids, max_new_tokens=8, do_sample=False, use_cache=True, pad_token_id=0, eos_token_id=None)
assert not any(name.partition(".")[0].startswith("modelpress") for name in sys.modules)
print(tokens.tolist())
"""


def uneven(task: Subject) -> Any:
    """Half of the first layer's features and a quarter of the third's; of the second layer a group of heads."""
    entries = [
        {"opNames": ["model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj"], "sparsity": 0.5},
        {"opNames": ["model.layers.2.mlp.gate_proj", "model.layers.2.mlp.up_proj"], "sparsity": 0.25},
        {"opNames": [f"model.layers.1.self_attn.{name}_proj" for name in "qkv"], "sparsity": 0.5},
    ]
    return run_stages(task, [Stage.model_validate({"prune": {"configList": entries}})], seed=0).model.eval()


def test_a_decoder_generates_the_same_where_there_is_no_modelpress(tmp_path: Path) -> None:
    """With its cache; config.json names the layers that differ, as transformers reads it."""
    task = subject(decoder(tmp_path / "dense"), "causal-lm")
    model = uneven(task)
    layout, out = task.layout.otherwise, tmp_path / "per_layer"
    with pytest.raises(LayoutError, match="layers differ in what they kept"):
        task.layout.write(model, task.dummy_input, tmp_path / "out")
    layout.write(model, task.dummy_input, out)
    plain = json.loads((out / "config.json").read_text())
    assert plain["intermediate_size"] == 32
    assert plain["per_layer_config"] == {
        "0": {"intermediate_size": 16},
        "1": {"num_attention_heads": 2, "num_key_value_heads": 1},
        "2": {"intermediate_size": 24},
    }
    done = subprocess.run([sys.executable, "-c", ALONE, str(out)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ids = torch.tensor([[5, 6, 7]])
    ours = model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=None)
    assert json.loads(done.stdout.splitlines()[-1]) == ours.tolist()
    # The second of four goes, so what was the third is number 1.
    replay(model, [Bypass("model.layers.1")])
    layout.write(model, task.dummy_input, tmp_path / "fewer")
    plain = json.loads((tmp_path / "fewer" / "config.json").read_text())
    assert plain["num_hidden_layers"] == 3
    assert plain["per_layer_config"] == {"0": {"intermediate_size": 16}, "1": {"intermediate_size": 24}}
    read = transformers.AutoConfig.from_pretrained(tmp_path / "fewer")
    assert [each.intermediate_size for each in read.per_layer_config] == [16, 24, 32]


def test_layers_without_a_number_of_their_own(tmp_path: Path) -> None:
    """An encoder; and what is narrower outside of layers has no place."""
    pair = {"text": "a cat", "positive": "cat"}
    task = subject(bert(tmp_path / "dense"), "feature-extraction", rows("validation", pair))
    model = copy.deepcopy(task.model)
    for number, count in enumerate((20, 24)):
        for module, axis in (("intermediate.dense", "out"), ("output.dense", "in")):
            replay(model, [Cut(f"encoder.layer.{number}.{module}", axis, tuple(range(count)))])
    task.layout.otherwise.write(model, task.dummy_input, tmp_path / "out")
    plain = json.loads((tmp_path / "out" / "config.json").read_text())
    assert plain["per_layer_config"] == {"0": {"intermediate_size": 20}, "1": {"intermediate_size": 24}}
    model.pooler.dense.weight = torch.nn.Parameter(model.pooler.dense.weight[:8].clone())
    with pytest.raises(LayoutError, match=r"pooler\.dense\.weight, in none of them, is narrower"):
        task.layout.otherwise.write(model, task.dummy_input, tmp_path / "other")
