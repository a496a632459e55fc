"""What looks at a pass over data, and what it sees of it."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import torch
from torch import nn

from modelpress_runner.evaluators.base import Evaluator
from modelpress_runner.evaluators.hooks import BackwardHook, ForwardHook, Hook
from modelpress_runner.runtime import distributed as ranks


class Pass(Protocol):
    """A pass over data, as a collector sees it, whatever the data are and whoever runs them through the model."""

    def gradient(self, parameter: nn.Parameter) -> torch.Tensor | None:
        """The whole gradient of a parameter, seen before an optimizer step; None: there is none.

        Raises:
            TypeError: this pass has no gradients; a method that wants them says so in its row.
        """

    def register_forward_hook(self, module: str, hook: ForwardHook) -> None:
        """Puts `hook` on the module of this name until the pass is over: it sees inputs and outputs.

        Raises:
            InvalidModelError: there is no such module.
        """

    def register_backward_hook(self, module: str, hook: BackwardHook) -> None:
        """Puts `hook` on the module of this name until the pass is over.

        Raises:
            InvalidModelError: there is no such module.
            TypeError: this pass has no gradients; a method that wants them says so in its row.
        """


class Collector(abc.ABC):
    """Gathers numbers, of one module say, from the batches of a pass.

    In order: attach, update behind each batch, sync, compute.

    Attributes:
        states: the attributes that are gathered in, tensors of the same shape on every process from the begin, and how
            those of all processes become one. What is to be the same whatever the number of processes is a ratio of
            sums: a total by a count.
    """

    states: ClassVar[Mapping[str, ranks.Reduction]]

    def attach(self) -> None:  # noqa: B027
        """The pass begins: hooks can be put in place, `Pass.register_forward_hook` for one."""

    @abc.abstractmethod
    def update(self) -> None:
        """A batch has gone forward and, where gradients are needed, the losses of a step backward; parameters are
        whole."""

    def sync(self) -> None:
        """The states become those of all processes together, with the same bits on each; sums are taken in float64."""
        for name, how in self.states.items():
            setattr(self, name, ranks.all_reduce(getattr(self, name), how))

    @abc.abstractmethod
    def compute(self) -> torch.Tensor:
        """What comes of it, once the pass is over and `sync` was called; nothing else leaves the device.

        Raises:
            CompressionError: there is nothing to say. Behind `sync` that is so on every process.
        """

    def state_dict(self) -> dict[str, Any]:
        """What was gathered so far, for a checkpoint: tensors and plain data.

        As it is here, all attributes that are tensors, numbers or None; a class that gathers in others says so itself.
        """
        kinds = (torch.Tensor, bool, int, float, type(None))
        return {name: value for name, value in vars(self).items() if isinstance(value, kinds)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was."""
        vars(self).update(state)


class TrainingPass:
    """Training steps as a pass: those of a bound evaluator, or of a loop of the user's own.

    Hooks see what is computed with gradients: neither scores that are taken on the way nor the first of the two
    forward passes of a module that is computed again on the way back.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator
        self._hooks: list[Hook] = []

    def gradient(self, parameter: nn.Parameter) -> torch.Tensor | None:
        """As Pass.gradient."""
        return self._evaluator.gradient(parameter)

    def register_forward_hook(self, module: str, hook: ForwardHook) -> None:
        """As Pass.register_forward_hook."""
        hook.when = torch.is_grad_enabled
        self._hooks.append(hook)
        self._evaluator.register_forward_hook(module, hook)

    def register_backward_hook(self, module: str, hook: BackwardHook) -> None:
        """As Pass.register_backward_hook."""
        self._hooks.append(hook)
        self._evaluator.register_backward_hook(module, hook)

    def close(self) -> None:
        """The pass is over, and the training may go on: its hooks go."""
        while self._hooks:
            self._hooks.pop().remove()
