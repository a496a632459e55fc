"""A model in the layout of transformers, compressed without any code of the user's."""

from typing import Annotated, Literal

from pydantic import Field

from .base import ApiModel, Uri

HuggingFaceTask = Literal[
    "text-classification", "token-classification", "feature-extraction", "causal-lm", "image-classification"
]
ColumnName = Annotated[str, Field(min_length=1, max_length=253)]

# Columns that are read where `columns` names no others.
TEXT_COLUMNS: dict[str, str] = {
    "text-classification": "text",
    "token-classification": "tokens",
    "feature-extraction": "text",
    "causal-lm": "text",
}
LABEL_COLUMNS: dict[str, str] = {"text-classification": "label", "token-classification": "tags"}
PAIR_COLUMN = "positive"  # of feature-extraction, which always has one


class FolderSource(ApiModel):
    """A folder as save_pretrained writes it: config.json, weights as .safetensors, tokenizer or image processor."""

    uri: Uri = Field(
        description="A folder: s3://, gs://, az://, file:// or, on one machine, a path, relative to the YAML file. Or "
        "hf://organisation/name, a repository of the Hugging Face Hub, where there is a network."
    )
    revision: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")] | None = (
        Field(default=None, description="Commit, tag or branch of an hf:// repository; None: main, which moves.")
    )


class Columns(ApiModel):
    """Names of the columns to read."""

    text: ColumnName | None = Field(
        default=None,
        description="None: `tokens` for token-classification (a list of words, or words with spaces between), else "
        "`text`.",
    )
    text_pair: ColumnName | None = Field(
        default=None,
        description="feature-extraction: the text that belongs to `text`; None: `positive`. text-classification: a "
        "second text; None: there is none.",
    )
    label: ColumnName | None = Field(
        default=None,
        description="None: `label` for text-classification, `tags` for token-classification (one for each word). "
        "Names of the model's labels, or their numbers.",
    )


class HuggingFace(ApiModel):
    """A pretrained model of the transformers library, with its tokenizer or image processor, its task and its training.

    Nothing of it is run as code: weights are read from safetensors alone, and code in the folder is never loaded.
    """

    source: FolderSource
    task: HuggingFaceTask = Field(
        description="What it does, and how it is scored on data.validation. text-classification, "
        "image-classification: accuracy; f1 is the mean over labels. token-classification: accuracy over words; f1 is "
        "that of whole entities (CoNLL-2003) where tags are B-, I- and O, else the mean over tags. "
        "feature-extraction: the share of texts whose own pair is the nearest of all by cosine similarity of "
        "mean-pooled embeddings; mrr is the mean reciprocal rank. causal-lm: minus the mean loss per token; perplexity "
        "is exp(loss)."
    )
    columns: Columns | None = Field(default=None, description="None: the task's own.")
    max_length: Annotated[int, Field(ge=2, le=1_048_576)] | None = Field(
        default=None,
        description="Tokens of a text; longer ones are cut, or go on in the next block (causal-lm). None: 128, or less "
        "where the model takes less.",
    )
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = Field(default=16, description="Rows of each training step.")
    learning_rate: Annotated[float, Field(gt=0, le=10)] = Field(
        default=5e-5, description="Of AdamW (arXiv 1711.05101): the greatest."
    )
    learning_rate_schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant",
        description="How it goes on through the steps of a training: as it is, down to 0 in a line, or down to 0 along "
        "half a wave of a cosine (arXiv 1608.03983).",
    )
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="The share of the steps in which it rises to that, in a line."
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        default=None,
        description="What every dropout of the model's configuration is set to, in the config.json that is written, "
        "too; None: as it is. With 0 a student learns its teacher's outputs in fewer steps.",
    )
    weight_decay: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.01, description="Of AdamW, on everything but biases and norms."
    )
