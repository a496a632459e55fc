"""What a stage works on and what it may use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from modelpress_runner.evaluators.base import Evaluator

# {"conv1": {"weight": mask, "bias": mask}}: 1 = kept, shaped like the parameter, same dtype.
Masks = dict[str, dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Cut:
    """One shrunk axis: `kept` are the indices of the module's parameters along it that stay, ascending.

    axis "out" is what the module gives (output channels of a convolution, features of a norm), "in" what it takes.
    """

    module: str
    axis: str
    kept: tuple[int, ...]


class Trainer(Protocol):
    """Chunked training with checkpoints (training.ChunkedTraining)."""

    def train(self, *, epochs: int | None = None, max_steps: int | None = None, label: str) -> None:
        """Trains the context's model in chunks; resumes inside if a checkpoint of this stage and label says so."""


@dataclass
class StageContext:
    """The state that stages hand on. A stage changes `model` in place or puts another one there."""

    model: nn.Module
    evaluator: Evaluator | None
    dummy_input: Any
    seed: int
    trainer: Trainer
    masks: Masks = field(default_factory=dict)  # of unshrunk stages, in force from then on
    cuts: list[Cut] = field(default_factory=list)  # all shrinks so far, against the dense model, in order of replay
    report: Callable[[str], None] = lambda message: None  # a line of progress for people
    notes: list[str] = field(default_factory=list)  # what the model card should say (an in-process plan, for one)
