"""A loop of the user's own with the callbacks in it is the plain loop with masks put on by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from plain_scripts import PARTS, LoopScript

import modelpress as mp
from modelpress_runner.runtime import rng as seeding


class ByHand:
    """The smaller half of the first layer's weights goes, and stays away."""

    def __init__(self, model):
        self.weight = model[0].weight

    def on_train_begin(self):
        size = self.weight.detach().abs().flatten()
        self.kept = torch.ones_like(size, dtype=torch.bool)
        self.kept[size.argsort()[: len(size) // 2]] = False
        self.on_after_optimizer_step()

    def on_step_begin(self, batch):
        """Nothing."""

    on_train_end = on_before_optimizer_step = lambda self: None

    def on_after_optimizer_step(self):
        self.weight.data.mul_(self.kept.view_as(self.weight))


def train(script, callbacks):
    """Three epochs with dropout, a shuffled loader, accumulated gradients and a rate by epochs."""
    optimizer, scheduler = script.made(script.model)
    loader = script.loader()
    script.model.train()
    callbacks.on_train_begin()
    for _ in range(3):
        for number, (x, y, samples) in enumerate(loader, 1):
            callbacks.on_step_begin(number)
            script.saw(samples, optimizer)
            (F.cross_entropy(script.model(x), y) / PARTS).backward()
            if number % PARTS == 0:
                callbacks.on_before_optimizer_step()
                optimizer.step()
                callbacks.on_after_optimizer_step()
                optimizer.zero_grad()
        scheduler.step()
    callbacks.on_train_end()


@pytest.mark.parametrize("scored", [False, True])
def test_a_loop_with_callbacks_is_the_plain_loop(scored):
    """Weights, statistics, the learning rate of each step and the order of the samples, bit for bit."""
    plain, ours = LoopScript(), LoopScript()
    stage = {"algorithm": "level", "speedup": False, "config_list": [{"op_names": ["0"], "sparsity": 0.5}]}
    with seeding.aside(5):
        train(plain, ByHand(plain.model))
    with seeding.aside(5):
        compression = mp.prepare_compression(
            ours.model, [{"prune": stage}], evaluator=ours.accuracy if scored else None, dummy_input=torch.zeros(2, 4)
        )
        train(ours, compression.callbacks)
    assert ours.trace == plain.trace
    assert int((ours.model[0].weight == 0).sum()) == 16
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, ours.model.state_dict()[name]), name
