"""Four stages (prune, finetune, distill, quantize) killed at random in each of them: the same weights in the end."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_task import Task

from modelpress.api.v1alpha1 import Stage
from modelpress.store import open_store
from modelpress_runner.engine.checkpoint import Checkpointer
from modelpress_runner.engine.run import run_stages
from modelpress_runner.subject.subject import Subject

EPOCH = 4  # steps
STAGES = [
    {
        "prune": {
            "algorithm": "l1",
            "configList": [{"opNames": ["0"], "sparsity": 0.5}],
            "schedule": {"type": "linear", "rounds": 2, "train": {"epochs": 1}},
        }
    },
    {"finetune": {"epochs": 2}},
    {"distill": {"epochs": 2, "temperature": 2.0, "layerMappings": [{"student": "0"}]}},
    {"quantize": {"algorithm": "qat", "epochs": 2, "configList": [{"opTypes": ["Linear"], "quantBits": 4}]}},
]


class KilledError(BaseException):
    """Stands for a process that ends at once: nobody catches it and goes on."""


def run(store: Any, attempt: int, die_at: int | None) -> tuple[dict[str, Any], Any, int]:
    """State, masks and steps of the model; it dies in the training step that is `die_at`-th to be computed."""
    task = Task()
    computed = [0]
    step = task.training_step

    def counted(batch: Any, model: Any) -> torch.Tensor:
        computed[0] += 1
        if computed[0] == die_at:
            raise KilledError
        return step(batch, model)

    task.training_step = counted
    stages = [Stage.model_validate(stage) for stage in STAGES]
    subject = Subject(task.model, task.evaluator())
    try:
        outcome = run_stages(subject, stages, seed=3, checkpointer=Checkpointer(store, "", "same", attempt, every=3))
    except KilledError:
        return {}, None, computed[0]
    return outcome.model.state_dict(), outcome.masks, computed[0]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: Any) -> tuple[dict[str, Any], Any, int]:
    return run(open_store(str(tmp_path_factory.mktemp("alone"))), 1, None)


def within(stage: int) -> Callable[[random.Random], int]:
    """A step of the stage's training, two epochs each; those of all stages count from 1."""
    return lambda chance: chance.randint(stage * 2 * EPOCH + 1, (stage + 1) * 2 * EPOCH)


@pytest.mark.parametrize("stage", range(4), ids=["prune", "finetune", "distill", "quantize"])
def test_killed_in_a_stage_it_ends_the_same(stage, alone, tmp_path):
    """Two kills, the second wherever it comes; weights, integers and masks are the same to the bit."""
    chance = random.Random(stage)
    store = open_store(str(tmp_path))
    assert run(store, 1, within(stage)(chance))[1] is None
    second = run(store, 2, chance.randint(1, 6))
    done = second if second[0] else run(store, 3, None)
    state, masks, _ = alone
    assert done[0].keys() == state.keys()
    assert all(torch.equal(value, done[0][name]) for name, value in state.items() if isinstance(value, torch.Tensor))
    assert masks.keys() == done[1].keys()
    assert all(torch.equal(mask, done[1][name][key]) for name, pair in masks.items() for key, mask in pair.items())


def test_the_undisturbed_run_is_a_four_stage_one(alone):
    """Half of six channels are gone; what is computed is what the stages ask for."""
    state, _, steps = alone
    assert steps == 8 * EPOCH
    assert (len(state["0.bias"]), state["0.weight_integers"].dtype) == (3, torch.uint8)
