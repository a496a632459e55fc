"""Two processes prune as one, by every method."""

from __future__ import annotations

from pathlib import Path

import prune_worker
import pytest
import torch
from two_ranks import two_ranks

from modelpress.api.v1alpha1.algorithms import names


@pytest.mark.long
def test_two_ranks_prune_as_one(tmp_path: Path) -> None:
    """The masks of both are those of one process that sees the data of both."""
    with two_ranks(prune_worker.__file__, tmp_path) as left:
        alone = prune_worker.masks()
    assert set(alone) == set(names("prune"))
    for seen in left:
        for method, modules in alone.items():
            assert seen[method].keys() == modules.keys(), method
            for name, mask in modules.items():
                assert torch.equal(seen[method][name], mask), (method, name)
                assert bool((mask == 0).any()) or method == "pattern_lock", method
