"""Whether a shrunk model still runs in train mode."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from modelpress_runner.edits.base import Edit
from modelpress_runner.edits.replay import replay
from modelpress_runner.errors import CompressionError
from modelpress_runner.runtime import rng
from modelpress_runner.runtime.example_inputs import with_batch
from modelpress_runner.runtime.graph import call, map_tensors, tensors_in

T = TypeVar("T")


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


def on_enough_rows(run: Callable[[Any], T], dummy_input: Any) -> T:
    """What `run` gives for the example inputs, else for two rows of them, as statistics over a batch need."""
    try:
        return run(map_tensors(dummy_input, torch.clone))
    except Exception:
        return run(map_tensors(with_batch(dummy_input, 2), torch.clone))


def _train_pass(model: nn.Module, dummy_input: Any) -> list[torch.Tensor]:
    """The outputs of one pass in train mode."""
    model.train()
    with rng.fork_rng(0), torch.no_grad():
        return on_enough_rows(lambda inputs: tensors_in(call(model, inputs)), dummy_input)
