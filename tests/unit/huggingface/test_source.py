"""What may be wrong with the folder of a pretrained model, said in one sentence before anything runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tiny_models import bert, gpt2, rows, settings, subject, vit

from modelpress_runner.errors import InvalidModelError, InvalidSpecError, RunnerError
from modelpress_runner.huggingface.source import Pretrained, load
from modelpress_runner.inputs.gather import digest_of
from modelpress_runner.inputs.hub import fetch
from modelpress_runner.inputs.uri_resolver import UriResolver

PAIR = {"text": "red cat", "positive": "cat"}


def changed(folder: Path, **keys: object) -> None:
    """config.json with other values; None removes a key."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **keys}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def opened(folder: Path, task: str, **changes: object) -> Pretrained:
    """The model in a folder, by the way that a run takes."""
    spec = settings(task, source={"uri": str(folder)}, **changes)
    return load(spec, fetch(spec.source, UriResolver(None, folder.parent / "fetched")))


def refused(folder: Path, task: str, error: type[RunnerError], path: str, message: str) -> None:
    """Opening fails with this one sentence."""
    with pytest.raises(error) as caught:
        opened(folder, task)
    assert str(caught.value).startswith(f"spec.model.huggingFace.{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_that_are_pickled_are_never_opened(tmp_path):
    """pytorch_model.bin alone is refused by its name; beside safetensors it is not looked at."""
    folder = bert(tmp_path / "model")
    (folder / "pytorch_model.bin").write_bytes(b"cposix\nsystem\n(S'false'\ntR.")
    opened(folder, "feature-extraction")
    (folder / "model.safetensors").unlink()
    refused(folder, "feature-extraction", InvalidSpecError, "source.uri", "holds pickled weights (pytorch_model.bin)")
    (folder / "pytorch_model.bin").unlink()
    refused(folder, "feature-extraction", InvalidSpecError, "source.uri", "has no model.safetensors")


def test_folders_without_a_model(tmp_path):
    """No folder, and one without config.json."""
    refused(tmp_path / "none", "causal-lm", InvalidSpecError, "source.uri", "there is no folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "causal-lm", InvalidSpecError, "source.uri", "has no config.json")


def test_code_in_the_folder_is_never_run(tmp_path):
    """A model that needs code of its own is refused; code that stands beside a known model stays unread."""
    folder = bert(tmp_path / "model")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass M: pass\nclass C: pass\n")
    auto = {"AutoConfig": "evil.C", "AutoModel": "evil.M", "AutoModelForCausalLM": "evil.M"}
    changed(folder, auto_map=auto)
    opened(folder, "feature-extraction")
    changed(folder, model_type="evil")
    refused(folder, "feature-extraction", InvalidModelError, "source.uri", "needs code of its own, which is never run")
    changed(folder, auto_map=None)
    refused(folder, "feature-extraction", InvalidModelError, "source.uri", "transformers knows no model_type 'evil'")
    changed(folder, model_type="berd")
    refused(folder, "feature-extraction", InvalidModelError, "source.uri", "did you mean bert?")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("kind", "task", "message"),
    [
        ("BertModel", "text-classification", "the source is a BertModel, and text-classification needs a BertForSequ"),
        ("BertForSequenceClassification", "token-classification", "needs a BertForTokenClassification"),
        ("BertForMaskedLM", "causal-lm", "the source is a BertForMaskedLM, and causal-lm needs a BertLMHeadModel"),
        ("BertModel", "image-classification", "a bert model cannot do image-classification"),
    ],
)
def test_a_task_that_the_model_was_not_made_for(kind, task, message, tmp_path):
    """A head of another task may fit by its shape, and would give numbers that mean nothing."""
    refused(bert(tmp_path, kind), task, InvalidModelError, "task", message)


def test_encoder_decoders_are_refused(tmp_path):
    """They need a second input, which no task here has."""
    config = transformers.T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    transformers.T5Model(config).save_pretrained(tmp_path)
    refused(tmp_path, "feature-extraction", InvalidModelError, "task", "t5 is an encoder-decoder")


def test_weights_that_lack_something(tmp_path):
    """A head that is missing would be made at random; a missing pooler is of no use to embeddings."""
    from safetensors.torch import load_file, save_file

    def without(folder: Path, beginning: str) -> Path:
        tensors = load_file(folder / "model.safetensors")
        kept = {name: value for name, value in tensors.items() if not name.startswith(beginning)}
        assert kept.keys() != tensors.keys()
        save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    folder = without(bert(tmp_path / "head", "BertForSequenceClassification"), "classifier")
    refused(folder, "text-classification", InvalidModelError, "source.uri", "the weights lack classifier.bias")
    folder = without(bert(tmp_path / "pooler"), "pooler")
    first = subject(folder, "feature-extraction", rows("validation", PAIR))
    second = subject(folder, "feature-extraction", rows("validation", PAIR))
    assert torch.equal(first.model.pooler.dense.weight, second.model.pooler.dense.weight)
    shutil.copy(bert(tmp_path / "wide", hidden_size=32) / "model.safetensors", folder / "model.safetensors")
    refused(folder, "feature-extraction", InvalidModelError, "source.uri", "the model does not load")
    (folder / "model.safetensors").write_bytes(b"no tensors")
    refused(folder, "feature-extraction", InvalidModelError, "source.uri", "the model does not load")


def test_tokenizers_that_are_missing_or_too_large(tmp_path):
    """Without a tokenizer, with one of another model, with a damaged one."""
    folder = bert(tmp_path / "model")
    wide = bert(tmp_path / "small", vocab_size=10)
    refused(wide, "feature-extraction", InvalidModelError, "source.uri", "the tokenizer has 20 tokens and the model 10")
    (folder / "tokenizer.json").write_text("{")
    refused(folder, "feature-extraction", InvalidModelError, "source.uri", "the tokenizer does not load")
    (folder / "tokenizer.json").unlink()
    refused(folder, "feature-extraction", InvalidModelError, "source.uri", "there is no tokenizer beside the weights")


def test_images_need_a_processor(tmp_path):
    """preprocessor_config.json says how images become pixels."""
    folder = vit(tmp_path)
    (folder / "preprocessor_config.json").unlink()
    refused(folder, "image-classification", InvalidModelError, "source.uri", "there is no preprocessor_config.json")


def test_the_end_mark_pads_where_nothing_else_does(tmp_path):
    """GPT-2 and its kin have no padding token; their classifiers look for it in the model's configuration."""
    pretrained = opened(gpt2(tmp_path), "causal-lm")
    assert pretrained.processor.pad_token == "[EOS]"
    assert pretrained.model.config.pad_token_id == pretrained.processor.eos_token_id


def test_weights_are_float32(tmp_path):
    """Half precision in the folder is read as float32, which training needs."""
    with torch.random.fork_rng():
        folder = bert(tmp_path)
    model = transformers.BertModel.from_pretrained(folder).half()
    model.save_pretrained(folder)
    assert opened(folder, "feature-extraction").model.dtype == torch.float32


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/hostname", "sub/a.safetensors", ".a.safetensors"])
def test_shards_lie_in_the_folder(name, tmp_path):
    """An index that names another place, or a hidden file: only what the digest covers is read."""
    folder = bert(tmp_path / "model")
    shutil.copy(folder / "model.safetensors", tmp_path / "outside.safetensors")
    shutil.copy(folder / "model.safetensors", folder / ".a.safetensors")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "model-1.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    before = digest_of(folder)
    opened(folder, "feature-extraction")
    index["weight_map"][min(weights)] = name
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, "feature-extraction", InvalidModelError, "source.uri", "which is no safetensors file in the folder")
    (folder / "model-1.safetensors").write_bytes(b"other")
    assert digest_of(folder) != before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested deeper than 64 levels"),
        ("[]", "config.json is no JSON object"),
        ('{"model_type": []}', "knows no model_type []"),
        ('{"model_type": {"a": 1}}', "knows no model_type"),
        ("1" * 5000, "config.json is no JSON object"),
        (" " * (4 * 2**20) + "{}", "it has more than 4194304 bytes"),
        ("\x00", "config.json is no JSON object"),
    ],
)
def test_configurations_that_are_none(text, message, tmp_path):
    """Depth, long numbers, other types and too many bytes end in a sentence."""
    folder = bert(tmp_path / "model")
    (folder / "config.json").write_text(text)
    refused(folder, "feature-extraction", InvalidModelError, "source.uri", message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 10**7}, "num_hidden_layers in config.json is larger than weights of"),
        ({"num_hidden_layers": 200_000}, "config.json asks for more layers than weights of"),
        ({"hidden_size": 200_000, "num_attention_heads": 1}, "config.json asks for more numbers than"),
        ({"vocab_size": 2**40}, "vocab_size in config.json is larger than"),
        ({"num_labels": 10**9}, "num_labels in config.json is larger than"),
        ({"max_position_embeddings": 2**40}, "config.json asks for more numbers than"),
        ({"some_depths": [2**17] * 100}, "some_depths in config.json is larger than"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantized weights are not read"),
        ({"transformers_weights": "../outside.safetensors"}, "it names its weights itself"),
        ({"use_pretrained_backbone": True}, "takes a part of its weights from elsewhere"),
    ],
)
def test_sizes_are_held_against_the_weights(change, message, tmp_path):
    """Nothing is built that the weights cannot fill, and nothing is taken from elsewhere."""
    folder = bert(tmp_path / "model")
    changed(folder, **change)
    refused(folder, "feature-extraction", InvalidModelError, "source.uri", message)


def test_no_file_names_the_kernels(tmp_path):
    """An attention that a package would fetch as code is not looked at: transformers chooses for this machine."""
    folder = bert(tmp_path / "model")
    honest = opened(folder, "feature-extraction").model.config._attn_implementation
    for key in ("attn_implementation", "_attn_implementation", "experts_implementation"):
        changed(folder, **{key: "kernels-community/flash-attn"})
        assert opened(folder, "feature-extraction").model.config._attn_implementation == honest == "sdpa"
        changed(folder, **{key: None})


def test_dropout_is_set_as_asked(tmp_path):
    """In training mode a model without dropout gives the same twice; the configuration that is saved has it so."""
    noisy = {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5}
    folder = bert(tmp_path / "bert", **noisy)
    ids = torch.tensor([[5, 6, 7]])
    for asked, same in ((None, False), (0.0, True), (0.25, False)):
        model = opened(folder, "feature-extraction", **({} if asked is None else {"dropout": asked})).model.train()
        one, two = (model(ids).last_hidden_state for _ in range(2))
        assert torch.equal(one, two) is same
        assert {getattr(model.config, name) for name in noisy} == {0.5 if asked is None else asked}
    model = opened(gpt2(tmp_path / "gpt2"), "causal-lm", dropout=0.3).model
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.3}


def test_a_model_without_dropout_says_so(tmp_path):
    """ConvNeXt drops whole paths only."""
    config = transformers.ConvNextConfig(hidden_sizes=[4, 4], depths=[1, 1], num_stages=2)
    transformers.ConvNextForImageClassification(config).save_pretrained(tmp_path)
    with pytest.raises(InvalidModelError, match="convnext model has no dropout; leave dropout out"):
        opened(tmp_path, "image-classification", dropout=0.0)
