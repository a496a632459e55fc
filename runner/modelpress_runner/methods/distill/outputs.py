"""What of a model's outputs is compared, and which rows of it count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from modelpress_runner.training.calls import Call

_IGNORED = -100  # labels of torch's cross-entropy that count for nothing


def compared(outputs: Any) -> dict[str, torch.Tensor]:
    """The tensors that a student and a teacher are compared by, by name.

    A tensor is itself; of a mapping those whose names end in `logits`, else the first tensor of numbers with a batch;
    of a tuple or list the first such.
    """
    if isinstance(outputs, torch.Tensor):
        return {"output": outputs}
    if isinstance(outputs, Mapping):
        named = {str(key): value for key, value in outputs.items() if _is_output(value)}
        heads = {key: value for key, value in named.items() if key.endswith("logits")}
        return heads or dict(list(named.items())[:1])
    if isinstance(outputs, tuple | list):
        return next((found for found in map(compared, outputs) if found and _are_outputs(found)), {})
    return {}


def feature(output: Any) -> torch.Tensor | None:
    """The tensor in what a layer gave: itself, or the first of numbers in a tuple, list or mapping."""
    if isinstance(output, torch.Tensor):
        return output if output.is_floating_point() else None
    items = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else ()
    return next((found for found in map(feature, items) if found is not None), None)


def rows_of(call: Call, shape: torch.Size, next_token: bool) -> torch.Tensor | None:
    """Which rows of an output (batch, tokens, ...) count, where the call says so; None: all.

    Args:
        call: whose labels (-100: not) say so, else its attention_mask.
        shape: of the output.
        next_token: each token's output is of the next one's label, as in a language model.
    """
    if len(shape) != 3:
        return None
    labels = call.kwargs.get("labels")
    if isinstance(labels, torch.Tensor) and labels.shape == shape[:2]:
        rows = labels != _IGNORED
        if next_token:
            rows = torch.cat([rows[:, 1:], torch.zeros_like(rows[:, :1])], 1)
        return rows
    mask = call.kwargs.get("attention_mask")
    if isinstance(mask, torch.Tensor) and mask.shape == shape[:2]:
        return mask != 0
    return None


def _is_output(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.ndim > 0


def _are_outputs(found: dict[str, torch.Tensor]) -> bool:
    return all(map(_is_output, found.values()))
