"""mp.compress: what it gives, and that it leaves no trace on what it was given."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from small_task import Task
from torch import nn

import modelpress as mp
from modelpress.api.errors import SpecError
from modelpress_runner.errors import InvalidModelError, InvalidSpecError, UserCodeError

LEVEL = {"prune": {"algorithm": "level", "config_list": [{"op_names": ["0"], "sparse_ratio": 0.5}], "speedup": False}}
TUNE = {"finetune": {"max_epochs": 2}}


@pytest.fixture
def task() -> Task:
    return Task()


def test_a_recipe_in_python_spelling_is_measured_before_and_after(task):
    """snake_case and older spellings are taken; baseline and result carry score and counts, and no times."""
    dense = copy.deepcopy(task.model)
    result = mp.compress(task.model, [LEVEL, TUNE], task.evaluator())
    baseline, compressed = result.metrics["baseline"], result.metrics["compressed"]
    assert baseline["default"] == task.evaluator().evaluate(dense)["default"]
    assert compressed["default"] == task.evaluator().evaluate(result.model)["default"]
    assert baseline["parameters"] == compressed["parameters"] == 56
    assert baseline["macs"] == 4 * 6 + 6 * 2
    assert compressed["nonzeroParameters"] <= 56 - 12
    assert compressed["sparsity"] == pytest.approx(1 - compressed["nonzeroParameters"] / 56)
    assert compressed["compressionRatio"] == pytest.approx(1.0)
    assert "latencyMs" not in compressed
    assert [record["method"] for record in result.metrics["stages"]] == ["prune", "finetune"]
    assert result.metrics["stages"][1]["score"] == {"default": compressed["default"]}
    assert result.metrics["training"]["steps"] == result.metrics["training"]["executed"] == 8
    assert int(result.masks["0"]["weight"].sum()) == 12


def test_the_users_objects_are_untouched(task):
    """Model, optimizer, gradients, modes, evaluator and global generators are as before, also after an exception."""
    task.model[1].eval()
    dense = copy.deepcopy(task.model.state_dict())
    optimizer = mp.trace(torch.optim.SGD)(task.model.parameters(), lr=0.1, momentum=0.9)
    calls = []

    def evaluating_func(model):
        calls.append(model)
        if len(calls) == 3:
            raise RuntimeError("third time")
        return task.evaluating_func(model)

    evaluator = task.evaluator(optimizers=optimizer, evaluating_func=evaluating_func)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(()).item()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    mp.compress(task.model, [TUNE], evaluator)
    with pytest.raises(UserCodeError, match="evaluating_func raised RuntimeError: third time"):
        mp.compress(task.model, [TUNE], evaluator)
    assert (random.random(), np.random.rand(), torch.rand(()).item()) == expected
    after = task.model.state_dict()
    assert all(torch.equal(dense[name], after[name]) for name in dense)
    assert all(parameter.grad is None for parameter in task.model.parameters())
    assert task.model.training
    assert not task.model[1].training
    assert not optimizer.state
    assert not optimizer._optimizer_step_pre_hooks
    assert not any(module._forward_hooks for module in task.model.modules())
    evaluator.bind(task.model)


def test_equal_seeds_give_equal_models(task):
    """The seed alone decides, not what was drawn before."""

    def weights(seed):
        torch.rand(1)
        return mp.compress(task.model, [LEVEL, TUNE], task.evaluator(), seed=seed).model[0].weight

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def test_scores_are_taken_once_before_and_once_after(task):
    """No pass over the data is made that nobody sees; with a report each stage is scored."""
    calls = []
    evaluator = task.evaluator(evaluating_func=lambda model: calls.append(1) or 0.5)
    mp.compress(task.model, [TUNE, TUNE], evaluator)
    assert len(calls) == 2
    calls.clear()
    events = []
    mp.compress(task.model, [TUNE], evaluator, report=events.append)
    assert len(calls) == 3
    assert [event.value for event in events] == [0.5, 0.5]


def test_a_function_is_evaluator_enough_for_what_needs_no_training(task):
    """A plain function scores; without any evaluator only counts are given."""
    scored = mp.compress(task.model, [LEVEL], lambda model: 1, dummy_input=task.x[:1])
    assert scored.metrics["compressed"]["default"] == 1.0
    bare = mp.compress(task.model, [LEVEL])
    assert "default" not in bare.metrics["compressed"]
    assert "macs" not in bare.metrics["compressed"]
    assert bare.metrics["compressed"]["nonzeroParameters"] <= 44


def test_a_compressed_model_can_be_compressed_again(task):
    """The same evaluator serves what came out of it."""
    evaluator = task.evaluator()
    first = mp.compress(task.model, [LEVEL, TUNE], evaluator)
    second = mp.compress(first.model, [LEVEL, TUNE], evaluator)
    assert not torch.equal(first.model[0].weight, second.model[0].weight)


def test_benchmark_and_target_are_asked_for(task):
    """Times are taken when a benchmark is given; pt2 measures the program."""
    result = mp.compress(
        task.model,
        [LEVEL],
        task.evaluator(),
        benchmark={"warmup": 1, "iterations": 3, "batch_size": 4},
        target={"format": "pt2"},
    )
    assert result.metrics["compressed"]["latencyMs"] > 0
    assert result.metrics["timing"]["batchSize"] == 4
    assert result.metrics["timing"]["target"] == "pt2"
    with pytest.raises(InvalidModelError, match=r"spec\.benchmark: there is no example input"):
        mp.compress(task.model, [LEVEL], benchmark={})


def test_a_call_that_was_cut_short_goes_on_from_its_checkpoint(task, tmp_path, monkeypatch):
    """Repeated with the same arguments it goes on behind the last checkpoint, and equals a call that was not cut."""
    monkeypatch.setenv("MODELPRESS_CHECKPOINT_STEPS", "4")
    whole = mp.compress(task.model, [{"finetune": {"epochs": 4}}], task.evaluator())
    count = 0

    def training_step(*args):
        nonlocal count
        count += 1
        if count == 11:
            raise KeyboardInterrupt
        return task.training_step(*args)

    evaluator = task.evaluator(training_step=training_step)
    with pytest.raises(KeyboardInterrupt):
        mp.compress(task.model, [{"finetune": {"epochs": 4}}], evaluator, checkpoint=tmp_path)
    assert (tmp_path / "checkpoint" / "state.pt").exists()
    result = mp.compress(task.model, [{"finetune": {"epochs": 4}}], evaluator, checkpoint=str(tmp_path))
    assert count == 10 + 1 + 8  # 8 of 16 steps were in the checkpoint
    assert result.metrics["training"] == {"steps": 16, "executed": 16, "repeated": 0, "checkpoints": 2 + 1}
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), result.model.parameters(), strict=True))
    assert not (tmp_path / "checkpoint" / "state.pt").exists()


def test_a_result_is_saved_and_loaded_without_the_class(task, tmp_path):
    """The program gives what the model gives."""
    result = mp.compress(task.model, [LEVEL], task.evaluator())
    assert result.save(tmp_path / "out") == str(tmp_path / "out")
    loaded = mp.load(tmp_path / "out")
    result.model.eval()
    with torch.no_grad():
        assert torch.allclose(loaded(task.x), result.model(task.x), atol=1e-6)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], r"spec\.stages"),
        ("level", r"spec\.stages"),
        ([{"prune": {"config_list": [{"sparsity": 2}]}}], r"spec\.stages\[0\]\.prune\.configList\[0\]\.sparsity"),
        ([{"finetune": {"epoch": 1}}], r"spec\.stages\[0\]\.finetune"),
        ([{"prune": {"config_list": [{"sparsity": 0.5, "sparse_ratio": 0.5}]}}], "two spellings of one key"),
    ],
)
def test_a_recipe_that_is_no_recipe_is_a_spec_error(task, stages, message):
    """The message names the field."""
    with pytest.raises(SpecError, match=message):
        mp.compress(task.model, stages, task.evaluator())


def test_wrong_models_and_evaluators_are_refused(task):
    """One sentence each."""
    with pytest.raises(InvalidModelError, match="the model is a dict; it must be a"):
        mp.compress({}, [TUNE])
    with pytest.raises(InvalidModelError, match="the evaluator is a float"):
        mp.compress(task.model, [TUNE], 0.5)
    with pytest.raises(InvalidSpecError, match=r"spec\.stages\[0\]\.finetune: this stage trains, but there is no"):
        mp.compress(task.model, [TUNE])
    other = mp.trace(torch.optim.SGD)(nn.Linear(4, 2).parameters(), lr=0.1)
    with pytest.raises(InvalidModelError, match="SGD holds 2 parameters that are not in the model"):
        mp.compress(task.model, [TUNE], task.evaluator(optimizers=other))
    task.model.cache = task.model(task.x)
    with pytest.raises(InvalidModelError, match="the model cannot be copied"):
        mp.compress(task.model, [TUNE], task.evaluator())
