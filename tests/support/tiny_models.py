"""Folders as save_pretrained writes them, with tiny models of random weights, and data for them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from modelpress.api.v1alpha1 import HuggingFace, Model
from modelpress_runner.huggingface.entry import PretrainedModel
from modelpress_runner.huggingface.source import quiet
from modelpress_runner.inputs.gather import Inputs
from modelpress_runner.inputs.rows import Rows
from modelpress_runner.subject.subject import Subject

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[EOS]"]
WORDS = ["red", "blue", "cat", "dog", "runs", "sleeps", "Anna", "Bob", "in", "Rome", "is", "the", "a", "big", "small"]
LENGTH = 12


def tokenizer(folder: Path, marks: bool = True, pad: bool = True) -> Any:
    """A tokenizer of whole words, with [CLS] and [SEP] around texts if `marks`, saved into `folder`."""
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    if marks:
        inner.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="[UNK]",
        pad_token="[PAD]" if pad else None,
        eos_token=None if marks else "[EOS]",
        cls_token="[CLS]" if marks else None,
        sep_token="[SEP]" if marks else None,
        model_max_length=LENGTH,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"]
        if marks
        else ["input_ids", "attention_mask"],
    )
    made.save_pretrained(folder)
    return made


def bert(folder: Path, kind: str = "BertModel", labels: Sequence[str] = ("no", "yes"), **changes: Any) -> Path:
    """A BERT of two layers: 16 wide, two heads, 32 in the feed-forward part."""
    settings: dict[str, Any] = {
        "vocab_size": len(SPECIAL) + len(WORDS),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": LENGTH,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "id2label": dict(enumerate(labels)),
        "label2id": {name: number for number, name in enumerate(labels)},
        **changes,
    }
    torch.manual_seed(0)
    with quiet():
        getattr(transformers, kind)(transformers.BertConfig(**settings)).save_pretrained(folder)
    tokenizer(folder)
    return folder


def gpt2(folder: Path) -> Path:
    """A GPT-2 of two layers whose output shares the weights of its input."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=len(SPECIAL) + len(WORDS),
        n_positions=LENGTH,
        n_embd=16,
        n_layer=2,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=4,
        eos_token_id=4,
    )
    with quiet():
        transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer(folder, marks=False, pad=False)
    return folder


def decoder(folder: Path, kind: str = "Llama", **changes: Any) -> Path:
    """A decoder of four layers with four heads on two of keys and values, Llama-shaped or another kind alike."""
    settings: dict[str, Any] = {
        "vocab_size": len(SPECIAL) + len(WORDS),
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": LENGTH,
        "bos_token_id": 4,
        "eos_token_id": 4,
        "initializer_range": 0.3,
        **changes,
    }
    torch.manual_seed(0)
    with quiet():
        config = getattr(transformers, f"{kind}Config")(**settings)
        getattr(transformers, f"{kind}ForCausalLM")(config).save_pretrained(folder)
    tokenizer(folder, marks=False, pad=False)
    return folder


def vit(folder: Path, labels: Sequence[str] = ("bright", "dark"), layers: int = 1) -> Path:
    """A ViT for images of 8 x 8 in patches of 4 x 4."""
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=8,
        patch_size=4,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        id2label=dict(enumerate(labels)),
        label2id={name: number for number, name in enumerate(labels)},
    )
    with quiet():
        transformers.ViTForImageClassification(config).save_pretrained(folder)
    settings = {
        "image_processor_type": "ViTImageProcessor",
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "size": {"height": 8, "width": 8},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def rows(name: str, *given: dict[str, Any]) -> Rows:
    """A split of the data."""
    return Rows(list(given), list(given[0]), name)


def settings(task: str, **changes: Any) -> HuggingFace:
    """What a recipe says under huggingFace."""
    return HuggingFace.model_validate(
        {"source": {"uri": "folder"}, "task": task, "batchSize": 4, "learningRate": 0.01, "weightDecay": 0.0, **changes}
    )


def subject(folder: Path, task: str, *splits: Rows, seed: int = 0, **changes: Any) -> Subject:
    """The model in `folder` with what trains and scores it."""
    spec = settings(task, **changes)
    inputs = Inputs({split.name: split for split in splits}, folder, "digest")
    return PretrainedModel(spec, inputs).subject(Model(hugging_face=spec), seed=seed, train=True)
