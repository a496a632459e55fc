"""Where a pretrained model trains and is scored: on this process's GPU, where there is one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import nn


@contextlib.contextmanager
def on_accelerator(model: nn.Module, optimizers: Iterable[torch.optim.Optimizer] = ()) -> Iterator[None]:
    """Inside, the model and what its optimizers keep are on the GPU; afterwards they are where they were.

    Parameters stay the objects that they are, so that optimizers, masks and hooks go on with them. Without a GPU, or
    with a model that is on one already, nothing moves.
    """
    before = {parameter.device for parameter in model.parameters()}
    if not torch.cuda.is_available() or before != {torch.device("cpu")}:
        yield
        return
    optimizers = list(optimizers)
    try:
        move(model, optimizers, torch.device("cuda", torch.cuda.current_device()))
        yield
    finally:
        move(model, optimizers, torch.device("cpu"))


def move(model: nn.Module, optimizers: Iterable[torch.optim.Optimizer], device: torch.device) -> None:
    """Puts a model and the state of its optimizers on a device; counts of steps stay on the CPU, as AdamW has them."""
    model.to(device)
    for optimizer in optimizers:
        for state in optimizer.state.values():
            for name, value in state.items():
                if isinstance(value, torch.Tensor) and value.ndim:
                    state[name] = value.to(device)
