"""Training steps: how they are cut, masks in force, and errors where training cannot have worked."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler

import modelpress as mp
from modelpress_runner.errors import CompressionError, UserCodeError
from modelpress_runner.runtime.preserve import devices_restored
from modelpress_runner.training.run import Chunk, TrainingRun, check_masks, chunks_of
from modelpress_runner.training.step import Training


def test_epochs_are_trained_one_by_one():
    """Three epochs are three calls with max_epochs=1."""
    assert chunks_of(Training("t", epochs=3)) == [Chunk(None, 1)] * 3


def test_steps_are_cut_into_ten_nearly_equal_parts():
    """23 steps are three chunks of three and seven of two; 4 steps are four chunks of one."""
    assert [chunk.max_steps for chunk in chunks_of(Training("t", max_steps=23))] == [3, 3, 3, 2, 2, 2, 2, 2, 2, 2]
    assert [chunk.max_steps for chunk in chunks_of(Training("t", max_steps=4))] == [1, 1, 1, 1]


@given(st.integers(1, 10**6))
def test_chunks_of_steps_add_up(steps):
    """No step is lost or added, none is empty, sizes differ by at most one."""
    sizes = [chunk.max_steps for chunk in chunks_of(Training("t", max_steps=steps))]
    assert sum(sizes) == steps
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1


def test_what_is_not_resumable_is_one_call():
    """All epochs in one call."""
    assert chunks_of(Training("t", epochs=5), resumable=False) == [Chunk(None, 5)]


EPOCH = Chunk(None, 1)


def run(evaluator, model, masks=None, chunk=EPOCH, last=True, stop=lambda: None):
    with TrainingRun(model, evaluator, masks or {}, stop) as training:
        training.run(chunk, last)


def test_masks_hold_after_every_step_against_momentum(task):
    """A masked weight with momentum behind it is zero at each next forward pass, and at the end."""
    seen = []

    def training_step(batch, model):
        seen.append(model[0].weight[2:].abs().max().item())
        return task.training_step(batch, model)

    evaluator = task.evaluator(training_step=training_step)
    mask = torch.ones(6, 4)
    mask[2:] = 0
    with TrainingRun(task.model, evaluator, {}, lambda: None) as training:
        training.run(Chunk(None, 1), True)
    assert max(seen) > 0
    seen.clear()
    with TrainingRun(task.model, evaluator, {"0": {"weight": mask}}, lambda: None) as training:
        for _ in range(2):
            training.run(Chunk(None, 1), True)
    assert len(seen) == 8
    assert max(seen) == 0.0
    assert task.model[0].weight[:2].abs().min() > 0
    check_masks(task.model, {"0": {"weight": mask}}, "test")


def test_masks_do_not_stand_in_the_way_of_another_loss(task):
    """Two losses worked out before the first optimizer's step: the second goes backward through masked weights."""
    parts = [torch.nn.Linear(4, 2), torch.nn.Linear(4, 2)]
    model = torch.nn.ModuleList(parts)

    def training_func(model, optimizers, training_step, schedulers, max_steps, max_epochs):
        losses = [part(task.x).square().mean() + part.weight.square().sum() for part in model]
        for loss, optimizer in zip(losses, optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    evaluator = task.evaluator(
        training_func=training_func,
        optimizers=[
            lambda params: torch.optim.SGD(params[:2], lr=0.1),
            lambda params: torch.optim.SGD(params[2:], lr=0.1),
        ],
    )
    mask = torch.tensor([[1.0, 0.0, 1.0, 0.0]] * 2)
    run(evaluator, model, {"0": {"weight": mask}, "1": {"weight": mask}})
    assert [torch.count_nonzero(part.weight).item() for part in parts] == [4, 4]


def test_masks_hold_where_the_user_steps_an_optimizer_of_his_own(task):
    """What the hooks cannot see is put right at the end of the chunk."""
    own = torch.optim.SGD(task.model.parameters(), lr=0.1)

    def training_func(model, optimizer, training_step, scheduler, max_steps, max_epochs):
        task.training_func(model, own, training_step, scheduler, max_steps, max_epochs)

    mask = torch.zeros(6, 4)
    run(task.evaluator(training_func=training_func), task.model, {"0": {"weight": mask}})
    assert torch.count_nonzero(task.model[0].weight) == 0


def test_a_mask_that_no_longer_holds_is_an_error(task):
    """The message counts the weights and names parameter and stage."""
    mask = torch.ones(6, 4)
    mask[0] = 0
    with pytest.raises(CompressionError, match=r"after stage x 4 pruned weights of 0\.weight are no longer zero"):
        check_masks(task.model, {"0": {"weight": mask}}, "stage x")
    with pytest.raises(CompressionError, match=r"0\.weight has shape \(6, 4\), its mask \(5, 4\)"):
        check_masks(task.model, {"0": {"weight": mask[1:]}}, "stage x")


def test_an_optimizer_of_another_model_is_found_out(task):
    """Training that moves no weight of the model fails after the first chunk and says why."""
    kept = list(task.model.parameters())
    evaluator = task.evaluator(optimizers=lambda params: torch.optim.SGD([torch.nn.Parameter(p.data) for p in kept]))
    with pytest.raises(CompressionError, match="no weight: the optimizer holds parameters of another model"):
        run(evaluator, task.model)


def test_training_without_steps_gradients_or_rate_is_found_out(task):
    """Each cause has its own sentence."""
    idle = task.evaluator(training_func=lambda *args: None)
    with pytest.raises(CompressionError, match="it made no optimizer step"):
        run(idle, task.model)

    def no_backward(model, optimizer, training_step, scheduler, max_steps, max_epochs):
        training_step((task.x, task.y), model)
        optimizer.step()

    with pytest.raises(CompressionError, match="no weight has a gradient"):
        run(task.evaluator(training_func=no_backward), task.model)
    still = mp.trace(torch.optim.SGD)(task.model.parameters(), lr=0.0)
    with pytest.raises(CompressionError, match="the learning rate was zero throughout"):
        run(task.evaluator(optimizers=still), task.model)
    for parameter in task.model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(CompressionError, match="no parameter of the model requires gradients"):
        run(task.evaluator(training_func=lambda *args: None), task.model)


def test_a_warm_up_from_zero_may_move_nothing_at_first(task):
    """A first chunk at learning rate zero is fine as long as the rate rises later."""
    sgd = mp.trace(torch.optim.SGD)(task.model.parameters(), lr=0.1)
    warm = mp.trace(lr_scheduler.LambdaLR)(sgd, lr_lambda=float)
    evaluator = task.evaluator(optimizers=sgd, lr_schedulers=warm)
    before = task.model[0].weight.detach().clone()
    with TrainingRun(task.model, evaluator, {}, lambda: None) as training:
        training.run(Chunk(None, 1), last=False)
        assert torch.equal(task.model[0].weight, before)
        training.run(Chunk(None, 1), last=True)
    assert not torch.equal(task.model[0].weight, before)


def test_weights_that_are_not_finite_end_the_run(task):
    """The message names the first such parameter."""
    wild = mp.trace(torch.optim.SGD)(task.model.parameters(), lr=1e30)
    with pytest.raises(CompressionError, match=r"training made \d\.\w+ NaN or infinite; lower the learning rate"):
        run(task.evaluator(optimizers=wild), task.model, chunk=Chunk(None, 2))


def test_nothing_is_left_after_a_run(task):
    """No gradients, no binding, no hooks, also after an exception in the user's loop."""

    def training_func(model, optimizer, training_step, scheduler, max_steps, max_epochs):
        task.training_func(model, optimizer, training_step, scheduler, max_steps, max_epochs)
        training_step((task.x, task.y), model).backward()
        raise ValueError("late")

    evaluator = task.evaluator(training_func=training_func)
    with pytest.raises(UserCodeError, match="ValueError: late"):
        run(evaluator, task.model)
    assert all(parameter.grad is None for parameter in task.model.parameters())
    evaluator.bind(task.model)
    assert not evaluator._patches
    assert not next(evaluator.optimizers())._optimizer_step_post_hooks


def test_a_training_that_moves_the_model_leaves_it_where_it_was():
    """A model that is moved inside (here from the device without data) goes back: parameters, buffers, gradients."""
    with torch.device("meta"):
        model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    objects = [*map(id, model.parameters()), *map(id, model.buffers())]

    def move():
        model.to_empty(device="cpu")
        model(torch.ones(4, 2)).sum().backward()
        assert model[0].weight.device.type == model[1].running_mean.device.type == "cpu"
        raise ValueError("late")

    with pytest.raises(ValueError, match="late"), devices_restored(model):
        move()
    tensors = [*model.parameters(), *model.buffers(), *(parameter.grad for parameter in model.parameters())]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert [*map(id, model.parameters()), *map(id, model.buffers())] == objects


def test_an_evaluator_that_cannot_be_bound_is_not_left_half_bound(task):
    """A failing factory ends the training before it begins; the next one binds afresh."""
    evaluator = task.evaluator(optimizers=lambda params: 1 / 0)
    for _ in range(2):
        with pytest.raises(UserCodeError, match="division by zero"):
            run(evaluator, task.model)
