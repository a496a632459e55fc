"""torch's fake quantization in exported graphs: its operators, which lack shapes, export with a fixed batch only."""

from __future__ import annotations

from typing import Any

import torch

_CACHEMASKS = (
    "fake_quantize_per_tensor_affine_cachemask",
    "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams",
    "fake_quantize_per_channel_affine_cachemask",
)
_library: list[torch.library.Library] = []  # registrations live as long as it does


def register_shapes() -> None:
    """Tells torch the shapes that fake quantization gives, where this torch does not know them."""
    if _library:
        return
    library = torch.library.Library("aten", "IMPL", "Meta")
    for name in _CACHEMASKS:
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", "Meta"):
            library.impl(name, _value_and_mask)
    _library.append(library)


def _value_and_mask(x: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(x), torch.empty_like(x, dtype=torch.bool)
