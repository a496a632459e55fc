"""Hooks that methods put on a bound model through its evaluator; each collects into a buffer of its own.

def collect(buffer, module, args, output):
    buffer.append(output.detach())

hook = ForwardHook(collect)
evaluator.register_forward_hook("encoder.conv1", hook)      # until the evaluator is unbound, or hook.remove()
evaluator.train(max_steps=10)
hook.buffer
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

Buffer = list[Any]


class Hook:
    """What all hooks have: a function, whose first argument is the buffer, and the buffer.

    Attributes:
        buffer: for the function to collect in. It is left as it is when the hook is removed.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.buffer: Buffer = []
        self._handles: list[RemovableHandle] = []

    def _call(self, *args: Any) -> Any:
        return self.function(self.buffer, *args)

    def remove(self) -> None:
        """Takes the hook off again, wherever it is. Does nothing if it is nowhere."""
        while self._handles:
            self._handles.pop().remove()


class TensorHook(Hook):
    """Sees the gradient of a tensor each time backward() has worked it out: function(buffer, gradient).

    What the function returns, unless None, takes the gradient's place. It is what this backward() adds: not yet summed
    with what earlier ones left, of this rank alone, and scaled if a GradScaler scales the loss.
    """

    def attach(self, tensor: torch.Tensor) -> None:
        """Puts the hook on a tensor that requires a gradient; on an activation it lasts as long as its graph."""
        # One activation a step: those of graphs that are gone are not kept.
        self._handles = [handle for handle in self._handles if handle.hooks_dict_ref() is not None]
        self._handles.append(tensor.register_hook(self._call))


class ForwardHook(Hook):
    """Sees each forward pass of a module: function(buffer, module, args, output).

    What the function returns, unless None, takes the output's place.
    """

    def attach(self, module: nn.Module) -> None:
        """Puts the hook on a module."""
        self._handles.append(module.register_forward_hook(self._call))


class BackwardHook(Hook):
    """Sees each backward pass of a module: function(buffer, module, grad_input, grad_output).

    Both are tuples, with None where an argument needs no gradient. What the function returns, unless None, takes the
    place of grad_input. A module with such a hook must not be followed by an operation that changes its output in
    place (torch's register_full_backward_hook).
    """

    def attach(self, module: nn.Module) -> None:
        """Puts the hook on a module."""
        self._handles.append(module.register_full_backward_hook(self._call))
