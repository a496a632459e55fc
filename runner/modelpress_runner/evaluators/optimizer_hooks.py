"""Hooks around the steps of optimizers, so that gradients are there and a skipped step is none.

Optimizers that wrap others are seen as one: step() of the outermost counts; where that is never called, as with those
that have two methods of their own in its place, the step() of the one inside.
"""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

_DEPTH = 4  # of optimizers that wrap each other


class StepHandle:
    """Takes off again what was put on an optimizer and those inside of it."""

    def __init__(self, undo: list[Callable[[], None]]) -> None:
        self._undo = undo

    def remove(self) -> None:
        """Takes it off. Safe to repeat."""
        while self._undo:
            self._undo.pop()()


def stepped_within(optimizer: Any) -> list[torch.optim.Optimizer]:
    """The optimizers inside of one that wraps others, outermost first."""
    found: list[torch.optim.Optimizer] = []

    def look(holder: Any, depth: int) -> None:
        for value in list(getattr(holder, "__dict__", {}).values()):
            for each in value if isinstance(value, list | tuple) else (value,):
                if isinstance(each, torch.optim.Optimizer) and not any(each is known for known in (optimizer, *found)):
                    found.append(each)
                    if depth < _DEPTH:
                        look(each, depth + 1)

    look(optimizer, 1)
    return found


def before_step(optimizer: Any, hook: Callable[[], None]) -> StepHandle:
    """Calls `hook` before each step of `optimizer` that is made, once its gradients are there.

    A step with a closure works its gradients out itself: the hook then comes right behind the closure's first call. A
    step that a GradScaler skips, since a gradient is infinite or NaN, is not made.
    """

    def begin(owner: Any, closure: Any) -> Any:
        if _is_skipped(owner):
            return closure
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

        return watched

    return _hooked(optimizer, begin, lambda owner: None)


def in_front_of_step(optimizer: Any, hook: Callable[[], None]) -> StepHandle:
    """Calls `hook` when step() of `optimizer` is called, before anything else, also if the step is then skipped."""

    def begin(owner: Any, closure: Any) -> Any:
        hook()
        return closure

    return _hooked(optimizer, begin, lambda owner: None)


def after_step(optimizer: Any, hook: Callable[[], None]) -> StepHandle:
    """Calls `hook` after each step of `optimizer` that was made."""

    def end(owner: Any) -> None:
        if not _is_skipped(owner):
            hook()

    return _hooked(optimizer, lambda owner, closure: closure, end)


def _hooked(optimizer: Any, begin: Callable[[Any, Any], Any], end: Callable[[Any], None]) -> StepHandle:
    """`begin` before and `end` after the outermost step of an optimizer and those inside of it."""
    depth = [0]
    undo: list[Callable[[], None]] = []

    def pre(owner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        depth[0] += 1
        if depth[0] > 1:
            return None
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)  # args[0] is the optimizer
        changed = begin(owner, closure)
        if changed is closure:
            return None
        return ((args[0], changed, *args[2:]), {key: value for key, value in kwargs.items() if key != "closure"})

    def post(owner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        depth[0] -= 1
        if not depth[0]:
            end(owner)

    for each in (optimizer, *stepped_within(optimizer)):
        if has_hooks(each):
            handles = (each.register_step_pre_hook(pre), each.register_step_post_hook(post))
            undo += [handle.remove for handle in handles]
        else:
            undo.append(_patched(each, functools.partial(_between, each, pre, post)))

    def first() -> None:
        depth[0] = 0

    return StepHandle([first, *undo])


def _between(owner: Any, pre: Callable[..., Any], post: Callable[..., Any], made: Callable[..., Any]) -> Any:
    def step(*args: Any, **kwargs: Any) -> Any:
        changed = pre(owner, (owner, *args), kwargs)
        if changed is not None:
            (_, *args), kwargs = changed
        result = made(*args, **kwargs)
        post(owner, args, kwargs)
        return result

    return step


def has_hooks(optimizer: Any) -> bool:
    """Whether torch's hooks can be put on it: a subclass that leaves out Optimizer.__init__ has none."""
    return isinstance(optimizer, torch.optim.Optimizer) and hasattr(optimizer, "_optimizer_step_pre_hooks")


@contextlib.contextmanager
def around(optimizer: Any, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Inside, step() of `optimizer`, or of one inside of it that is stepped by itself, is what `wrap` made of it."""
    under_way = [False]

    def outermost(made: Callable[..., Any]) -> Callable[..., Any]:
        wrapped = wrap(made)

        def step(*args: Any, **kwargs: Any) -> Any:
            if under_way[0]:
                return made(*args, **kwargs)
            under_way[0] = True
            try:
                return wrapped(*args, **kwargs)
            finally:
                under_way[0] = False

        vars(step).update(vars(wrapped))
        return step

    undo = [_patched(each, outermost) for each in (optimizer, *stepped_within(optimizer))]
    try:
        yield
    finally:
        for each in reversed(undo):
            each()


def _patched(optimizer: Any, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Callable[[], None]:
    """Puts `wrap(step)` in the place of an optimizer's step(), and gives what takes it away again."""
    made, there = optimizer.step, vars(optimizer).get("step")
    wrapped = wrap(made)

    @functools.wraps(getattr(made, "__func__", made))
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        self._opt_called = True  # schedulers ask for it, and warn without
        return wrapped(*args, **kwargs)

    vars(step).update(vars(wrapped))
    # A method, as schedulers that are made later expect of what they wrap.
    optimizer.step = types.MethodType(step, optimizer)

    def undo() -> None:
        if there is None:
            vars(optimizer).pop("step", None)
        else:
            optimizer.step = there

    return undo


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


def _is_skipped(optimizer: Any) -> bool:
    """Whether an optimizer that skips steps by itself, as a GradScaler tells it, is to skip this one."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)
