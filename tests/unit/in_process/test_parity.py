"""A loop of the user's own with the callbacks in it is the plain loop with masks put on by hand."""

from __future__ import annotations

import pytest
import torch
from plain_scripts import OwnLoopScript

import modelpress as mp
from modelpress_runner.runtime import rng


@pytest.mark.parametrize("scored", [False, True])
def test_a_loop_with_callbacks_is_the_plain_loop(scored):
    """Weights, statistics, the learning rate of each step and the order of the samples, bit for bit."""
    plain, ours = OwnLoopScript(), OwnLoopScript()
    stage = {"algorithm": "level", "speedup": False, "config_list": [{"op_names": ["0"], "sparsity": 0.5}]}
    with rng.fork_rng(5):
        plain.plain(None, 3)
    with rng.fork_rng(5):
        compression = mp.prepare_compression(
            ours.model, [{"prune": stage}], evaluator=ours.accuracy if scored else None, dummy_input=torch.zeros(2, 4)
        )
        ours.train(compression.callbacks, range(3), *ours.made(ours.model))
    assert ours.trace == plain.trace
    assert int((ours.model[0].weight == 0).sum()) == 16
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, ours.model.state_dict()[name]), name
