"""text-classification: one label for a text, or for a pair of texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from modelpress.api.v1alpha1.huggingface import LABEL_COLUMNS
from modelpress_runner.evaluators.base import Score
from modelpress_runner.huggingface.tasks.base import Batch, TextTask, forward, label_ids, score_classes
from modelpress_runner.inputs.rows import Rows


class TextClassification(TextTask):
    """Cross-entropy; accuracy and macro F1."""

    def examples(self, rows: Rows) -> Sequence[Any]:
        column = self.columns.label or LABEL_COLUMNS[self.spec.task]
        items = self.unlabeled(rows)
        rows.need(column, "spec.model.huggingFace.columns.label")
        labels = label_ids(rows.column(column), self.config, rows.where)
        return [{**item, "label": label} for item, label in zip(items, labels, strict=True)]

    def unlabeled(self, rows: Rows) -> Sequence[Any]:
        texts = self.texts(rows, self.text_column, "text")
        pairs = None if self.columns.text_pair is None else self.texts(rows, self.columns.text_pair, "textPair")
        return self.encoded(texts, pairs)

    def batch(self, examples: Sequence[Any], whole: bool = False) -> Batch:
        return {
            "inputs": self.padded(examples, whole),
            "labels": torch.tensor([example["label"] for example in examples]),
        }

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        logits = forward(model, batch["inputs"])["logits"]
        return nn.functional.cross_entropy(logits.float(), batch["labels"].to(logits.device))

    def score(self, model: nn.Module, batches: Iterable[Batch]) -> Score:
        return score_classes(model, batches, self.config.num_labels)
