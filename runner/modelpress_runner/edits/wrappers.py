"""Wrappers around models and parts of models that put names of their own into all others."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

# By the name under which they keep what is inside: torch.compile, activation checkpointing.
_KEPT_AS = ("_orig_mod", "_checkpoint_wrapped_module")


def inside(module: nn.Module) -> nn.Module | None:
    """What a wrapper wraps; None: it is none."""
    if isinstance(module, DistributedDataParallel | DataParallel | AveragedModel):
        return module.module
    if isinstance(module, torch.jit.ScriptModule):  # its parts are not Python's
        return None
    found = (module._modules.get(name) for name in _KEPT_AS)
    return next((each for each in found if each is not None), None)


def inner(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel, DataParallel, AveragedModel or torch.compile; any other as it is."""
    while (found := inside(model)) is not None:
        model = found
    return model


def wrapped_part(model: nn.Module) -> str | None:
    """The name of the first part of the model that is wrapped; None: there is none."""
    return next((name for name, module in model.named_modules() if inside(module) is not None), None)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model without wrappers, also inside it: its names are those of its class.

    Parameters, buffers and unwrapped layers are the very objects; modules that hold a wrapped one are copied shallowly,
    so that the given model stays as it is. A model without wrappers is given back itself.
    """
    return _unwrapped(model, {})


def _unwrapped(module: nn.Module, known: dict[int, nn.Module]) -> nn.Module:
    if id(module) in known:
        return known[id(module)]
    plain = inner(module)
    if isinstance(plain, torch.jit.ScriptModule):
        return plain
    parts = {name: None if part is None else _unwrapped(part, known) for name, part in plain._modules.items()}
    if any(part is not plain._modules[name] for name, part in parts.items()):
        plain = copy.copy(plain)
        plain.__dict__["_modules"] = parts
    known[id(module)] = plain
    return plain
