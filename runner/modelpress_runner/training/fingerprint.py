"""Fingerprints of tensors: whether one has changed, without a copy of it."""

from __future__ import annotations

import functools

import torch

_BYTES = 1 << 20  # looked at in one operation
_SEED = 20260411


@torch.no_grad()
def fingerprint(tensor: torch.Tensor) -> torch.Tensor:
    """A number that changes with the tensor's bits: int64, of no dimension, on its device; nothing waits for it.

    The sum of all words of 64 bits, each times an odd factor of its own, modulo 2^64: a change of one word always
    changes it, one of several words leaves it as it was by chance only, once in some 2^60 times.
    """
    flat = tensor.detach()
    if flat.layout != torch.strided:
        flat = flat.to_dense()
    flat = torch.view_as_real(flat) if flat.is_complex() else flat
    flat = flat.reshape(-1)
    total = torch.zeros((), dtype=torch.long, device=tensor.device)
    length = _BYTES // flat.element_size()
    factors = _factors(tensor.device)
    for number, start in enumerate(range(0, flat.numel(), length)):
        words = _words(flat[start : start + length])
        total += (words * factors[: len(words)]).sum() * (2 * number + 1)
    return total


def _words(block: torch.Tensor) -> torch.Tensor:
    """The bytes of a block as words of 64 bits, filled up with zeros."""
    size = block.numel() * block.element_size()
    missing = -size % 8
    if missing:
        filled = torch.zeros(size + missing, dtype=torch.uint8, device=block.device)
        filled[:size] = block.view(torch.uint8)
        return filled.view(torch.long)
    aligned = block.storage_offset() * block.element_size() % 8 == 0
    return (block if aligned else block.clone()).view(torch.long)


@functools.lru_cache(maxsize=8)
def _factors(device: torch.device) -> torch.Tensor:
    generator = torch.Generator().manual_seed(_SEED)
    return (torch.randint(-(2**62), 2**62, (_BYTES // 8,), generator=generator) * 2 + 1).to(device)
