"""token-classification: one tag for each word; a word's is that of its first token."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from modelpress.api.v1alpha1.huggingface import LABEL_COLUMNS
from modelpress_runner.errors import InvalidSpecError
from modelpress_runner.evaluators.base import Score
from modelpress_runner.huggingface.tasks.base import (
    IGNORED,
    Batch,
    TextTask,
    classification_score,
    forward,
    label_ids,
)
from modelpress_runner.inputs.rows import Rows

log = logging.getLogger("modelpress")

Entity = tuple[str, int, int]  # its kind, first word, first word behind it


class TokenClassification(TextTask):
    """Cross-entropy over words; accuracy over words and F1 of entities, or over tags where they mark none."""

    def examples(self, rows: Rows) -> Sequence[Any]:
        path = "spec.model.huggingFace.columns"
        label = self.columns.label or LABEL_COLUMNS[self.spec.task]
        rows.need(self.text_column, f"{path}.text")
        rows.need(label, f"{path}.label")
        out, cut = [], 0
        for number, (words, tags) in enumerate(zip(rows.column(self.text_column), rows.column(label), strict=True), 1):
            texts = _listed(words, number, rows, self.text_column, f"{path}.text")
            given = _listed(tags, number, rows, label, f"{path}.label")
            if len(texts) != len(given):
                message = (
                    f"row {number} of {rows.where} has {len(texts)} words and {len(given)} tags; give one tag a word"
                )
                raise InvalidSpecError(message, f"{path}.label")
            ids = label_ids(given, self.config, f"row {number} of {rows.where}", "word")
            example = self._encode([str(text) for text in texts], ids)
            cut += len(ids) - sum(item != IGNORED for item in example["labels"])
            out.append(example)
        if cut:
            log.warning(
                "%d words of %s have no token within maxLength, %d, and do not count", cut, rows.where, self.length
            )
        return out

    def unlabeled(self, rows: Rows) -> Sequence[Any]:
        path = "spec.model.huggingFace.columns.text"
        rows.need(self.text_column, path)
        listed = [
            [str(word) for word in _listed(words, number, rows, self.text_column, path)]
            for number, words in enumerate(rows.column(self.text_column), 1)
        ]
        return [self._encode(words, [IGNORED] * len(words)) for words in listed]

    def _encode(self, words: list[str], ids: list[int]) -> dict[str, Any]:
        given = self.processor(words, is_split_into_words=True, truncation=True, max_length=self.length)
        labels, before = [], None
        for word in given.word_ids():
            labels.append(IGNORED if word is None or word == before else ids[word])
            before = word
        return {**{name: list(given[name]) for name in self.names}, "labels": labels}

    def batch(self, examples: Sequence[Any], whole: bool = False) -> Batch:
        inputs = self.padded(examples, whole)
        length = inputs["input_ids"].shape[1]
        labels = torch.tensor([self._filled(example["labels"], length, IGNORED) for example in examples])
        return {"inputs": inputs, "labels": labels}

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        logits = forward(model, batch["inputs"])["logits"]
        labels = batch["labels"].to(logits.device)
        return nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED)

    def score(self, model: nn.Module, batches: Iterable[Batch]) -> Score:
        names = {int(number): str(name) for number, name in self.config.id2label.items()}
        predicted: list[list[int]] = []
        labels: list[list[int]] = []
        for batch in batches:
            best = forward(model, batch["inputs"])["logits"].argmax(-1).cpu()
            for row, truth in zip(best, batch["labels"], strict=True):
                predicted.append(row[truth != IGNORED].tolist())
                labels.append(truth[truth != IGNORED].tolist())
        flat, truths = (torch.tensor([item for row in rows for item in row]) for rows in (predicted, labels))
        score = classification_score(flat, truths, self.config.num_labels)
        if any(name.startswith(("B-", "I-")) for name in names.values()):
            score["f1"] = entity_f1(
                [[names[item] for item in row] for row in labels], [[names[item] for item in row] for row in predicted]
            )
        return score


def entities(tags: Sequence[str]) -> set[Entity]:
    """The entities that IOB2 tags mark; an I- that continues nothing of its kind begins one, as in CoNLL-2003."""
    found: set[Entity] = set()
    kind, start = "", 0
    for index, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        inside = prefix in ("B", "I") and name != ""
        if kind and (not inside or prefix == "B" or name != kind):
            found.add((kind, start, index))
            kind = ""
        if inside and not kind:
            kind, start = name, index
    return found


def entity_f1(labels: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> float:
    """Micro F1 over entities: right in kind and extent or wrong; 1 where there are none and none are found."""
    right = total = 0
    for truth, guess in zip(labels, predicted, strict=True):
        one, other = entities(truth), entities(guess)
        right += len(one & other)
        total += len(one) + len(other)
    return 2 * right / total if total else 1.0


def _listed(value: Any, number: int, rows: Rows, column: str, path: str) -> list[Any]:
    """The words or tags of one row: a list, or text with spaces between them."""
    listed = value.split() if isinstance(value, str) else list(value) if isinstance(value, list | tuple) else []
    if not listed:
        message = f"row {number} of {rows.where} has no list in the column {column!r}; give a list, or words and spaces"
        raise InvalidSpecError(message, path)
    return listed
