"""causal-lm: the next token of a text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from modelpress_runner.errors import InvalidSpecError
from modelpress_runner.evaluators.base import Score
from modelpress_runner.huggingface.tasks.base import Batch, TextTask, forward
from modelpress_runner.inputs.rows import Rows

_MOST = 700.0  # exp of more is infinite, and a score must be finite


class CausalLm(TextTask):
    """Texts, each with an end mark where the tokenizer has one, follow each other in blocks of maxLength tokens."""

    def examples(self, rows: Rows) -> Sequence[Any]:
        tokens: list[int] = []
        end = self.processor.eos_token_id
        # A warning about texts longer than the model is no concern here: blocks are cut below.
        given = self.processor(self.texts(rows, self.text_column, "text"), verbose=False)["input_ids"]
        for ids in given:
            tokens += ids
            if end is not None and (not ids or ids[-1] != end):
                tokens.append(end)
        blocks = [tokens[first : first + self.length] for first in range(0, len(tokens), self.length)]
        blocks = [block for block in blocks if len(block) > 1]
        if not blocks:
            raise InvalidSpecError(f"{rows.where} has a single token; give more text", f"spec.data.{rows.name}.uri")
        return [
            {"input_ids": block, "attention_mask": [1] * len(block), "token_type_ids": [0] * len(block)}
            for block in blocks
        ]

    def unlabeled(self, rows: Rows) -> Sequence[Any]:
        return self.examples(rows)

    def batch(self, examples: Sequence[Any], whole: bool = False) -> Batch:
        return {"inputs": self.padded(examples, whole)}

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        total, count = self._losses(model, batch)
        return total / count

    def score(self, model: nn.Module, batches: Iterable[Batch]) -> Score:
        total, count = 0.0, 0
        for batch in batches:
            part, tokens = self._losses(model, batch)
            total, count = total + float(part), count + tokens
        loss = total / count
        return {"default": -loss, "perplexity": math.exp(min(loss, _MOST))}

    def _losses(self, model: nn.Module, batch: Batch) -> tuple[torch.Tensor, int]:
        """The sum of the losses of all tokens that have one before them, and their number."""
        logits = forward(model, batch["inputs"])["logits"].float()[:, :-1]
        mask = batch["inputs"]["attention_mask"].to(logits.device).bool()
        # On the left side padding has a token before it, too.
        counted = mask[:, 1:] & mask[:, :-1]
        targets = batch["inputs"]["input_ids"].to(logits.device)[:, 1:]
        return nn.functional.cross_entropy(logits[counted], targets[counted], reduction="sum"), int(counted.sum())
