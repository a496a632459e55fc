"""Shapes of what torch's rounding operators give, which torch.export asks for where a batch is free and torch 2.13 does
not say."""

from __future__ import annotations

from typing import Any

import torch

_MASKED = (
    "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams",
    "fake_quantize_per_channel_affine_cachemask",
    "fake_quantize_per_tensor_affine_cachemask",
)
_LIBRARY = torch.library.Library("aten", "IMPL", "Meta")


def _shaped(value: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(value), torch.empty_like(value, dtype=torch.bool)


for _name in _MASKED:
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{_name}", "Meta"):
        _LIBRARY.impl(_name, _shaped)
