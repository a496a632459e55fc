"""A step of training, as a stage asks for it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Training:
    """A step of training: one call of the evaluator. Exactly one of epochs and max_steps."""

    label: str
    epochs: int | None = None
    max_steps: int | None = None
