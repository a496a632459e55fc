"""mp.prepare_compression: pruning in the course of a user's own loop, and what comes out of it."""

from __future__ import annotations

import gc
import logging
import math
import random

import numpy as np
import pytest
import torch
from own_loop import Task, channels, level, zeros
from torch import nn

import modelpress as mp
from modelpress.api.errors import SpecError
from modelpress_runner.edits.masks import placed
from modelpress_runner.errors import CompressionError, InvalidModelError, InvalidSpecError
from modelpress_runner.process.stopping import Stopped


def test_weights_go_as_the_schedule_says(task):
    """linear over 8 steps to one half of 32: 0, 2, 4, ... 16 zeros behind each step, and 16 from then on."""
    compression = mp.prepare_compression(task.model, [level(0.5, type="linear", start_step=0, end_step=8)])
    seen: list[int] = []
    compression.callbacks.on_train_begin()
    assert zeros(task.model[0]) == 0
    task.train(compression.callbacks, epochs=3, each=lambda: seen.append(zeros(task.model[0])))
    compression.callbacks.on_train_end()
    assert seen == [2, 4, 6, 8, 10, 12, 14, 16, 16, 16, 16, 16]
    assert int((compression.result.masks["0"]["weight"] == 0).sum()) == 16


def test_what_is_pruned_is_what_is_smallest_at_that_moment(task):
    """Behind step 3 the 16 weights of the first layer that were smallest then are gone, and they stay gone."""
    compression = mp.prepare_compression(task.model, [level(0.5, start_step=3)])
    callbacks, weight = compression.callbacks, task.model[0].weight
    callbacks.on_train_begin()
    batches = [*task.batches(), *task.batches()]
    for x, y in batches[:2]:
        task.step(callbacks, x, y)
    twin = Task()
    for x, y in batches[:3]:
        twin.optimizer.zero_grad()
        torch.nn.functional.cross_entropy(twin.model(x), y).backward()
        twin.optimizer.step()
    smallest = twin.model[0].weight.detach().abs().flatten().argsort()[:16]
    assert zeros(task.model[0]) == 0
    for x, y in batches[2:]:
        task.step(callbacks, x, y)
        assert set(torch.nonzero(weight.flatten() == 0).flatten().tolist()) == set(smallest.tolist())


def test_the_model_is_shrunk_in_place_at_the_end(task):
    """Half of 8 channels: the same object is smaller, computes what the masked one computed, and can be saved."""
    compression = mp.prepare_compression(
        task.model, [channels(0.5)], evaluator=task.accuracy, dummy_input=task.x[:1], optimizers=task.optimizer
    )
    with compression:
        compression.callbacks.on_train_begin()
        task.train(compression.callbacks, epochs=2)
        task.model.eval()
        masked = task.model(task.x).detach()
        compression.callbacks.on_train_end()
    result = compression.result
    assert result.model is task.model is compression.model
    assert task.model[0].weight.shape == (4, 4)
    assert task.model[3].weight.shape == (2, 4)
    torch.testing.assert_close(task.model(task.x), masked)
    # 4*4+4 + 4*2 + 4*2+2 = 38 of 8*4+8 + 8*2 + 8*2+2 = 74
    assert result.metrics["baseline"]["parameters"] == 74
    assert result.metrics["compressed"]["parameters"] == 38
    assert result.metrics["compressed"]["default"] == task.accuracy(task.model)
    record = result.metrics["stages"][0]
    assert (record["name"], record["method"], record["algorithm"], record["steps"]) == ("0-prune", "prune", "l1", 8)
    assert record["sparsityAsked"] == [0.5]
    assert record["macs"] < 48


def test_a_result_reloads_without_the_loop(task, tmp_path):
    """result.save writes what mp.load opens: the program, and the weights for a dense model of the class."""
    compression = mp.prepare_compression(task.model, [channels(0.25)], dummy_input=task.x[:1])
    compression.callbacks.on_train_begin()
    task.train(compression.callbacks, epochs=1)
    compression.callbacks.on_train_end()
    task.model.eval()
    uri = compression.result.save(tmp_path / "small")
    torch.testing.assert_close(mp.load(uri)(task.x), task.model(task.x))
    again = mp.load(uri, into=Task(seed=7).model).eval()
    assert torch.equal(again(task.x), task.model(task.x))


def test_what_was_trained_further_is_not_saved_as_pruned(task, tmp_path):
    """Training behind on_train_end brings pruned weights back; saving the result then says so."""
    compression = mp.prepare_compression(task.model, [level()])
    compression.callbacks.on_train_begin()
    task.train(compression.callbacks, epochs=1)
    compression.callbacks.on_train_end()
    task.optimizer.step()
    with pytest.raises(CompressionError, match=r"after further training .* of 0\.weight are no longer zero"):
        compression.result.save(tmp_path / "small")


def test_pruning_alone_needs_no_training(task):
    """one_shot at step 0 and no step at all: the model is pruned, and what was measured says how."""
    compression = mp.prepare_compression(task.model, [channels()], evaluator=task.accuracy, dummy_input=task.x[:1])
    compression.callbacks.on_train_begin()
    compression.callbacks.on_train_end()
    assert compression.result.metrics["compressed"]["parameters"] == 38
    assert set(compression.baseline) >= {"default", "parameters", "macs"}


def test_two_stages_go_side_by_side(task):
    """Single weights of the last layer go while channels of the first do, each by its own schedule."""
    stages = [channels(0.5, start_step=4), level(0.25, type="linear", end_step=4)]
    stages[1]["prune"]["config_list"] = [{"op_names": ["3"], "sparsity": 0.25}]
    compression = mp.prepare_compression(task.model, stages, dummy_input=task.x[:1])
    compression.callbacks.on_train_begin()
    task.train(compression.callbacks, epochs=1)
    assert int((task.model[0].weight.abs().sum(1) == 0).sum()) == 4
    compression.callbacks.on_train_end()
    assert [record["name"] for record in compression.result.metrics["stages"]] == ["0-prune", "1-prune"]
    assert task.model[3].weight.shape == (2, 4)
    kept = compression.result.masks.get("3", {}).get("weight")
    assert kept is None or kept.shape == (2, 4)


def test_entries_have_schedules_of_their_own(task):
    """One layer is pruned at once, the other from step 2 on."""
    stage = level(0.5)
    stage["prune"]["config_list"] = [
        {"op_names": ["0"], "sparsity": 0.5},
        {"op_names": ["3"], "sparsity": 0.5, "schedule": {"start_step": 2}},
    ]
    compression = mp.prepare_compression(task.model, [stage])
    seen: list[tuple[int, int]] = []
    compression.callbacks.on_train_begin()
    task.train(compression.callbacks, 1, lambda: seen.append((zeros(task.model[0]), zeros(task.model[3]))))
    compression.callbacks.on_train_end()
    assert seen == [(16, 0), (16, 8), (16, 8), (16, 8)]


# What goes wrong -----------------------------------------------------------------------------------------------------


def test_a_loop_that_is_too_short_is_an_error(task):
    """The target is reached after 100 steps, and 4 were made."""
    compression = mp.prepare_compression(task.model, [level(0.5, type="agp", end_step=100)])
    compression.callbacks.on_train_begin()
    task.train(compression.callbacks, epochs=1)
    with pytest.raises(CompressionError, match="made 4 optimizer steps, and 0-prune reaches its target after 100"):
        compression.callbacks.on_train_end()
    with pytest.raises(InvalidModelError, match="the training failed"):
        _ = compression.result


def test_a_loop_that_trains_another_model_is_an_error(task):
    """Steps were made, and no weight of the given model has changed."""
    compression = mp.prepare_compression(task.model, [level()])
    other = Task()
    compression.callbacks.on_train_begin()
    other.train(compression.callbacks, epochs=1)
    with pytest.raises(CompressionError, match="4 optimizer steps, and no weight of the model changed; train"):
        compression.callbacks.on_train_end()


@pytest.mark.parametrize("where", ["on_epoch_end", "on_before_eval", "on_train_end"])
def test_steps_without_callbacks_are_found_out(task, where):
    """An optimizer that steps behind the callbacks' back revives pruned weights; the next check says what to call."""
    compression = mp.prepare_compression(task.model, [level()])
    callbacks = compression.callbacks
    callbacks.on_train_begin()
    callbacks.on_epoch_begin(0)
    task.model(task.x).sum().backward()
    task.optimizer.step()
    with pytest.raises(CompressionError, match=r"no longer zero; call on_after_optimizer_step\(\) after every"):
        getattr(callbacks, where)()


def test_weights_that_are_not_finite_are_an_error(task):
    """NaN in the model ends the training with the name of the weight."""
    compression = mp.prepare_compression(task.model, [level()])
    compression.callbacks.on_train_begin()
    task.train(compression.callbacks, epochs=1)
    task.model[3].bias.data.fill_(float("nan"))
    with pytest.raises(CompressionError, match=r"made 3.bias NaN or infinite"):
        compression.callbacks.on_train_end()


def test_an_end_that_fails_fails_the_training(task):
    """A weight that is no number: nothing is shrunk, and there is no result."""
    compression = mp.prepare_compression(task.model, [channels(0.5)], dummy_input=task.x[:1])
    compression.callbacks.on_train_begin()
    with torch.no_grad():
        list(task.model.parameters())[-1].fill_(math.nan)
    with pytest.raises(CompressionError, match="NaN"):
        compression.callbacks.on_train_end()
    with pytest.raises(InvalidModelError, match="the training failed"):
        _ = compression.result


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{"finetune": {"epochs": 1}}], r"stages\[0\].finetune: the script trains in a loop of its own"),
        ([level(rounds=2, type="agp", end_step=3)], "has steps, not rounds"),
        ([level(type="agp")], "agp needs the step at which the target is reached"),
        ([channels(), channels()], "shrinks the model at the end of the loop, and that happens once"),
        ([level(start_step=-1)], "startStep"),
        ([], "stages"),
    ],
)
def test_recipes_that_no_loop_can_follow_are_refused(task, stages, message):
    """A stage that trains, rounds, an open end, two shrinks."""
    with pytest.raises(SpecError, match=message):
        mp.prepare_compression(task.model, stages)


def test_stages_are_checked_against_the_model_before_the_loop(task):
    """A name that is not there is an error of on_train_begin, although pruning would begin much later."""
    stage = level(start_step=1000)
    stage["prune"]["config_list"] = [{"op_names": ["fc"], "sparsity": 0.5}]
    compression = mp.prepare_compression(task.model, [stage])
    with pytest.raises(InvalidSpecError, match="the model has no module 'fc'"):
        compression.callbacks.on_train_begin()


def test_a_shrink_without_a_dummy_input_is_refused_before_the_loop(task):
    """It could not be proven at the end."""
    with pytest.raises(InvalidSpecError, match="needs a dummy_input"):
        mp.prepare_compression(task.model, [channels(start_step=9)]).callbacks.on_train_begin()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": 3}, "the model is a int"),
        ({"model": nn.DataParallel(nn.Linear(1, 1))}, "wrapped in DataParallel; give prepare_compression"),
        ({"model": torch.compile(nn.Linear(1, 1))}, "the model is compiled"),
        ({"evaluator": "accuracy"}, "the evaluator is a str"),
        ({"stages": None}, "was given no stages, and no job runs this script; give stages"),
        ({"optimizers": ["sgd"]}, "was given a str among its optimizers"),
        (
            {"optimizers": torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.1)},
            "the SGD holds no parameter of the model; make it from model.parameters()",
        ),
        ({"lr_schedulers": object()}, "was given a object among its lr_schedulers"),
        ({"lr_schedulers": torch.optim.lr_scheduler.ConstantLR}, "lr_schedulers but no optimizers"),
        ({"pretrain": lambda model: nn.Linear(1, 1)}, "pretrain returned another model"),
    ],
)
def test_what_is_of_the_wrong_kind_is_refused(task, changes, message):
    """Models, evaluators, optimizers and schedulers that cannot be what they are given as."""
    given = {"model": task.model, "stages": [level()]} | changes
    with pytest.raises(InvalidModelError, match=message):
        mp.prepare_compression(given.pop("model"), given.pop("stages"), **given)


# Around it -----------------------------------------------------------------------------------------------------------


def test_the_baseline_is_that_of_the_pretrained_model(task):
    """pretrain trains the given model before anything is measured or pruned."""

    def pretrain(model: nn.Module) -> None:
        task.train(_Ignored(), epochs=20)

    compression = mp.prepare_compression(task.model, [level()], evaluator=task.accuracy, pretrain=pretrain)
    assert compression.baseline["default"] == task.accuracy(task.model) > 0.9


class _Ignored:
    def __getattr__(self, name: str):
        return lambda *args: None


def test_an_evaluation_leaves_no_trace_in_the_training(task):
    """Modes of modules and random numbers are those of before on_before_eval; score() needs neither callback."""
    compression = mp.prepare_compression(task.model, [level()], evaluator=task.accuracy)
    callbacks = compression.callbacks
    callbacks.on_train_begin()
    task.model.train()
    task.model[1].eval()
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    callbacks.on_before_eval()
    task.model.eval()
    torch.rand(3), random.random(), np.random.rand()
    callbacks.on_after_eval()
    assert [module.training for module in task.model] == [True, False, True, True]
    assert compression.score() == {"default": task.accuracy(task.model)}
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == state[1:]
    with pytest.raises(InvalidModelError, match="there is nothing to score with"):
        mp.prepare_compression(Task().model, [level()]).score()


def test_preparing_and_ending_leave_random_numbers_alone(task):
    """A loop sees the numbers that it would see without compression."""
    torch.manual_seed(3)
    undisturbed = torch.rand(2)
    torch.manual_seed(3)
    compression = mp.prepare_compression(task.model, [channels()], evaluator=task.accuracy, dummy_input=task.x[:1])
    compression.callbacks.on_train_begin()
    compression.callbacks.on_train_end()
    assert torch.equal(torch.rand(2), undisturbed)


def test_a_with_block_must_come_to_its_end(task):
    """A block that ends before on_train_end is an error; an exception inside goes through as it is."""
    with (
        pytest.raises(InvalidModelError, match=r"on_train_end\(\) was not called"),
        mp.prepare_compression(task.model, [level()]) as compression,
    ):
        compression.callbacks.on_train_begin()
    with pytest.raises(KeyError), mp.prepare_compression(task.model, [level()]) as compression:
        {}["what the user's code has not got"]
    with pytest.raises(InvalidModelError, match="came after the end of the with block"):
        compression.callbacks.on_step_begin(0)
    with pytest.raises(Stopped), mp.prepare_compression(task.model, [level()]):
        raise Stopped


def test_a_compression_that_is_thrown_away_says_so(task, caplog):
    """Who forgets on_train_end reads in the log that the model is not compressed; the optimizer is let go."""
    compression = mp.prepare_compression(task.model, [level()], optimizers=task.optimizer)
    compression.callbacks.on_train_begin()
    with caplog.at_level(logging.ERROR, "modelpress"):
        del compression
        gc.collect()
    assert "thrown away without a result: on_train_end() was not called" in caplog.text
    assert not task.optimizer._optimizer_step_pre_hooks


def test_progress_is_reported(task):
    """Events for the beginning, the target, each epoch and the shrink, with the epochs done of those planned."""
    events = []
    compression = mp.prepare_compression(
        task.model, [channels(0.5, start_step=2)], dummy_input=task.x[:1], report=events.append
    )
    compression.callbacks.on_train_begin()
    for epoch in compression.epochs(2):
        compression.callbacks.on_epoch_begin(epoch)
        task.train(compression.callbacks, epochs=1)
        mp.report(epoch, default=0.5)
        compression.callbacks.on_epoch_end()
    compression.callbacks.on_train_end()
    assert [(event.stage, event.step, event.total, event.message) for event in events if event.at is None] == [
        ("loop", 0, 0, "begins"),
        ("loop", 0, 2, "2 epochs to train"),
        ("0-prune", 0, 2, "target reached after 2 steps"),
        ("loop", 1, 2, "epoch 1 of 2, 4 steps"),
        ("loop", 2, 2, "epoch 2 of 2, 8 steps"),
        ("0-prune", 2, 2, "shrunk: 74 -> 38 parameters, 48 -> 24 MACs"),
    ]
    assert [(event.at, event.value) for event in events if event.at is not None] == [(0, 0.5), (1, 0.5)]


@pytest.mark.parametrize("count", [0, -1, 1.5, True])
def test_epochs_wants_a_number(task, count):
    """1 or more."""
    compression = mp.prepare_compression(task.model, [level()])
    compression.callbacks.on_train_begin()
    with pytest.raises(InvalidModelError, match="give the number of epochs, 1 or more"):
        next(iter(compression.epochs(count)))


def test_epochs_and_epoch_callbacks_go_together(task):
    """An epoch that is still open when the loop asks for the next one is an error."""
    compression = mp.prepare_compression(task.model, [level()])
    compression.callbacks.on_train_begin()
    epochs = compression.epochs(2)
    compression.callbacks.on_epoch_begin(next(epochs))
    with pytest.raises(InvalidModelError, match=r"went on before on_epoch_end\(\)"):
        next(epochs)


def test_masks_follow_the_model():
    """Masks go where the parameters are: a checkpoint's are read into main memory, and a loop may move its model."""
    masks = {"": {"weight": torch.ones(2, 3)}}
    assert placed(masks, nn.Linear(3, 2, device="meta"))[""]["weight"].device.type == "meta"
    assert torch.equal(placed(masks, nn.Linear(3, 2))[""]["weight"], torch.ones(2, 3))


def two_layers(first: int, second: int) -> list[dict]:
    """One stage that prunes one half of two layers, each at its own frequency, linearly over 100 steps."""
    entries = [
        {
            "op_names": [name],
            "sparsity": 0.5,
            "schedule": {"type": "linear", "start_step": 0, "end_step": 100, "frequency": frequency},
        }
        for name, frequency in (("0", first), ("3", second))
    ]
    return [{"prune": {"algorithm": "level", "speedup": False, "config_list": entries}}]


def test_each_entry_keeps_to_its_own_frequency(task):
    """Of 32 weights at frequency 50 none goes while 16 others lose one and more at frequency 10."""
    compression = mp.prepare_compression(task.model, two_layers(50, 10))
    seen: list[tuple[int, int]] = []
    compression.callbacks.on_train_begin()
    task.train(compression.callbacks, epochs=25, each=lambda: seen.append((zeros(task.model[0]), zeros(task.model[3]))))
    compression.callbacks.on_train_end()
    # Step s is seen[s - 1]; floor(32 * 0.25) at step 50, floor(16 * 0.5 * s / 100) at every tenth.
    assert [seen[step - 1] for step in (10, 20, 30, 49, 50, 99, 100)] == [
        (0, 0), (0, 1), (0, 2), (0, 3), (8, 4), (8, 7), (16, 8),
    ]  # fmt: skip


def test_a_second_stage_counts_what_the_first_one_leaves(task):
    """The first stage takes 4 of 8 channels, and of the 8 weights behind them that are left the second takes a half."""
    second = {"algorithm": "level", "speedup": False, "config_list": [{"op_names": ["3"], "sparsity": 0.5}]}
    stages = [channels(0.5), {"prune": second}]
    compression = mp.prepare_compression(task.model, stages, dummy_input=task.x[:1], optimizers=task.optimizer)
    compression.callbacks.on_train_begin()
    task.train(compression.callbacks, epochs=1)
    compression.callbacks.on_train_end()
    assert task.model[3].weight.shape == (2, 4)
    assert zeros(task.model[3]) == 4


def test_a_second_stage_follows_a_first_one_that_is_later(task):
    """The first stage reaches its target behind the second; the second's share is kept all the same."""
    second = {"algorithm": "level", "speedup": False, "config_list": [{"op_names": ["3"], "sparsity": 0.5}]}
    stages = [channels(0.5, type="linear", start_step=0, end_step=4), {"prune": second}]
    compression = mp.prepare_compression(task.model, stages, dummy_input=task.x[:1], optimizers=task.optimizer)
    compression.callbacks.on_train_begin()
    task.train(compression.callbacks, epochs=1)
    compression.callbacks.on_train_end()
    assert task.model[3].weight.shape == (2, 4)
    assert zeros(task.model[3]) >= 4
