"""Parameters that are no part of the model, in an optimizer that the user has made for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from modelpress_runner.errors import InvalidModelError

ParameterGroup = dict[str, Any]  # as torch.optim.Optimizer.add_param_group takes it: "params", and options

_LISTS = ("lr_lambdas", "min_lrs", "max_lrs")  # of schedulers: an entry for each group


def join(groups: Sequence[ParameterGroup], optimizer: Any, schedulers: Iterable[Any]) -> None:
    """Adds parameter groups to an optimizer whose schedulers may be made already.

    A new group follows the schedule of the optimizer's first group from its own learning rate (`lr`; else the
    optimizer's): where that one is at a tenth of its rate, so is the new one.

    Args:
        groups: with parameters that the optimizer does not have.
        optimizer: the user's.
        schedulers: those that may belong to it.

    Raises:
        InvalidModelError: the optimizer takes none.
    """
    if not groups:
        return
    kind = type(optimizer).__name__
    if isinstance(optimizer, torch.optim.LBFGS) or not callable(getattr(optimizer, "add_param_group", None)):
        raise InvalidModelError(f"a method trains parameters of its own, and a {kind} takes no further ones")
    first = optimizer.param_groups[0]
    for group in groups:
        before = len(optimizer.param_groups)
        try:
            optimizer.add_param_group(dict(group))
        except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
            raise InvalidModelError(
                f"a method trains parameters of its own, and {kind} takes no further ones: {error}"
            ) from error
        if len(optimizer.param_groups) != before + 1:
            raise InvalidModelError(f"a method trains parameters of its own, and {kind} takes no further group of them")
        _follow(optimizer.param_groups[-1], first)
        for scheduler in schedulers:
            for each in _within(scheduler, optimizer):
                _extend(each, optimizer.param_groups[-1])


def _follow(added: ParameterGroup, first: ParameterGroup) -> None:
    """Gives a group what schedulers have put into the first one, in its own measure."""
    if "initial_lr" not in first:
        return
    own, other = added["lr"], first["initial_lr"]
    share = 1.0 if float(other) == 0 else float(first["lr"]) / float(other)
    added["initial_lr"] = own
    added["lr"] = own * share
    for name, value in first.items():
        if name not in added:
            in_measure = name.endswith("_lr") and float(other) != 0
            added[name] = value * (float(own) / float(other)) if in_measure else value


def _within(scheduler: Any, optimizer: Any) -> Iterator[Any]:
    """A scheduler and those within it, if they are the optimizer's; accelerate's and DeepSpeed's wrap one."""
    held = getattr(scheduler, "optimizer", None)
    while held is not None and held is not optimizer:
        held = getattr(held, "optimizer", None)
    if held is not None:
        yield scheduler
    inner = getattr(scheduler, "scheduler", None)
    for each in (*getattr(scheduler, "_schedulers", ()), *(() if inner is None else (inner,))):
        yield from _within(each, optimizer)


def _extend(scheduler: Any, added: ParameterGroup) -> None:
    if isinstance(getattr(scheduler, "base_lrs", None), list):
        scheduler.base_lrs.append(added["initial_lr"])
    if isinstance(getattr(scheduler, "_last_lr", None), list):
        scheduler._last_lr.append(added["lr"])
    for name in _LISTS:
        values = getattr(scheduler, name, None)
        if isinstance(values, list) and values:
            values.append(values[-1])
