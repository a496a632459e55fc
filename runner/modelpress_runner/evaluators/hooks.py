"""Hooks that methods put on a bound model through its evaluator; each collects into a buffer of its own.

def collect(buffer, module, args, output):
    buffer.append(output.detach())

hook = ForwardHook(collect)
evaluator.register_forward_hook("encoder.conv1", hook)      # until the evaluator is unbound, or hook.remove()
evaluator.train(max_steps=10)
hook.buffer
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from modelpress_runner.errors import InvalidModelError

T = TypeVar("T")
Buffer = list[Any]


class Hook:
    """What all hooks have: a function, whose first argument is the buffer, and the buffer.

    Attributes:
        buffer: for the function to collect in. It is left as it is when the hook is removed.
        when: asked before each call: whether the function is to be called.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.buffer: Buffer = []
        self.when: Callable[[], bool] = lambda: True
        self._handles: list[RemovableHandle] = []

    def _call(self, *args: Any) -> Any:
        return self.function(self.buffer, *args) if self.when() else None

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


def module_called(model: nn.Module, name: str) -> nn.Module:
    """The module of this name.

    Raises:
        InvalidModelError: there is none.
    """
    modules: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    return found(modules, name, "module")


def found(known: Mapping[str, T], name: str, kind: str) -> T:
    """What has this name.

    Raises:
        InvalidModelError: nothing has; the message lists what is near.
    """
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    shown = ", ".join(map(repr, near or list(known)[:5]))
    raise InvalidModelError(f"the model has no {kind} {name!r}; {'near' if near else 'it has'}: {shown}")
