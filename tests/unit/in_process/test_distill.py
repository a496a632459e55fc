"""distill in a loop of the user's own: the loss goes through on_after_compute_loss, as in other tools."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from own_loop import Task, channels
from torch import nn

import modelpress as mp
from modelpress_runner.errors import CompressionError, InvalidModelError

LEARN = {"distill": {"loss_types": ["CE", "KL"], "loss_weights": [0.5, 0.5], "temperature": 2.0}}


def train(task: Task, compression, outputs_of=None, epochs: int = 1) -> None:
    callbacks = compression.callbacks
    callbacks.on_train_begin()
    for _ in range(epochs):
        for x, y in task.batches():
            callbacks.on_step_begin(0)
            task.optimizer.zero_grad()
            output = task.model(x)
            loss = F.cross_entropy(output, y)
            given = None if outputs_of is None else outputs_of(x)
            callbacks.on_after_compute_loss(x, output, loss, given).backward()
            callbacks.on_before_optimizer_step()
            task.optimizer.step()
            callbacks.on_after_optimizer_step()
            callbacks.on_step_end()
    callbacks.on_train_end()


def other_net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return nn.Linear(4, 2)


def by_hand(teacher: nn.Module) -> Task:
    task = Task()
    for x, y in task.batches():
        task.optimizer.zero_grad()
        output = task.model(x)
        with torch.no_grad():
            target = (teacher(x) / 2).softmax(1)
        taught = 4 * F.kl_div((output / 2).log_softmax(1), target, reduction="batchmean")
        (0.5 * F.cross_entropy(output, y) + 0.5 * taught).backward()
        task.optimizer.step()
    return task


@pytest.mark.parametrize("form", ["self", "module", "outputs", "given"])
def test_a_loop_learns_as_written_by_hand(task, form):
    """From the dense model, from a model that the call gives, and from outputs that the loop computes itself."""
    teacher = copy.deepcopy(task.model).eval() if form == "self" else other_net()
    stage = copy.deepcopy(LEARN)
    if form == "given":
        stage["distill"]["teacher"] = {"given": True}
    options = {"teacher": teacher} if form == "module" else {}
    compression = mp.prepare_compression(task.model, [stage], dummy_input=task.x[:1], **options)
    train(task, compression, teacher if form in ("outputs", "given") else None)
    wanted = by_hand(teacher)
    for name, value in task.model.state_dict().items():
        torch.testing.assert_close(value, wanted.model.state_dict()[name], msg=name)
    assert compression.result.metrics["stages"][0]["temperature"] == 2.0


def test_pruning_and_learning_go_along_with_one_loop(task):
    """Half of the channels go, and the loss still goes through the teacher."""
    stages = [{"together": {"of": [channels(0.5), LEARN]}}]
    compression = mp.prepare_compression(task.model, stages, dummy_input=task.x[:1], optimizers=task.optimizer)
    train(task, compression)
    assert task.model[0].weight.shape == (4, 4)


def test_a_loss_that_goes_another_way_is_an_error(task):
    """A loop that calls backward() on its own loss would learn nothing from the teacher."""
    compression = mp.prepare_compression(task.model, [LEARN], dummy_input=task.x[:1])
    compression.callbacks.on_train_begin()
    task.train(compression.callbacks, epochs=1)
    with pytest.raises(CompressionError, match=r"go on with the loss that on_after_compute_loss\(\) returns"):
        compression.callbacks.on_train_end()


def test_a_teacher_that_nobody_gives(task):
    """The recipe says that the code gives one."""
    stage = {"distill": {"teacher": {"given": True}}}
    compression = mp.prepare_compression(task.model, [stage], dummy_input=task.x[:1])
    with pytest.raises(InvalidModelError, match=r"there is no teacher: on_after_compute_loss got no teacher_output"):
        train(task, compression)


def test_outputs_of_a_teacher_that_no_stage_uses(task):
    """They would be lost in silence."""
    compression = mp.prepare_compression(task.model, [channels(0.5)], dummy_input=task.x[:1])
    with pytest.raises(InvalidModelError, match="no stage of the recipe uses one"):
        train(task, compression, other_net())


def test_a_loop_of_neural_compressors_documents(task):
    """Its distillation and its orchestration as they stand there, but for imports and configuration: the callbacks are
    called on the manager, on_train_begin twice, and nothing between optimizer.step() and on_step_end()."""
    criterion, optimizer, dataloader = nn.CrossEntropyLoss(), task.optimizer, list(task.batches())
    confs = [{"together": {"of": [LEARN, channels(0.5)]}}]
    compression_manager = mp.prepare_compression(task.model, confs, dummy_input=task.x[:1], optimizers=optimizer)
    model = compression_manager.model
    compression_manager.callbacks.on_train_begin()

    compression_manager.on_train_begin()
    for epoch in range(2):
        compression_manager.on_epoch_begin(epoch)
        for i, batch in enumerate(dataloader):
            compression_manager.on_step_begin(i)
            optimizer.zero_grad()
            output = model(batch[0])
            loss = criterion(output, batch[1])
            loss = compression_manager.on_after_compute_loss(batch, output, loss)
            loss.backward()
            compression_manager.on_before_optimizer_step()
            optimizer.step()
            compression_manager.on_step_end()
        compression_manager.on_epoch_end()
    compression_manager.on_train_end()

    assert task.model[0].weight.shape == (4, 4)
    with pytest.raises(AttributeError, match="no attribute 'on_lunch'"):
        compression_manager.on_lunch()
