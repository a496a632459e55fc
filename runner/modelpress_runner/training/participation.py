"""Participants in a training, whoever runs its loop: an evaluator's training function, or a loop of the user's own."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

import torch
from torch import nn

from modelpress_runner.evaluators.base import Evaluator
from modelpress_runner.runtime import distributed as ranks
from modelpress_runner.training.calls import Call, Calls
from modelpress_runner.training.participants import Participant, Participants


class Participation:
    """Participants in one training: the evaluator is bound, and they are attached, while the context is open.

    Args:
        model: what trains.
        evaluator: what calls its losses and steps.
        participants: what goes along, in their order.
    """

    def __init__(self, model: nn.Module, evaluator: Evaluator, participants: Sequence[Participant] = ()) -> None:
        self._model, self._evaluator = model, evaluator
        self._participants = Participants(participants)
        self._calls: Calls | None = None
        self._counted = 0
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Participation:
        evaluator = self._evaluator
        with contextlib.ExitStack() as undone:
            undone.callback(evaluator.unbind)
            evaluator.extra_groups = self._participants.parameter_groups(self._model)
            evaluator.bind(self._model)
            with evaluator.gathered_parameters(modify=True):
                undone.callback(self._participants.detach)
                self._participants.attach(self._model)
            self._same_everywhere()
            if self._participants.change_losses:
                self._calls = Calls(self._model)
                undone.callback(self._calls.close)
                evaluator.patch_loss(lambda loss, batch: self.loss(loss))
            evaluator.before_optimizer_step(self._before_step)
            evaluator.after_optimizer_step(self._after_step)
            self._open.push(undone.pop_all())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._open.close()

    @property
    def takes_teacher_output(self) -> bool:
        """Whether one of them reads Call.teacher_output."""
        return any(each.takes_teacher_output for each in self._participants)

    @property
    def steps(self) -> int:
        """Steps of the first optimizer so far."""
        return self._counted

    def begin(self) -> None:
        """The training begins at its first step."""
        with self._evaluator.gathered_parameters(modify=True):
            self._participants.begin()

    def finish(self) -> None:
        """The last step is made.

        Raises:
            CompressionError: the training cannot have worked.
        """
        with self._evaluator.gathered_parameters(modify=True):
            self._participants.finish()

    def loss(self, loss: torch.Tensor, otherwise: Call | None = None) -> torch.Tensor:
        """What goes backward in place of a loss.

        Args:
            loss: a scalar.
            otherwise: the call that it comes from, as far as is known, where none was seen; its teacher_output counts
                in any case.
        """
        call = None if self._calls is None else self._calls.take()
        own = self._participants.own
        if own:
            if all(parameter.grad is None for parameter in self._model.parameters()):
                self._drop_gradients()  # those of a step that was not made: frameworks drop the model's only
            for parameter in own:
                if parameter.device != loss.device:
                    parameter.data = parameter.data.to(loss.device)
        if call is None:
            call = otherwise
        elif otherwise is not None and otherwise.teacher_output is not None:
            call = replace(call, teacher_output=otherwise.teacher_output)
        return self._participants.loss(call, loss)

    def skip(self) -> None:
        """A step was asked for and is not made, as where a gradient is infinite; it counts all the same."""
        self._counted += 1

    def _before_step(self) -> None:
        self._counted += 1
        for parameter in self._participants.own if ranks.is_distributed() else ():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = ranks.all_reduce_mean(gradient).to(parameter)
        self._participants.before_step(self._counted)

    def _after_step(self) -> None:
        self._drop_gradients()
        touched = self._participants.touches(self._counted)
        if touched is None:
            self._participants.after_step(self._counted)
            return
        with self._evaluator.gathered_parameters(modify=touched == "writes"):
            self._participants.after_step(self._counted)

    def _drop_gradients(self) -> None:
        for parameter in self._participants.own:
            parameter.grad = None

    def _same_everywhere(self) -> None:
        """Every process begins with rank 0's parameters of what goes along."""
        for parameter in self._participants.own if ranks.is_distributed() else ():
            parameter.data.copy_(ranks.broadcast_object(parameter.detach().cpu()))

    def state_dict(self) -> list[dict[str, Any]]:
        """The count of steps, and everybody's state."""
        return [{"steps": self._counted}, *self._participants.state_dict()]

    def load_state_dict(self, state: list[dict[str, Any]]) -> None:
        """Goes on where `state_dict` was."""
        self._counted = state[0]["steps"]
        self._participants.load_state_dict(state[1:])
