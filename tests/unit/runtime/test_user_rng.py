"""Random number generators of the user's own survive a restart."""

from __future__ import annotations

import copy
import functools
import io
import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import modelpress as mp
from modelpress.api.v1alpha1 import Stage
from modelpress.store import open_store
from modelpress_runner.engine.checkpoint import Checkpointer
from modelpress_runner.engine.run import run_stages
from modelpress_runner.process.stopping import Stopped
from modelpress_runner.runtime import user_rng as generators
from modelpress_runner.subject.subject import Subject


class Holder:
    def __init__(self) -> None:
        self.rng = np.random.default_rng(3)

    def method(self) -> float:
        return self.rng.random()


def functions():
    """One function for each way to a generator."""
    g, legacy, own, holder = torch.Generator().manual_seed(1), np.random.RandomState(2), random.Random(4), Holder()
    loader = DataLoader(TensorDataset(torch.arange(8)), batch_size=2, shuffle=True, generator=g)

    def closure():
        return [batch[0].tolist() for batch in loader]

    def inner():
        return legacy.normal()

    def nested():
        return inner()

    return {
        "loader": closure,
        "nested": nested,
        "method": holder.method,
        "partial": functools.partial(lambda rng: rng.gauss(0, 1), own),
    }


def draw(made):
    return [function() for function in made.values()]


def test_every_way_to_a_generator_is_found():
    """Closures, functions in closures, bound methods, partials, data loaders; states pass through weights_only."""
    first = functions()
    draw(first)
    buffer = io.BytesIO()
    torch.save(generators.save(first), buffer)
    expected = draw(first)
    buffer.seek(0)
    again = functions()
    assert generators.restore(again, torch.load(buffer, weights_only=True)) == []
    assert draw(again) == expected
    assert draw(again) != expected


def test_the_global_generator_is_not_the_users_own():
    """random's module functions are saved elsewhere."""

    def uses_global():
        return random.random()

    assert generators.save({"f": uses_global}) == {}


def test_what_is_not_found_again_is_named():
    """By the way that led to it."""
    saved = generators.save(functions())
    other = functions()
    other["method"] = print
    assert generators.restore(other, saved) == ["method.self.rng"]


def evaluator_with_loader(task) -> mp.TorchEvaluator:
    loader = DataLoader(
        TensorDataset(task.x, task.y), batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(7)
    )

    def training_func(model, optimizer, training_step, scheduler, max_steps, max_epochs):
        for _ in range(max_epochs):
            for batch in loader:
                optimizer.zero_grad()
                training_step(batch, model).backward()
                optimizer.step()

    return task.evaluator(training_func=training_func)


def test_a_loader_with_its_own_generator_is_resumed_bit_for_bit(task):
    """The order of batches goes on where the checkpoint was taken, also into the next stage."""
    recipe = [Stage.model_validate({"finetune": {"epochs": 2}})] * 2
    dense = copy.deepcopy(task.model)
    whole = run_stages(Subject(task.model, evaluator_with_loader(task)), recipe, seed=0)
    store, left, stops = open_store("memory://"), 0, 0

    def stop():
        nonlocal left
        left -= 1
        if left <= 0 and stops:
            raise Stopped

    for stops in (6, 9, 0):
        left = stops
        task.model = copy.deepcopy(dense)
        subject = Subject(task.model, evaluator_with_loader(task))
        if stops:
            with pytest.raises(Stopped):
                run_stages(subject, recipe, seed=0, checkpointer=Checkpointer(store, "", "x"), stop=stop)
        else:
            resumed = run_stages(subject, recipe, seed=0, checkpointer=Checkpointer(store, "", "x"))
    assert resumed.resumed
    for a, b in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_compress_leaves_the_users_generators_where_they_were(task):
    """Two calls with one evaluator give the same model."""
    evaluator = evaluator_with_loader(task)
    stages = [{"finetune": {"epochs": 1}}]
    first, second = (mp.compress(task.model, stages, evaluator).model for _ in range(2))
    assert torch.equal(first[0].weight, second[0].weight)
