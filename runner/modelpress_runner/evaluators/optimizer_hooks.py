"""Hooks around the steps of torch's optimizers, so that gradients are there and a skipped step is none."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle


def before_step(optimizer: torch.optim.Optimizer, hook: Callable[[], None]) -> RemovableHandle:
    """Calls `hook` before each step of `optimizer` that is made, once its gradients are there.

    A step with a closure works its gradients out itself: the hook then comes right behind the closure's first call. A
    step that a GradScaler skips, since a gradient is infinite or NaN, is not made.
    """

    def pre(optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if _is_skipped(optimizer):
            return None
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)  # args[0] is the optimizer
        if closure is None:
            hook()
            return None
        calls: list[None] = []

        def watched() -> Any:
            loss = closure()
            if not calls:
                calls.append(None)
                with torch.no_grad():
                    hook()
            return loss

        return ((args[0], watched, *args[2:]), {key: value for key, value in kwargs.items() if key != "closure"})

    return optimizer.register_step_pre_hook(pre)


def after_step(optimizer: torch.optim.Optimizer, hook: Callable[[], None]) -> RemovableHandle:
    """Calls `hook` after each step of `optimizer` that was made."""

    def post(optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not _is_skipped(optimizer):
            hook()

    return optimizer.register_step_post_hook(post)


def unscaled(parameter: nn.Parameter, optimizers: Iterable[torch.optim.Optimizer]) -> torch.Tensor | None:
    """The gradient of a parameter in front of a step of its optimizer, without the factor of a GradScaler.

    Ordinary optimizers get unscaled gradients; those that scale within their kernels (fused=True) are told the factor.
    """
    gradient = parameter.grad
    if gradient is None:
        return None
    for optimizer in optimizers:
        scale = getattr(optimizer, "grad_scale", None)
        if scale is not None and any(parameter is held for group in optimizer.param_groups for held in group["params"]):
            unscaled: torch.Tensor = gradient / scale.to(gradient.device)
            return unscaled
    return gradient


def _is_skipped(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimizer that skips steps by itself, as a GradScaler tells it, is to skip this one."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)
