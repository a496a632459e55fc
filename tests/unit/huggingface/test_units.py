"""Heads, groups of keys, features, hidden width and depth of pretrained models, alone and together: proven, in the
configuration where one can say it, and equal when loaded."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_models import bert, decoder, rows, subject, vit

from modelpress.api.v1alpha1 import Stage
from modelpress_runner.edits.replay import read, replay, write
from modelpress_runner.engine.run import run_stages
from modelpress_runner.export.layout import LayoutError
from modelpress_runner.subject.subject import Subject

NAMES = {
    "bert": {
        "heads": r".*self\.(query|key|value)",
        "features": r".*intermediate\.dense",
        "hidden": r".*_embeddings|.*attention\.output\.dense|.*\.\d+\.output\.dense|.*pooler\.dense",
    },
    "vit": {
        "heads": r".*attention\.[qkv]_proj",
        "features": r".*mlp\.fc1",
        "hidden": r".*projection|.*o_proj|.*mlp\.fc2",
    },
    "llama": {
        "heads": r".*self_attn\.[qkv]_proj",
        "features": r".*(gate|up)_proj",
        "hidden": r".*embed_tokens|.*(o|down)_proj",
    },
}
HALF = {
    "heads": {"num_attention_heads": 1},
    "features": {"intermediate_size": 16},
    "hidden": {"hidden_size": 8},
    "depth": {"num_hidden_layers": 1},
}


def made(kind: str, folder: Path) -> Subject:
    """Of two layers."""
    if kind == "bert":
        texts = rows("validation", {"text": "the red cat", "label": "yes"})
        task = subject(bert(folder, "BertForSequenceClassification"), "text-classification", texts)
    elif kind == "vit":
        task = subject(vit(folder, layers=2), "image-classification")
    else:
        task = subject(decoder(folder, num_hidden_layers=2), "causal-lm")
    task.calibration_data = [task.dummy_input]
    return task


def stage(kind: str, unit: str) -> Stage:
    if unit == "depth":
        return Stage.model_validate({"dropLayers": {"count": 1}})
    entry: dict[str, Any] = {"opNamesRe": [NAMES[kind][unit]]}
    if unit == "hidden":
        entry["opTypes"] = ["Linear", "Conv2d" if kind == "vit" else "Embedding"]
    exact = unit != "hidden" or kind == "llama"
    return Stage.model_validate({"prune": {"sparsity": 0.5, "exact": exact, "configList": [entry]}})


def first(model: Any, inputs: Any) -> torch.Tensor:
    with torch.no_grad():
        return next(iter(model(**inputs).values()))


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    """Equal, but for the order of sums, which goes by how weights lie in memory."""
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("kind", "units"),
    [
        ("bert", "heads"),
        ("bert", "heads features hidden depth"),
        ("vit", "heads features hidden depth"),
        ("llama", "heads"),
        ("llama", "hidden"),
        ("llama", "heads features hidden depth"),
    ],
)
def test_half_of_each_unit_goes(kind: str, units: str, tmp_path: Path) -> None:
    """The width of a head is a number of its own in the decoder's configuration alone: in the others fewer heads can be
    said where hidden width shrinks as much. Features and depth alone are elsewhere."""
    task = made(kind, tmp_path / "dense")
    dense, inputs = copy.deepcopy(task.model), task.dummy_input
    outcome = run_stages(task, [stage(kind, unit) for unit in units.split()], seed=0)
    model = outcome.model.eval()
    again = copy.deepcopy(dense)
    replay(again, read(write(outcome.edits)))
    again.load_state_dict(model.state_dict())
    close(first(again, inputs), first(model, inputs))
    assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in dense.parameters())
    if kind != "llama" and units == "heads":
        with pytest.raises(LayoutError, match="no configuration of transformers says"):
            task.layout.write(model, inputs, tmp_path / "out")
        return
    task.layout.write(model, inputs, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    expected = {key: value for unit in units.split() for key, value in HALF[unit].items()}
    if kind == "llama":
        expected |= {"num_attention_heads": 2, "num_key_value_heads": 1} if "heads" in units else {}
        expected |= {"rms_norm_eps": 2e-6} if "hidden" in units else {}
    assert {key: config[key] for key in expected} == expected
    auto = {
        "bert": transformers.AutoModelForSequenceClassification,
        "vit": transformers.AutoModelForImageClassification,
        "llama": transformers.AutoModelForCausalLM,
    }[kind]
    loaded = auto.from_pretrained(tmp_path / "out").eval()
    close(first(loaded, inputs), first(model, inputs))
