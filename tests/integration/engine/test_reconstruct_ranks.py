"""Recovery by several processes is that of one: each takes a share of the calibration data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_recovery import recovered
from two_ranks import two_ranks


@pytest.mark.long
def test_two_ranks_recover_as_one(tmp_path: Path) -> None:
    """Three batches of unequal size in two shares: the same bits on both ranks, and but for the order of sums one's."""
    with two_ranks(Path(__file__).with_name("reconstruct_worker.py"), tmp_path) as left:
        pass
    first, second = left
    for kind, state in first.items():
        alone = recovered(kind)
        for name, value in state.items():
            assert torch.equal(value, second[kind][name]), (kind, name)
            assert torch.allclose(value, alone[name], rtol=1e-9, atol=1e-12), (kind, name)
