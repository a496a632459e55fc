"""What every task can do, and what those of text share: columns, tokens and padding."""

from __future__ import annotations

import abc
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from modelpress.api.v1alpha1 import Columns, HuggingFace
from modelpress.api.v1alpha1.huggingface import TEXT_COLUMNS
from modelpress_runner.errors import InvalidSpecError
from modelpress_runner.evaluators.base import Score
from modelpress_runner.huggingface.source import Pretrained
from modelpress_runner.inputs.rows import Rows

Batch = dict[str, Any]
IGNORED = -100  # label of a place that counts neither in the loss nor in the score
DEFAULT_LENGTH = 128
_SENTENCE = "This sentence stands for whatever text the model will be given to read. "


class Task(abc.ABC):
    """A task on one model: made once, used for the model in every form that compression gives it.

    Args:
        spec: the recipe's huggingFace.
        pretrained: the dense model with its processor.
    """

    def __init__(self, spec: HuggingFace, pretrained: Pretrained) -> None:
        self.spec, self.config, self.processor = spec, pretrained.model.config, pretrained.processor
        self.accepted = frozenset(inspect.signature(pretrained.model.forward).parameters)

    @abc.abstractmethod
    def examples(self, rows: Rows) -> Sequence[Any]:
        """The rows, checked and ready for `batch`.

        Raises:
            InvalidSpecError: a column is missing, or a value is not what the task needs.
        """

    @abc.abstractmethod
    def batch(self, examples: Sequence[Any], whole: bool = False) -> Batch:
        """Examples as one batch on the CPU.

        Args:
            examples: some of what `examples` gave.
            whole: as long as the example inputs, for a form of the model that takes one length only.
        """

    @abc.abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """The mean loss of a batch: a scalar."""

    @abc.abstractmethod
    def score(self, model: nn.Module, batches: Iterable[Batch]) -> Score:
        """The score over all batches, gone through once; of `default` more is better."""

    @abc.abstractmethod
    def dummy_input(self) -> dict[str, torch.Tensor]:
        """Example inputs of the model: one row, full of content."""

    @abc.abstractmethod
    def unlabeled(self, rows: Rows) -> Sequence[Any]:
        """The rows, checked and ready for `inputs`; of labels nothing is asked.

        Raises:
            InvalidSpecError: a column is missing, or a value is not what the task needs.
        """

    @abc.abstractmethod
    def inputs(self, examples: Sequence[Any]) -> dict[str, torch.Tensor]:
        """What the model is called with for these examples, labeled or not: a batch for calibration."""


class TextTask(Task):
    """A task whose rows are texts."""

    def __init__(self, spec: HuggingFace, pretrained: Pretrained) -> None:
        super().__init__(spec, pretrained)
        self.columns = spec.columns or Columns()
        self.text_column = self.columns.text or TEXT_COLUMNS[spec.task]
        self.length = self._length()
        self.names = tuple(name for name in self.processor.model_input_names if name in self.accepted)

    def _length(self) -> int:
        limits = [self.processor.model_max_length]
        positions = getattr(self.config, "max_position_embeddings", None)
        if isinstance(positions, int) and positions > 0:
            # RoBERTa and its kin count positions from behind that of the padding token.
            offset = (self.config.pad_token_id or 0) + 1 if self.config.model_type in _OFFSET_POSITIONS else 0
            limits.append(positions - offset)
        most = min(limits)
        if self.spec.max_length is not None and self.spec.max_length > most:
            message = f"the model takes at most {most} tokens; give no more"
            raise InvalidSpecError(message, "spec.model.huggingFace.maxLength")
        return self.spec.max_length or min(most, DEFAULT_LENGTH)

    def texts(self, rows: Rows, column: str, field: str) -> list[str]:
        """The texts of one column; `field` of columns names it."""
        path = f"spec.model.huggingFace.columns.{field}"
        rows.need(column, path)
        values = rows.column(column)
        for number, value in enumerate(values, 1):
            if not isinstance(value, str) or not value.strip():
                empty = value is None or isinstance(value, str)
                found = "no text" if empty else f"the {type(value).__name__} {str(value)[:40]}"
                message = (
                    f"row {number} of {rows.where} has {found} in the column {column!r}; give text, or remove the row"
                )
                raise InvalidSpecError(message, path)
        return values

    def padded(self, encoded: Sequence[Mapping[str, Any]], whole: bool = False) -> dict[str, torch.Tensor]:
        """Encoded texts as tensors (texts, tokens), on the side that the tokenizer pads."""
        longest = self.length if whole else max(len(item["input_ids"]) for item in encoded)
        return {
            name: torch.tensor([self._filled(item[name], longest, self._fill(name)) for item in encoded])
            for name in self.names
        }

    def _filled(self, values: Sequence[int], length: int, fill: int) -> list[int]:
        missing = [fill] * (length - len(values))
        return [*missing, *values] if self.processor.padding_side == "left" else [*values, *missing]

    def _fill(self, name: str) -> int:
        if name == "input_ids":
            return int(self.processor.pad_token_id)
        return int(self.processor.pad_token_type_id) if name == "token_type_ids" else 0

    def encoded(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[dict[str, list[int]]]:
        """Token ids and what belongs to them, cut to the length; one dict a text."""
        given = self.processor(
            list(texts), None if pairs is None else list(pairs), truncation=True, max_length=self.length
        )
        return [{name: list(given[name][row]) for name in self.names} for row in range(len(texts))]

    def dummy_input(self) -> dict[str, torch.Tensor]:
        return self.padded(self.encoded([_SENTENCE * self.length]), whole=True)

    def inputs(self, examples: Sequence[Any]) -> dict[str, torch.Tensor]:
        return self.padded(examples, whole=True)


_OFFSET_POSITIONS = frozenset({"roberta", "xlm-roberta", "camembert", "longformer", "mpnet", "data2vec-text", "xmod"})


def forward(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> Any:
    """The model's output for inputs, on the model's device."""
    tensor = next(model.parameters(), None)
    device = torch.device("cpu") if tensor is None else tensor.device
    return model(**{name: value.to(device) for name, value in inputs.items()})


def label_ids(values: Sequence[Any], config: Any, where: str, unit: str = "row") -> list[int]:
    """Labels, names or numbers, as numbers of the model's classes; messages call the first one `<unit> 1 of <where>`.

    Raises:
        InvalidSpecError: the model has no such label.
    """
    path = "spec.model.huggingFace.columns.label"
    numbers = {str(name): int(number) for name, number in config.label2id.items()}
    out = []
    for row, value in enumerate(values, 1):
        number = numbers.get(value) if isinstance(value, str) else None
        if number is None and not isinstance(value, bool):
            text = value.strip() if isinstance(value, str) else str(value) if isinstance(value, int) else ""
            number = int(text) if text.isascii() and text.isdigit() and int(text) < config.num_labels else None
        if number is None:
            known = ", ".join(list(numbers)[:8]) + (", ..." if len(numbers) > 8 else "")
            found = "no label" if value is None or value == "" else f"the label {value!r}"
            raise InvalidSpecError(f"{unit} {row} of {where} has {found}; the model knows {known}", path)
        out.append(number)
    return out


def score_classes(model: nn.Module, batches: Iterable[Batch], classes: int) -> Score:
    """`classification_score` of a model that gives one row of logits for each label."""
    predicted, labels = [], []
    for batch in batches:
        predicted.append(forward(model, batch["inputs"])["logits"].argmax(-1).cpu())
        labels.append(batch["labels"])
    return classification_score(torch.cat(predicted), torch.cat(labels), classes)


def classification_score(predicted: torch.Tensor, labels: torch.Tensor, classes: int) -> Score:
    """Accuracy, and F1 as the mean over classes that occur in labels or predictions; `default` is the accuracy.

    Args:
        predicted: class numbers, of any shape.
        labels: class numbers of the same shape.
        classes: how many there are.
    """
    right = predicted == labels
    f1 = []
    for number in range(classes):
        hits = int((right & (labels == number)).sum())
        total = int((labels == number).sum()) + int((predicted == number).sum())
        if total:
            f1.append(2 * hits / total)
    accuracy = float(right.double().mean())
    return {"default": accuracy, "accuracy": accuracy, "f1": sum(f1) / len(f1)}
