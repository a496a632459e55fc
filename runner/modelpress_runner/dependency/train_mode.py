"""Whether a shrunk model still runs in train mode."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from modelpress_runner.edits.base import Edit
from modelpress_runner.edits.replay import replay
from modelpress_runner.errors import CompressionError
from modelpress_runner.runtime.example_inputs import with_batch
from modelpress_runner.runtime.graph import call, map_tensors, tensors_in


def check_train_mode(model: nn.Module, edits: Sequence[Edit], dummy_input: Any) -> None:
    """Runs a copy of `model` once in train mode before and once after `edits`.

    Raises:
        CompressionError: it runs before them, and does not after them, or gives outputs of other shapes.
    """
    twin = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    try:
        before = [tuple(tensor.shape) for tensor in _train_pass(twin, dummy_input)]
    except Exception:  # it does not run on example inputs in train mode at all
        return
    replay(twin, edits)
    try:
        after = [tuple(tensor.shape) for tensor in _train_pass(twin, dummy_input)]
    except Exception as error:
        raise CompressionError(
            f"in train mode the shrunk model does not run: {type(error).__name__}: {error}; exclude the layers that "
            "feed what only train mode runs"
        ) from error
    if before != after:
        raise CompressionError(f"the shrink changed the model's outputs in train mode: shapes {before} became {after}")


def _train_pass(model: nn.Module, dummy_input: Any) -> list[torch.Tensor]:
    """The outputs of one pass in train mode; with two rows, as statistics over a batch need."""
    model.train()
    devices = sorted({tensor.device.index or 0 for tensor in model.parameters() if tensor.is_cuda})
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        torch.manual_seed(0)
        try:
            return tensors_in(call(model, map_tensors(dummy_input, torch.clone)))
        except Exception:
            return tensors_in(call(model, map_tensors(with_batch(dummy_input, 2), torch.clone)))
