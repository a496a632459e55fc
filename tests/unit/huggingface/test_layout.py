"""The layout of transformers in an artifact: what a configuration can say is written, and proven; the rest is not."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_models import bert, gpt2, rows, subject, vit

import modelpress as mp
from modelpress_runner.artifact import files as artifact
from modelpress_runner.edits.cuts import Cut
from modelpress_runner.edits.replay import replay
from modelpress_runner.export.layout import LayoutError
from modelpress_runner.huggingface.layout import PretrainedLayout
from modelpress_runner.subject.subject import Subject

FFN = r"encoder\.layer\.\d+\.intermediate\.dense"
PAIR = {"text": "red cat", "positive": "cat"}


def cut(model: Any, *kept: int) -> None:
    """Leaves so many features in the feed-forward part of each layer."""
    for number, count in enumerate(kept):
        for module, axis in (("intermediate.dense", "out"), ("output.dense", "in")):
            replay(model, [Cut(f"encoder.layer.{number}.{module}", axis, tuple(range(count)))])


def outputs(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The first output."""
    with torch.no_grad():
        return next(iter(model(**inputs).values()))


def found(folder: Path) -> Subject:
    """A tiny BERT for embeddings."""
    return subject(bert(folder), "feature-extraction", rows("validation", PAIR))


def test_a_cut_that_is_alike_everywhere_is_a_smaller_size(tmp_path):
    """20 of 32 features in both layers: intermediate_size is 20, and AutoModel reads the very model."""
    made = found(tmp_path / "dense")
    small = copy.deepcopy(made.model)
    cut(small, 20, 20)
    made.layout.write(small, made.dummy_input, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["intermediate_size"] == 20
    assert config["architectures"] == ["BertModel"]
    again = transformers.AutoModel.from_pretrained(tmp_path / "out").eval()
    assert torch.equal(outputs(again, made.dummy_input), outputs(small, made.dummy_input))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("the red cat")["input_ids"] == [2, 16, 5, 7, 3]
    assert small.config.intermediate_size == 32  # the model in hand is as it was


def test_layers_that_differ_cannot_be_said(tmp_path):
    """20 in one layer and 24 in the other: no folder, and the reason."""
    made = found(tmp_path / "dense")
    small = copy.deepcopy(made.model)
    cut(small, 20, 24)
    with pytest.raises(LayoutError, match="layers differ in what they kept"):
        made.layout.write(small, made.dummy_input, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_masks_are_zeros_in_the_weights(tmp_path):
    """A model that was only masked keeps its configuration, and its zeros."""
    made = found(tmp_path / "dense")
    with torch.no_grad():
        made.model.encoder.layer[0].intermediate.dense.weight[::2] = 0
    made.layout.write(made.model, made.dummy_input, tmp_path / "out")
    again = transformers.AutoModel.from_pretrained(tmp_path / "out")
    assert int((again.encoder.layer[0].intermediate.dense.weight == 0).sum()) == 16 * 16


@pytest.mark.parametrize("task", ["causal-lm", "image-classification"])
def test_other_kinds_of_models(task, tmp_path):
    """Shared weights stay shared, the cache of keys and values is on again, an image processor lies beside them."""
    if task == "causal-lm":
        made = subject(gpt2(tmp_path / "dense"), task)
    else:
        made = subject(vit(tmp_path / "dense"), task)
    made.layout.write(made.model, made.dummy_input, tmp_path / "out")
    if task == "causal-lm":
        again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
        assert again.config.use_cache
        assert again.lm_head.weight is again.transformer.wte.weight
    else:
        again = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
        processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out", backend="pil")
        assert processor.size["height"] == 8
    assert torch.equal(outputs(again, made.dummy_input), outputs(made.model, made.dummy_input))


def test_a_cut_of_gpt2_is_its_n_inner(tmp_path):
    """n_inner is left out in the source, where it means four times n_embd."""
    made = subject(gpt2(tmp_path / "dense"), "causal-lm")
    small = copy.deepcopy(made.model)
    for block in small.transformer.h:
        block.mlp.c_fc.weight = torch.nn.Parameter(block.mlp.c_fc.weight[:, :48].clone())
        block.mlp.c_fc.bias = torch.nn.Parameter(block.mlp.c_fc.bias[:48].clone())
        block.mlp.c_fc.nf = 48
        block.mlp.c_proj.weight = torch.nn.Parameter(block.mlp.c_proj.weight[:48].clone())
    made.layout.write(small, made.dummy_input, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["n_inner"] == 48
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert torch.equal(outputs(again, made.dummy_input), outputs(small, made.dummy_input))


def test_what_reads_back_differently_is_not_written(tmp_path):
    """A behaviour that no file holds (here another activation) is noticed by its outputs."""
    made = found(tmp_path / "dense")
    for layer in made.model.encoder.layer:
        layer.intermediate.intermediate_act_fn = torch.nn.ReLU()
    with pytest.raises(LayoutError, match="gives other outputs"):
        made.layout.write(made.model, made.dummy_input, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_of_another_class_is_not_written(tmp_path):
    """A stage may put something else in the model's place."""
    made = found(tmp_path / "dense")
    assert isinstance(made.layout, PretrainedLayout)
    with pytest.raises(LayoutError, match="it has become a Sequential"):
        made.layout.write(torch.nn.Sequential(made.model), made.dummy_input, tmp_path / "out")


def save(made: Subject, model: Any, uri: Path) -> artifact.Saved:
    """An artifact of this model."""
    return artifact.save(
        str(uri),
        model=model,
        dummy_input=made.dummy_input,
        edits=[],
        masks={},
        metrics={"baseline": {}, "compressed": {}},
        spec={"stages": [{"prune": {"algorithm": "l1", "configList": []}}]},
        layout=made.layout,
    )


def test_the_artefact_holds_the_layout_or_says_why_not(tmp_path):
    """The folder's files are in the manifest with their names; the card says how to load it; else there is a note."""
    made = found(tmp_path / "dense")
    saved = save(made, made.model, tmp_path / "good")
    names = {saved.manifest.name_of(entry) for entry in saved.manifest.files}
    assert {"transformers/config.json", "transformers/model.safetensors", "transformers/tokenizer.json"} <= names
    card = (tmp_path / "good" / saved.manifest.folder / "README.md").read_text()
    assert 'AutoModel.from_pretrained("transformers")' in card
    assert "- `transformers/`: the model and its tokenizer" in card
    small = copy.deepcopy(made.model)
    cut(small, 20, 24)
    saved = save(made, small, tmp_path / "uneven")
    assert not any("transformers" in entry.path for entry in saved.manifest.files)
    card = (tmp_path / "uneven" / saved.manifest.folder / "README.md").read_text()
    assert "- there is no folder transformers: no configuration of transformers says what was cut away" in card
    program = mp.load(tmp_path / "uneven")
    assert torch.allclose(outputs(program, made.dummy_input), outputs(small, made.dummy_input), atol=1e-5)
