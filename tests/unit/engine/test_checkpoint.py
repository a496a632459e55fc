"""Checkpoints whose optimizers are kept in parts: a part is there as long as a checkpoint refers to it."""

from __future__ import annotations

import threading

import pytest
import torch

from modelpress.store import open_store
from modelpress_runner.engine.checkpoint import Checkpoint, Checkpointer, Within


def within(steps: int, run: int = 0) -> Within:
    """A place of a training step whose function is not called again."""
    return Within(steps, 0, 0, run, {}, [])


def checkpoint(place: Within) -> Checkpoint:
    """One of training step 0, with the number of its steps as its only weight."""
    generators = [{"everywhere": {}, "own": {}}]
    weights = {"weight": torch.tensor([float(place.steps)])}
    return Checkpoint(0, place, weights, {}, {}, [], {}, generators)


def keep(checkpointer: Checkpointer, place: Within, part: float) -> None:
    """As a training keeps one: first the part, then what refers to it."""
    checkpointer.save_shard(0, place, {"part": torch.tensor(part)})
    checkpointer.save(checkpoint(place))


def kept(checkpointer: Checkpointer) -> tuple[int, float]:
    """The steps of the checkpoint that is there, and its part."""
    found, note = checkpointer.load()
    assert found is not None
    assert note is None
    assert found.within is not None
    return found.within.steps, float(checkpointer.shard(found)["part"])


class Held:
    """A store whose first state.pt is not written before it may be."""

    def __init__(self, store):
        self._store, self.may, self._first = store, threading.Event(), True

    def put_file(self, path, local):
        if path.endswith("state.pt") and self._first:
            self._first = False
            assert self.may.wait(20)
        self._store.put_file(path, local)

    def __getattr__(self, name):
        return getattr(self._store, name)


def test_a_newer_part_outlasts_the_end_of_an_older_checkpoint(tmp_path):
    """What is written behind a checkpoint that is still under way is not among what that one forgets."""
    store = Held(open_store(str(tmp_path)))
    checkpointer = Checkpointer(store, "", "same", 1)
    keep(checkpointer, within(3), 0.3)
    keep(checkpointer, within(6), 0.6)
    store.may.set()
    assert kept(checkpointer) == (6, pytest.approx(0.6))


def test_a_training_that_began_anew_does_not_write_over_the_parts_before(tmp_path):
    """It may be cut off between its part and the checkpoint that refers to it: then the earlier one still holds."""
    store = open_store(str(tmp_path))
    checkpointer = Checkpointer(store, "", "same", 1)
    keep(checkpointer, within(3), 0.3)
    checkpointer.save_shard(0, within(3, run=1), {"part": torch.tensor(0.9)})
    checkpointer.wait()
    assert kept(Checkpointer(store, "", "same", 2)) == (3, pytest.approx(0.3))
    keep(checkpointer, within(3, run=1), 0.9)
    assert kept(checkpointer) == (3, pytest.approx(0.9))
