"""Whether somebody drew random numbers, and what tells one batch from another: asked around every training step."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from modelpress_runner.evaluators.replay.draws import Draws, changed
from modelpress_runner.evaluators.replay.recorded import Recorded, checksum, digest

DRAWN = {
    "nothing": (lambda: None, []),
    "python": (random.random, ["python"]),
    "python, a whole block of words": (lambda: [random.getrandbits(32) for _ in range(624)], ["python"]),
    "the second of two normal numbers": (lambda: random.gauss(0, 1), ["python"]),
    "numpy": (np.random.rand, ["numpy"]),
    "numpy, a whole block of words": (lambda: np.random.bytes(4 * 624), ["numpy"]),
    "numpy, the second of two normal numbers": (np.random.randn, ["numpy"]),
    "torch": (lambda: torch.rand(1), ["torch"]),
    "seeding": (
        lambda: (random.seed(random.getrandbits(32)), np.random.seed(np.random.randint(2**31))),
        ["numpy", "python"],
    ),
}


@pytest.mark.parametrize("what", DRAWN)
def test_a_draw_is_seen_and_taken_back(what):
    """Each time, also where the position comes back to what it was; and put() makes the next numbers what they were."""
    draw, names = DRAWN[what]
    random.seed(0)
    np.random.seed(0)
    draws = Draws({})
    for _ in range(3):
        before = draws.read()
        draw()
        assert sorted(changed(before, draws.read())) == names
    saved = draws.read()
    drawn = random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), float(torch.rand(()))
    draws.put(saved)
    assert (random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), float(torch.rand(()))) == drawn


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.uint8])
def test_batches_are_told_apart_in_every_type(dtype):
    """By a number, by the shape, by the types of what is beside it; not by memory layout or gradients."""
    numbers = (torch.arange(12).reshape(3, 4) % 2).to(dtype)
    seen = checksum(digest({"x": numbers, "id": 7}))
    assert checksum(digest({"x": numbers.t().contiguous().t(), "id": 7})) == seen
    if dtype.is_floating_point:
        assert checksum(digest({"x": numbers.clone().requires_grad_(), "id": 7})) == seen
    other = numbers.clone()
    other[2, 3] = 0 if other[2, 3] else 1
    for changed_batch in ({"x": other, "id": 7}, {"x": numbers.reshape(4, 3), "id": 7}, {"x": numbers, "id": "7"}):
        assert checksum(digest(changed_batch)) != seen
    assert checksum(digest([torch.zeros(2, dtype=torch.complex64), torch.zeros(0), torch.zeros(2).to_sparse()])) > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_loss_is_given_back_as_it_was(dtype):
    """Its number, its type, and that it goes backward."""
    loss = (torch.full((), 1 / 3, dtype=dtype, requires_grad=True) * 1).sum()
    went = []
    again = Recorded.rebuilt(Recorded(loss).plain(), lambda: went.append(True))
    assert (again.item(), again.dtype, again.shape, again.requires_grad) == (loss.item(), dtype, loss.shape, True)
    again.backward()
    assert went == [True]
