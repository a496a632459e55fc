"""Scores by gradients inside a user's own loop: which steps count, and what goes wrong."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from own_loop import Task, channels

import modelpress as mp
from modelpress.api.errors import SpecError
from modelpress_runner.errors import CompressionError, InvalidSpecError


def taylor(steps: int, **schedule) -> dict:
    """A stage that scores the 8 channels of the first layer by `steps` training steps; nothing is shrunk."""
    stage = channels(0.5, **schedule)
    stage["prune"] |= {"algorithm": "taylor", "scores": {"steps": steps}, "speedup": False}
    return stage


@pytest.mark.parametrize("window", [1, 2, 3, 10])
def test_the_last_steps_before_pruning_score(task, window):
    """Gone behind step 3 are the channels with the least sum of (w dL/dw)^2 over the last `window` steps."""
    twin, sums = Task(), torch.zeros(8, dtype=torch.float64)
    batches = list(twin.batches())[:3]
    for number, (x, y) in enumerate(batches):
        twin.optimizer.zero_grad()
        F.cross_entropy(twin.model(x), y).backward()
        if number >= 3 - window:
            weight = twin.model[0].weight
            sums += (weight.detach().double() * weight.grad.double()).square().sum(1)
        twin.optimizer.step()
    compression = mp.prepare_compression(task.model, [taylor(window, start_step=3)])
    compression.callbacks.on_train_begin()
    for x, y in batches:
        assert not (task.model[0].weight == 0).any()
        task.step(compression.callbacks, x, y)
    gone = (task.model[0].weight == 0).all(1)
    assert set(torch.nonzero(gone).flatten().tolist()) == set(sums.argsort()[:4].tolist())
    compression.callbacks.on_train_end()


def test_channels_go_in_turn_and_the_model_shrinks(task):
    """agp over 12 steps with scores of its own each time: 4 of 8 channels are gone in the end, physically."""
    stage = taylor(2, type="agp", end_step=12, frequency=4)
    stage["prune"]["speedup"] = True
    compression = mp.prepare_compression(task.model, [stage], dummy_input=task.x[:1])
    seen: list[int] = []
    compression.callbacks.on_train_begin()
    task.train(compression.callbacks, 3, each=lambda: seen.append(int((task.model[0].weight.abs().sum(1) == 0).sum())))
    # 0.5 * (1 - (1 - t/12)^3) of 8: 0, 0.35 -> 2.81, 0.48 -> 3.85, 4
    assert seen == [0] * 3 + [2] * 4 + [3] * 4 + [4]
    compression.callbacks.on_train_end()
    assert task.model[0].weight.shape == (4, 4)


def test_nothing_can_be_scored_before_the_first_step(task):
    """one_shot at step 0 with a method that needs gradients is refused with the field to change."""
    with pytest.raises(SpecError, match=r"schedule.startStep: taylor scores by the gradients .* at step 0 there were"):
        mp.prepare_compression(task.model, [taylor(2)])


def test_a_module_without_gradients_is_refused_before_the_loop(task):
    """A frozen weight has no score."""
    task.model[0].weight.requires_grad_(False)
    compression = mp.prepare_compression(task.model, [taylor(2, start_step=3)])
    with pytest.raises(InvalidSpecError, match="the weight of '0' has none"):
        compression.callbacks.on_train_begin()


def test_a_loop_that_throws_its_gradients_away_is_an_error(task):
    """zero_grad before on_before_optimizer_step leaves nothing to score by."""
    compression = mp.prepare_compression(task.model, [taylor(2, start_step=2)])
    callbacks = compression.callbacks
    callbacks.on_train_begin()

    def step() -> None:
        callbacks.on_step_begin(0)
        task.optimizer.zero_grad()
        callbacks.on_before_optimizer_step()
        callbacks.on_after_optimizer_step()

    step()
    with pytest.raises(CompressionError, match="no gradient reached '0' in 2 training steps"):
        step()


@pytest.mark.parametrize("watched", [True, False])
def test_a_step_that_a_scaler_skips_does_not_score(task, watched):
    """Infinite gradients of mixed precision: the GradScaler leaves the step out, and the scores do, too."""
    twin, sums = Task(), torch.zeros(8, dtype=torch.float64)
    batches = list(twin.batches())[:2]
    twin.optimizer.zero_grad()
    F.cross_entropy(twin.model(batches[0][0]), batches[0][1])  # its statistics go into the norm all the same
    F.cross_entropy(twin.model(batches[1][0]), batches[1][1]).backward()
    weight = twin.model[0].weight
    sums += (weight.detach().double() * weight.grad.double()).square().sum(1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    compression = mp.prepare_compression(
        task.model, [taylor(5, start_step=2)], optimizers=task.optimizer if watched else None
    )
    callbacks = compression.callbacks
    callbacks.on_train_begin()
    for number, (x, y) in enumerate(batches):
        callbacks.on_step_begin(number)
        task.optimizer.zero_grad()
        scaler.scale(F.cross_entropy(task.model(x), y) * (float("inf") if number == 0 else 1)).backward()
        if not watched:
            scaler.unscale_(task.optimizer)
        callbacks.on_before_optimizer_step()
        scaler.step(task.optimizer)
        scaler.update()
        callbacks.on_after_optimizer_step()
    gone = (task.model[0].weight == 0).all(1)
    assert set(torch.nonzero(gone).flatten().tolist()) == set(sums.argsort()[:4].tolist())
    callbacks.on_train_end()
    assert scaler.get_scale() == 4.0
