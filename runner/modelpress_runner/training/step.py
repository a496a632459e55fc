"""A step of training, as a stage asks for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelpress_runner.methods.context import TrainingContext
    from modelpress_runner.training.participants import Participant


@dataclass(frozen=True)
class Training:
    """A step of training: one call of the evaluator. Exactly one of epochs and max_steps.

    Attributes:
        participants: makes what goes along with it, anew for each time that it is begun or resumed.
    """

    label: str
    epochs: int | None = None
    max_steps: int | None = None
    participants: Callable[[TrainingContext], Sequence[Participant]] = lambda training: ()
