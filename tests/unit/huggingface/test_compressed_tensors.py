"""Folders with a quantization_config: what servers compute as one has one scheme, and what is tied stays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_models import bert, rows, subject

from modelpress.api.v1alpha1 import Stage
from modelpress_runner.engine.outcome import RecipeOutcome
from modelpress_runner.engine.run import run_stages
from modelpress_runner.errors import InvalidSpecError
from modelpress_runner.export.layout import LayoutError
from modelpress_runner.subject.subject import Subject

PAIR = {"text": "red cat", "positive": "cat"}


def quantized(folder: Path, half: bool = False, **block: Any) -> tuple[Subject, RecipeOutcome]:
    made = subject(bert(folder), "feature-extraction", rows("validation", PAIR))
    if half:
        made.model.to(torch.bfloat16)
    made.find_inputs()
    given = {"configList": [{"opTypes": ["default"]}], "backend": "compressed-tensors", "algorithm": "weight_only"}
    stages = [Stage.model_validate({"quantize": given | block})]
    return made, run_stages(made, stages, seed=0, scores=False)


def test_layers_of_several_schemes_in_half_precision(tmp_path: Path) -> None:
    """bf16 weights with scales in bf16: two groups, and transformers reads the very numbers."""
    made, outcome = quantized(
        tmp_path / "dense",
        half=True,
        configList=[{"opTypes": ["default"]}, {"opNamesRe": [r".*output\.dense"], "quantBits": 4}],
    )
    made.layout.write(outcome.model, made.dummy_input, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["format"] == "pack-quantized"
    assert [each["weights"]["num_bits"] for each in config["config_groups"].values()] == [8, 4]
    assert "encoder.layer.0.output.dense" in config["config_groups"]["group_1"]["targets"]
    again = transformers.AutoModel.from_pretrained(tmp_path / "out", dtype="auto").eval()
    with torch.no_grad():
        found, wanted = (each(**made.dummy_input).last_hidden_state for each in (again, outcome.model.eval()))
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, wanted)
    weight = outcome.model.get_submodule("encoder.layer.1.output.dense").weight
    assert torch.equal(again.encoder.layer[1].output.dense.weight, weight)


def test_layers_that_servers_fuse_share_a_scheme(tmp_path: Path) -> None:
    """Refused where they do not; torch's own numbers have no folder, and the reason says what to write."""
    apart = [{"opTypes": ["default"]}, {"opNamesRe": [r".*\.query"], "quantBits": 4}]
    with pytest.raises(InvalidSpecError, match=r"configList: .*query, .*key, .*value are quantized in several ways"):
        quantized(tmp_path / "dense", configList=apart)
    made, outcome = quantized(tmp_path / "torch", backend="torch", algorithm="ptq_dynamic", configList=apart)
    with pytest.raises(
        LayoutError, match="compressed-tensors has linear layers only; quantize with backend compressed"
    ):
        made.layout.write(outcome.model, made.dummy_input, tmp_path / "out")
    assert not (tmp_path / "out").exists()
