"""Every product one operation of its own, so that it can be counted and computed in any precision."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextlib.contextmanager
def unfused() -> Iterator[None]:
    """Runs the block without fused kernels: oneDNN's LSTM, the encoder's fast path, flash attention.

    They hide their products from torch's FLOP counter, and some exist in few precisions only.
    """
    fast_path, onednn = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled
    torch.backends.mha.set_fastpath_enabled(False)
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]  # torch does not type this property
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        torch.backends.mkldnn.enabled = onednn
