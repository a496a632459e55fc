"""Fingerprints tell changed tensors from unchanged ones."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modelpress_runner.training import fingerprint as module
from modelpress_runner.training.fingerprint import fingerprint


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.complex64, torch.int8, torch.bool]
)
@pytest.mark.parametrize("shape", [(), (1,), (7, 3), (2, 0, 4), (1031,)])
def test_equal_bits_give_equal_fingerprints(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Wherever the tensor lies in its memory and whatever its strides are."""
    value = torch.randn(shape, generator=torch.Generator().manual_seed(0)).mul(3).to(dtype)
    one = int(fingerprint(value))
    assert int(fingerprint(value.clone())) == one
    if value.numel():
        shifted = torch.cat([value.flatten()[:1], value.flatten()])[1:].view(shape)
        assert int(fingerprint(shifted)) == one
    if value.dim() == 2:
        assert int(fingerprint(value.t().contiguous().t())) == one


@given(st.integers(0, 299_999), st.integers(0, 31))
def test_one_bit_changes_it(place: int, bit: int) -> None:
    """Any bit, in any block."""
    value = torch.zeros(300_000, dtype=torch.int32)
    before = int(fingerprint(value))
    value[place] ^= -(2**31) if bit == 31 else 1 << bit
    assert int(fingerprint(value)) != before


@pytest.mark.parametrize("change", ["swap", "shift", "all alike", "opposite"])
def test_changes_that_leave_a_sum_as_it_was(change: str) -> None:
    """Weights that change places, blocks that do, one number everywhere, and steps that cancel out."""
    block = module._BYTES // 4
    value = torch.randn(2 * block, generator=torch.Generator().manual_seed(1))
    before = int(fingerprint(value))
    if change == "swap":
        value[[5, 9]] = value[[9, 5]].clone()
    elif change == "shift":
        value = value.roll(block)
    elif change == "all alike":
        value += 0.5
    else:
        value[::2] += 0.25
        value[1::2] -= 0.25
    assert int(fingerprint(value)) != before
