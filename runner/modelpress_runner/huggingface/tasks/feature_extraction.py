"""feature-extraction: texts as vectors, close to each other where they mean the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from modelpress.api.v1alpha1.huggingface import PAIR_COLUMN
from modelpress_runner.evaluators.base import Score
from modelpress_runner.huggingface.tasks.base import Batch, TextTask, forward
from modelpress_runner.inputs.rows import Rows

SCALE = 20.0  # of cosine similarities in the loss, as sentence-transformers has it


class FeatureExtraction(TextTask):
    """Trains with in-batch negatives (arXiv 1705.00652); scores how often a text's own pair is the nearest of all."""

    def examples(self, rows: Rows) -> Sequence[Any]:
        texts = self.texts(rows, self.text_column, "text")
        pairs = self.texts(rows, self.columns.text_pair or PAIR_COLUMN, "textPair")
        numbers: dict[str, int] = {}
        for pair in pairs:
            numbers.setdefault(pair, len(numbers))
        return [
            {"text": text, "pair": pair, "number": numbers[name]}
            for text, pair, name in zip(self.encoded(texts), self.encoded(pairs), pairs, strict=True)
        ]

    def unlabeled(self, rows: Rows) -> Sequence[Any]:
        return [{"text": item} for item in self.encoded(self.texts(rows, self.text_column, "text"))]

    def batch(self, examples: Sequence[Any], whole: bool = False) -> Batch:
        return {
            "texts": self.padded([example["text"] for example in examples], whole),
            "pairs": self.padded([example["pair"] for example in examples], whole),
            "numbers": torch.tensor([example["number"] for example in examples]),
        }

    def inputs(self, examples: Sequence[Any]) -> dict[str, torch.Tensor]:
        return self.padded([example["text"] for example in examples], whole=True)

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        scores = embeddings(model, batch["texts"]) @ embeddings(model, batch["pairs"]).T * SCALE
        numbers = batch["numbers"].to(scores.device)
        # The same text may be the pair of two rows of a batch: then it is no negative for either of them.
        same = numbers[:, None] == numbers[None, :]
        same.fill_diagonal_(False)
        return nn.functional.cross_entropy(
            scores.masked_fill(same, float("-inf")), torch.arange(len(scores), device=scores.device)
        )

    def score(self, model: nn.Module, batches: Iterable[Batch]) -> Score:
        texts, numbers = [], []
        corpus: dict[int, torch.Tensor] = {}  # a pair that several texts have is one entry
        for batch in batches:
            texts.append(embeddings(model, batch["texts"]).cpu())
            numbers.append(batch["numbers"])
            for number, pair in zip(batch["numbers"].tolist(), embeddings(model, batch["pairs"]).cpu(), strict=True):
                corpus.setdefault(number, pair)
        entries = torch.stack([corpus[number] for number in range(len(corpus))])
        return retrieval_score(torch.cat(texts), entries, torch.cat(numbers))


def embeddings(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Means of the last hidden states over the tokens that are no padding, of length 1: (texts, hidden)."""
    hidden = forward(model, inputs)["last_hidden_state"].float()
    mask = inputs["attention_mask"].to(hidden.device)[..., None].float()
    means = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
    return nn.functional.normalize(means, dim=-1)


def retrieval_score(texts: torch.Tensor, corpus: torch.Tensor, numbers: torch.Tensor) -> Score:
    """The share of texts to which their own entry of the corpus is nearer than every other (`default`), and `mrr`.

    Args:
        texts: vectors of length 1: (texts, hidden).
        corpus: vectors of length 1: (entries, hidden).
        numbers: of each text's own entry; ties with another entry count against it.
    """
    similarity = texts.double() @ corpus.double().T
    own = similarity.gather(1, numbers[:, None])
    # Sums of float32 vectors differ in their last bits: what is as near is a tie.
    ranks = (similarity >= own - 1e-6).sum(1)
    return {"default": float((ranks == 1).double().mean()), "mrr": float((1 / ranks.double()).mean())}
