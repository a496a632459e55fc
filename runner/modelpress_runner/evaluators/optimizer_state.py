"""State of optimizers and schedulers as tensors and plain data, so that torch.load(weights_only=True) reads it."""

from __future__ import annotations

import collections
from typing import Any

import torch

_SCALARS = (bool, int, float, complex, str, bytes, type(None))
_DROP = object()


def plain(value: Any) -> Any:
    """A copy of `value` without anything but tensors and plain data; what is neither is left out of its container.

    Tensors are detached copies, so later training does not change them. NumPy numbers become Python numbers.
    """
    kept = _plain(value)
    return None if kept is _DROP else kept


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if type(value) in _SCALARS:
        return value
    if isinstance(value, collections.Counter):
        return collections.Counter(dict(value))
    if isinstance(value, dict):
        items = {key: _plain(item) for key, item in value.items() if isinstance(key, (*_SCALARS, tuple))}
        return {key: item for key, item in items.items() if item is not _DROP}
    if isinstance(value, list | tuple | collections.deque):
        # An item that is left out would shift the others; None keeps their places.
        kept = [None if item is _DROP else item for item in map(_plain, value)]
        return tuple(kept) if isinstance(value, tuple) else kept
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        return value.item()
    return _DROP


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Loads what `plain(optimizer.state_dict())` gave; settings that were left out stay as the optimizer has them."""
    groups = [
        {**{key: item for key, item in current.items() if key != "params"}, **saved}
        for current, saved in zip(optimizer.param_groups, state["param_groups"], strict=True)
    ]
    optimizer.load_state_dict({**state, "param_groups": groups})
