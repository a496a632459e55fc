"""A whole run on a tiny pretrained model, from request to artifact, in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from activations import mean_magnitude
from tiny_models import bert, rows, subject

import modelpress as mp
from modelpress.api.v1alpha1 import CompressionJobSpec
from modelpress.request import RunRequest
from modelpress.store import manifest, open_store
from modelpress_runner.errors import CompressionError, InvalidSpecError, RunnerError
from modelpress_runner.process.progress import silent
from modelpress_runner.process.stopping import StopFlag
from modelpress_runner.runs import trial
from modelpress_runner.runtime import rng

SENTENCES = [
    {"text": "the red cat sleeps", "label": "yes"},
    {"text": "the blue dog runs", "label": "no"},
    {"text": "red is big", "label": "yes"},
    {"text": "blue is small", "label": "no"},
]
FFN = r"bert\.encoder\.layer\.\d+\.intermediate\.dense"


def prune(sparsity: float, *names: str) -> dict[str, Any]:
    """A stage that cuts features out of feed-forward layers."""
    where = {"opNames": list(names)} if names else {"opNamesRe": [FFN]}
    return {"prune": {"algorithm": "l1", "configList": [{**where, "sparsity": sparsity}]}}


def run(folder: Path, *stages: dict[str, Any], purpose: str = "trial", **spec: Any) -> Any:
    """One run in a folder with model/ and sentences.jsonl; its result."""
    data = {"train": {"uri": "sentences.jsonl"}, "validation": {"uri": "sentences.jsonl"}}
    given = {
        "model": {
            "huggingFace": {
                "source": {"uri": "model"},
                "task": "text-classification",
                "batchSize": 2,
                "learningRate": 0.01,
            }
        },
        "data": data,
        "stages": list(stages),
        "benchmark": {"warmup": 0, "iterations": 1},
        "store": {"uri": str(folder / "store")},
        **spec,
    }
    request = RunRequest(
        purpose=purpose,
        namespace="default",
        name="tiny",
        uid="0" * 8,
        run_uid="1" * 8,
        root="root",
        prefix="root",
        spec=CompressionJobSpec.model_validate(given),
        base_path=str(folder),
    )
    with rng.fork_rng():
        return getattr(trial, {"trial": "run", "prepare": "prepare"}[purpose])(
            request, open_store(str(folder / "store")), silent, StopFlag()
        )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A BERT for two classes, and sentences."""
    bert(tmp_path / "model", "BertForSequenceClassification")
    (tmp_path / "sentences.jsonl").write_text("".join(json.dumps(row) + "\n" for row in SENTENCES))
    return tmp_path


def test_prune_finetune_and_load_again(folder: Path) -> None:
    """The score of the dense model, of the compressed one, and of what transformers reads from the artifact."""
    result = run(folder, prune(0.5), {"finetune": {"epochs": 20}}, target={"format": "transformers"})
    assert result.compressed["default"] == 1.0
    assert result.compressed["parameters"] == result.baseline["parameters"] - 2 * 16 * (16 + 1 + 16)
    found, _ = manifest.read(open_store(str(folder / "store" / "root")), "")
    out = folder / "store" / "root" / found.folder
    assert result.compressed["sizeBytes"] == (out / "transformers" / "model.safetensors").stat().st_size
    sentences = rows("validation", *SENTENCES)
    again = subject(out / "transformers", "text-classification", sentences)
    assert again.model.config.intermediate_size == 16
    assert again.evaluator.evaluate(again.model)["default"] == 1.0
    loaded = mp.load(folder / "store" / "root")
    dense = transformers.AutoModelForSequenceClassification.from_pretrained(folder / "model")
    eager = mp.load(folder / "store" / "root", into=dense)
    with torch.no_grad():
        logits = [model(**again.dummy_input)["logits"] for model in (again.model, loaded, eager.eval())]
    assert torch.allclose(logits[0], logits[1], atol=1e-5)
    assert torch.equal(logits[0], logits[2])


def test_a_target_that_cannot_say_what_was_cut(folder: Path) -> None:
    """One layer of two is cut: no configuration says that, so the target fails and names the way out."""
    stage = prune(0.5, "bert.encoder.layer.0.intermediate.dense")
    with pytest.raises(CompressionError, match=r"^spec\.target\.format: .*layers differ.*; use eager or pt2"):
        run(folder, stage, target={"format": "transformers"})
    result = run(folder, stage)
    assert result.compressed["parameters"] < result.baseline["parameters"]
    assert not list((folder / "store").rglob("transformers"))


def test_the_dense_model_is_prepared_once_and_again_for_other_data(folder: Path) -> None:
    """The same inputs find their baseline in the cache; other sentences, or other weights, are another dense model."""
    assert run(folder, prune(0.5), purpose="prepare").message == "the dense model is built"
    assert run(folder, prune(0.5), purpose="prepare").message == "the dense model was there already"
    (folder / "sentences.jsonl").write_text(json.dumps({"text": "a dog", "label": "no"}) + "\n")
    assert run(folder, prune(0.5), purpose="prepare").message == "the dense model is built"
    config = json.loads((folder / "model" / "config.json").read_text())
    (folder / "model" / "config.json").write_text(json.dumps({**config, "hidden_act": "relu"}))
    assert run(folder, prune(0.5), purpose="prepare").message == "the dense model is built"
    assert len(list((folder / "store" / "root" / "dense").iterdir())) == 3


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ({"data": {"validation": {"uri": "none.csv"}}}, InvalidSpecError, "spec.data.validation.uri: there is no file"),
        (
            {"data": None, "constraints": [{"metric": "default", "min": 0.5}]},
            InvalidSpecError,
            "spec.constraints[0].metric: the evaluator returns no metric 'default'",
        ),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_compressed(
    folder: Path, spec: dict[str, Any], error: type[RunnerError], message: str
) -> None:
    """One sentence that begins with the field."""
    with pytest.raises(error) as caught:
        run(folder, prune(0.5), **spec)
    assert str(caught.value).startswith(message)


def test_calibration_data_show_activations(folder: Path) -> None:
    """Three rows of data.calibration, in batches of two and one: the features of a layer that say least there go."""
    layer = "bert.encoder.layer.0.intermediate.dense"
    (folder / "other.jsonl").write_text("".join(json.dumps({"text": row["text"]}) + "\n" for row in SENTENCES[::-1]))
    data = {"calibration": {"uri": "other.jsonl", "samples": 3}}
    with mean_magnitude():
        stage = {"prune": {"algorithm": "mean_magnitude", "configList": [{"opNames": [layer], "sparsity": 0.5}]}}
        run(folder, stage, data=data)
    found = subject(folder / "model", "text-classification", rows("calibration", *SENTENCES[:0:-1]))
    seen: list[torch.Tensor] = []
    found.model.get_submodule(layer).register_forward_hook(lambda module, args, output: seen.append(output.detach()))
    found.model.eval()
    with torch.no_grad():
        for batch in found.calibration_data:
            found.model(**batch)
    means = torch.cat([output.flatten(0, -2) for output in seen]).double().abs().mean(dim=0)
    [file] = (folder / "store").rglob("shrink.json")
    cut = next(each for each in json.loads(file.read_text())["edits"] if each["module"] == layer)
    assert cut["kept"] == sorted(means.argsort()[len(means) // 2 :].tolist())
