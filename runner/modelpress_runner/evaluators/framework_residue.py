"""What a training framework leaves on a model, and how to take it off again."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)
_CONFIGS = ("config", "generation_config")


class FrameworkResidue:
    """A model as it was, in everything that frameworks touch besides the values of its tensors.

    Remembered are hooks of modules and parameters, a `forward` set on an instance, attributes of parameters, devices,
    and the configurations of a Hugging Face model. Values, training modes and requires_grad are not.

    Args:
        model: the model as it is now.
        foreign: attributes of modules that the framework adds, by the beginnings of their names.
    """

    def __init__(self, model: nn.Module, foreign: tuple[str, ...] = ()) -> None:
        self._model, self._foreign = model, foreign
        self._modules = [(module, _hooks(module), set(vars(module))) for module in model.modules()]
        self._parameters = [
            (parameter, set(vars(parameter)), _tensor_hooks(parameter)) for parameter in model.parameters()
        ]
        self._devices = [(tensor, tensor.device) for tensor in (*model.parameters(), *model.buffers())]
        self._configs = [
            (config, copy.deepcopy(vars(config)))
            for name in _CONFIGS
            if hasattr(config := getattr(model, name, None), "to_dict")
        ]

    def remove(self) -> None:
        """Makes the model what it was; the values of its tensors stay."""
        for module, hooks, known in self._modules:
            for name, before in hooks.items():
                now = vars(module)[name]
                for key in [key for key in now if key not in before]:
                    del now[key]
            for name in set(vars(module)) - known:
                if name == "forward" or name.startswith(self._foreign):
                    del vars(module)[name]
        for parameter, known, tensor_hooks in self._parameters:
            for name in set(vars(parameter)) - known:
                delattr(parameter, name)
            found = parameter._backward_hooks or {}
            for key in [key for key in found if key not in tensor_hooks]:
                del found[key]
        with torch.no_grad():
            for tensor, device in self._devices:
                if tensor.device != device:
                    tensor.data = tensor.data.to(device)
                    tensor.grad = None
        for config, values in self._configs:
            vars(config).clear()
            vars(config).update(values)


def _hooks(module: nn.Module) -> dict[str, set[Any]]:
    return {name: set(vars(module)[name]) for name in _HOOKS if name in vars(module)}


def _tensor_hooks(tensor: torch.Tensor) -> set[Any]:
    return set(tensor._backward_hooks or ())
