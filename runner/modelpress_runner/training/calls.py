"""The calls of a model that its losses come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Call:
    """One call of a model in training: model(*inputs, **kwargs) gave `outputs`.

    What is in here is what the model got and gave, with the graph that the loss hangs on: it is not to be changed in
    place. Where autocast is on, outputs are of the type that it made them.

    Attributes:
        earlier: the calls before this one since the last loss, oldest first, where one loss comes from several (two
            sides of a pair, a model that is called for each part of a batch).
        teacher_output: what a teacher of the user's own gave on the same inputs, where a loop says so.
    """

    inputs: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: Any
    earlier: tuple[Call, ...] = ()
    teacher_output: Any = None


class Calls:
    """Notes every call of a model that is made with gradients, until it is asked for them."""

    def __init__(self, model: nn.Module) -> None:
        self._noted: list[Call] = []
        self._handle = model.register_forward_hook(self._note, with_kwargs=True)

    def take(self) -> Call | None:
        """The last call since this was last asked, with those before it; None: the model itself was not called."""
        noted, self._noted = self._noted, []
        if not noted:
            return None
        last = noted[-1]
        return Call(last.inputs, last.kwargs, last.outputs, tuple(noted[:-1]))

    def close(self) -> None:
        """Takes the hook off the model."""
        self._handle.remove()
        self._noted = []

    def _note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if torch.is_grad_enabled():
            self._noted.append(Call(args, dict(kwargs), output))
