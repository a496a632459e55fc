"""Floating point operations of convolutions and matrix products, as they pass by.

By the formulas of torch.utils.flop_counter, which itself is imported for rarer operations only: it imports Triton, and
its mode the compiler, which takes seconds where nothing else needs them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_CONVOLUTIONS = frozenset({"convolution", "_convolution", "cudnn_convolution", "convolution_overrideable"})
_PRODUCTS = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}  # with the place of the first factor
_RARER = ("attention", "scaled_mm", "grouped_mm", "slow_conv", "convolution_backward", "linear", "rnn", "lstm", "gru")


def flops(func: Any, args: Any, kwargs: Mapping[str, Any], out: Any) -> int:
    """What one call of an ATen operation costs: two for each multiply-accumulate; 0 if it is none of those counted.

    Args:
        func: the OpOverload.
        args: of the call.
        kwargs: of the call.
        out: what it gave.
    """
    name = func._schema.name.rpartition("::")[2]
    if name in _PRODUCTS and not kwargs.get("out_dtype"):
        first, second = args[_PRODUCTS[name]].shape, args[_PRODUCTS[name] + 1].shape
        return int(2 * math.prod(first) * second[-1])
    if name in _CONVOLUTIONS and len(args) > 6:
        inputs, weight, transposed = args[0].shape, args[1].shape, args[6]
        places = inputs[2:] if transposed else out.shape[2:]
        return int(2 * inputs[0] * math.prod(places) * math.prod(weight))
    if any(part in name for part in _RARER) or name in _PRODUCTS or name in _CONVOLUTIONS:
        from torch.utils.flop_counter import flop_registry

        formula = flop_registry.get(func._overloadpacket)
        return 0 if formula is None else int(formula(*args, **kwargs, out_val=out))
    return 0


class FlopCount(TorchDispatchMode):
    """Counts while it is entered.

    Attributes:
        total: two for each multiply-accumulate.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not type it
        self.total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to say so would import the compiler

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not isinstance(func, torch._ops.OpOverload):  # control flow: what it runs comes by here in its turn
            return func(*args, **kwargs)
        out = func(*args, **kwargs)
        self.total += flops(func, args, kwargs, out)
        return out
