"""image-classification: one label for an image, the name of its folder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from modelpress_runner.evaluators.base import Score
from modelpress_runner.huggingface.tasks.base import Batch, Task, forward, label_ids, score_classes
from modelpress_runner.inputs.rows import Rows


class ImageClassification(Task):
    """Cross-entropy; accuracy and macro F1. Images are read when their batch is made."""

    def examples(self, rows: Rows) -> Sequence[Any]:
        labels = label_ids(rows.column("label"), self.config, rows.where)
        return _Images(rows, labels)

    def unlabeled(self, rows: Rows) -> Sequence[Any]:
        return _Images(rows, [0] * len(rows))

    def batch(self, examples: Sequence[Any], whole: bool = False) -> Batch:
        return {
            "inputs": self.inputs(examples),
            "labels": torch.tensor([example["label"] for example in examples]),
        }

    def inputs(self, examples: Sequence[Any]) -> dict[str, torch.Tensor]:
        return self._pixels([example["image"] for example in examples])

    def _pixels(self, images: Sequence[Any]) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.processor(images=list(images), return_tensors="pt")["pixel_values"]}

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        logits = forward(model, batch["inputs"])["logits"]
        return nn.functional.cross_entropy(logits.float(), batch["labels"].to(logits.device))

    def score(self, model: nn.Module, batches: Iterable[Batch]) -> Score:
        return score_classes(model, batches, self.config.num_labels)

    def dummy_input(self) -> dict[str, torch.Tensor]:
        ramp = np.arange(64 * 64 * 3, dtype=np.uint32).reshape(64, 64, 3) * 7 % 256
        return self._pixels([ramp.astype(np.uint8)])


class _Images(Sequence[Any]):
    """Rows with the numbers of their labels; an image is read when it is asked for."""

    def __init__(self, rows: Rows, labels: Sequence[int]) -> None:
        self._rows, self._labels = rows, labels

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        return {**self._rows[index], "label": self._labels[index]}
