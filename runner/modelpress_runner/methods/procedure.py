"""What a stage does, step by step: a list of steps, or steps that depend on what came of those before."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from modelpress_runner.evaluators.base import Score
from modelpress_runner.methods.context import Step
from modelpress_runner.training.step import Training


class Procedure(abc.ABC):
    """The steps of one stage at work; made anew for each run, and for each time that a run goes on.

    The engine asks for a step with `next`, carries it out, and asks again. Its checkpoints keep `state_dict` as it was
    before `next`, and the score that `next` was given; a run that goes on loads that state and asks `next` again, for
    the very step that was under way. So

    - what `next` gives is a function of state and score alone: it looks neither at the model nor at a clock, and draws
      no lots but from a seed in its state;
    - what has to do with the model (to keep early weights, to put them back) is the business of a Transform, which runs
      again where it was not followed by a checkpoint, from the same model and the same state.

    On every rank it must decide alike, as scores are alike.

    Attributes:
        evaluates: whether an Evaluation may come: then the subject must be able to evaluate.
    """

    evaluates: ClassVar[bool] = False

    @abc.abstractmethod
    def next(self, score: Score | None) -> Step | None:
        """The next step; None: the stage is over.

        Args:
            score: that of the last step, if it was an Evaluation.
        """

    def trainings(self) -> Sequence[Training]:
        """The trainings that may still come, as many as there may be at most: they are checked before anything runs,
        and counted where progress says of how many steps. One that was not announced is checked when it comes."""
        return ()

    def state_dict(self) -> dict[str, Any]:
        """Where it is: numbers, texts, lists, dicts with texts as keys, and tensors, which are not changed in place."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Goes on where `state_dict` was; tensors are in main memory then."""


class StepList(Procedure):
    """Steps that are known beforehand, in order."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self._steps = tuple(steps)
        self._done = 0

    def next(self, score: Score | None) -> Step | None:
        """As Procedure.next."""
        if self._done == len(self._steps):
            return None
        self._done += 1
        return self._steps[self._done - 1]

    def trainings(self) -> Sequence[Training]:
        """Those that are left."""
        return [step for step in self._steps[self._done :] if isinstance(step, Training)]

    def state_dict(self) -> dict[str, Any]:
        """How many are done."""
        return {"done": self._done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As Procedure.load_state_dict."""
        self._done = state["done"]


def plain_state(procedure: Procedure) -> dict[str, Any]:
    """The state of a procedure, as later steps of it leave it.

    Raises:
        TypeError: something in it is no plain data.
    """
    state: dict[str, Any] = _copied(procedure.state_dict(), f"{type(procedure).__name__}.state_dict()")
    return state


def _copied(value: Any, where: str) -> Any:
    if isinstance(value, Mapping):
        wrong = next((key for key in value if not isinstance(key, str)), None)
        if wrong is not None:
            raise TypeError(f"{where} has the key {wrong!r}; give texts")
        return {key: _copied(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_copied(item, f"{where}[{number}]") for number, item in enumerate(value)]
    if isinstance(value, torch.Tensor):
        return value.detach()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{where} is a {type(value).__name__}; give numbers, texts, lists, dicts and tensors")
