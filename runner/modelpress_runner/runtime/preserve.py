"""A model left as it was found, whatever happens to it meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


@contextlib.contextmanager
def flags_restored(model: nn.Module) -> Iterator[None]:
    """Whatever happens inside, `training` of every module and `requires_grad` of every parameter are as before."""
    modes = [(module, module.training) for module in model.modules()]
    grads = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in grads:
            if parameter.requires_grad != requires_grad:
                parameter.requires_grad_(requires_grad)


@contextlib.contextmanager
def devices_restored(model: nn.Module) -> Iterator[None]:
    """Afterwards every parameter and buffer is on the device that it was on, with the values that it has by then.

    Training and evaluation of the user's may move the model to a GPU; what comes next does not know of it.
    """
    before: list[tuple[dict[str, Any], str, torch.Tensor, torch.device]] = [
        (place, name, tensor, tensor.device)
        for module in model.modules()
        for place in (module._parameters, module._buffers)
        for name, tensor in place.items()
        if tensor is not None
    ]
    try:
        yield
    finally:
        for place, name, tensor, device in before:
            now = place.get(name)
            if now is not None and now.device != device:
                gradient, now.grad = now.grad, None
                tensor.grad = None
                tensor.data = now.detach().to(device)
                tensor.grad = None if gradient is None else gradient.to(device)
                place[name] = tensor


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Runs the block with `model` in eval mode; then modes, buffers and random number generators are as before."""
    modes = {module: module.training for module in model.modules()}
    plain = ((name, buffer) for name, buffer in model.named_buffers() if buffer.layout == torch.strided)
    buffers = {name: buffer.detach().clone() for name, buffer in plain}
    devices = sorted({tensor.device.index or 0 for tensor in model.parameters() if tensor.is_cuda})
    with torch.random.fork_rng(devices=devices):
        model.eval()
        try:
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode
            with torch.no_grad():
                for name, buffer in model.named_buffers():
                    if name in buffers and not torch.equal(buffer, buffers[name]):
                        buffer.copy_(buffers[name])
