"""Training steps: masks in force, steps counted, and errors where training cannot have worked."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.optim import lr_scheduler

import modelpress as mp
from modelpress_runner.errors import CompressionError, UserCodeError
from modelpress_runner.process.stopping import Stopped
from modelpress_runner.runtime.preserve import devices_restored
from modelpress_runner.subject.compression_module import subject_of
from modelpress_runner.training.participants import check_masks
from modelpress_runner.training.run import training_session

EPOCH = (None, 1)


def run(evaluator, model, masks=None, limits=EPOCH, stop=lambda: None):
    with training_session(model, evaluator, masks or {}, stop) as session:
        session.train(*limits)
    return session


def test_masks_hold_after_every_step_against_momentum(task):
    """A masked weight with momentum behind it is zero at each next forward pass, and at the end."""
    seen = []

    def training_step(batch, model):
        seen.append(model[0].weight[2:].abs().max().item())
        return task.training_step(batch, model)

    evaluator = task.evaluator(training_step=training_step)
    mask = torch.ones(6, 4)
    mask[2:] = 0
    run(evaluator, task.model)
    assert max(seen) > 0
    seen.clear()
    run(evaluator, task.model, {"0": {"weight": mask}}, (None, 2))
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
    """What the hooks cannot see is put right at the end, and a note says so."""
    own = torch.optim.SGD(task.model.parameters(), lr=0.1)

    def training_func(model, optimizer, training_step, scheduler, max_steps, max_epochs):
        task.training_func(model, own, training_step, scheduler, max_steps, max_epochs)

    mask = torch.zeros(6, 4)
    with training_session(task.model, task.evaluator(training_func=training_func), {"0": {"weight": mask}}) as session:
        assert session.train(max_epochs=1) == 0
    assert torch.count_nonzero(task.model[0].weight) == 0
    assert any(note.startswith("no step of an optimizer was seen, though") for note in session.notes)


def test_a_mask_that_no_longer_holds_is_an_error(task):
    """The message counts the weights and names parameter and stage."""
    mask = torch.ones(6, 4)
    mask[0] = 0
    with pytest.raises(CompressionError, match=r"after stage x 4 pruned weights of 0\.weight are no longer zero"):
        check_masks(task.model, {"0": {"weight": mask}}, "stage x")
    with pytest.raises(CompressionError, match=r"0\.weight has shape \(6, 4\), its mask \(5, 4\)"):
        check_masks(task.model, {"0": {"weight": mask[1:]}}, "stage x")


def test_an_optimizer_of_another_model_is_found_out(task):
    """Training that moves no weight of the model fails and says why."""
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
    """A first epoch at learning rate zero is fine as long as the rate rises later."""
    sgd = mp.trace(torch.optim.SGD)(task.model.parameters(), lr=0.1)
    warm = mp.trace(lr_scheduler.LambdaLR)(sgd, lr_lambda=float)
    evaluator = task.evaluator(optimizers=sgd, lr_schedulers=warm)
    before = task.model[0].weight.detach().clone()
    run(evaluator, task.model, limits=(None, 2))
    assert not torch.equal(task.model[0].weight, before)


def test_weights_that_are_not_finite_end_the_run(task):
    """The message names the first such parameter."""
    wild = mp.trace(torch.optim.SGD)(task.model.parameters(), lr=1e30)
    with pytest.raises(CompressionError, match=r"training made \d\.\w+ NaN or infinite; lower the learning rate"):
        run(task.evaluator(optimizers=wild), task.model, limits=(None, 2))


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


def test_best_weights_that_are_put_back_are_a_result(task):
    """A step moved weights, and the function puts back those it began with: no error, and no note."""
    before = {name: value.clone() for name, value in task.model.state_dict().items()}

    def training_func(model, *args):
        task.training_func(model, *args)
        model.load_state_dict(before)

    assert run(task.evaluator(training_func=training_func), task.model).notes == []
    assert all(torch.equal(value, before[name]) for name, value in task.model.state_dict().items())


@pytest.mark.parametrize("made", [3, 8])
def test_other_steps_than_asked_for_are_an_error_with_both_numbers(task, made):
    """Too few are counted at the end; one too many ends the training at once."""

    def training_func(model, optimizer, training_step, scheduler, max_steps, max_epochs):
        assert max_steps == 5
        task.training_func(model, optimizer, training_step, scheduler, made, None)

    words = {3: "asks for 5 optimizer steps, and training made 3", 8: "asks for 5 optimizer steps, and .* step 6"}[made]
    with pytest.raises(CompressionError, match=words):
        run(task.evaluator(training_func=training_func), task.model, limits=(5, None))


def test_a_function_that_ignores_its_limits_is_noted(task):
    """Nobody can count the steps of an epoch, but that the limit is never read can be seen."""

    def training_func(model, optimizer, training_step, scheduler, max_steps, max_epochs):
        task.training_func(model, optimizer, training_step, scheduler, 4, None)

    [note] = run(task.evaluator(training_func=training_func), task.model, limits=(None, 7)).notes
    assert "never looks at its max_epochs, which was 7" in note
    assert run(task.evaluator(), task.model, limits=(None, 2)).notes == []


def test_a_scheduler_that_never_moves_is_noted(task):
    """Whoever hands over a scheduler means it to be stepped."""
    sgd = mp.trace(torch.optim.SGD)(task.model.parameters(), lr=0.1)
    given = {"optimizers": sgd, "lr_schedulers": mp.trace(lr_scheduler.StepLR)(sgd, step_size=1)}

    def training_func(model, optimizer, training_step, scheduler, max_steps, max_epochs):
        task.training_func(model, optimizer, training_step, None, max_steps, max_epochs)

    [note] = run(task.evaluator(training_func=training_func, **given), task.model).notes
    assert "the scheduler StepLR was never stepped" in note
    assert run(task.evaluator(**given), task.model).notes == []


def test_a_long_epoch_of_a_module_does_not_hold_up_a_run_that_is_to_stop():
    """Its trainer is called by epochs; asked to stop, with no end of the epoch in sight, it ends before a step."""
    asked, losses = [], []

    class Module(mp.CompressionModule):
        def model(self):
            return torch.nn.Linear(4, 2)

        def evaluator(self):
            return lambda model: 0.5

        def optimizer_factory(self):
            return lambda params: torch.optim.SGD(params, lr=0.1)

        def criterion(self):
            return F.mse_loss

        def post_compress_finetuning_trainer(self, algorithm_name):
            def trainer(model, optimizer, criterion, epoch):
                while len(losses) < 100:
                    optimizer.zero_grad()
                    losses.append(criterion(model(torch.ones(3, 4)), torch.ones(3, 2)))
                    losses[-1].backward()
                    optimizer.step()
                    asked.append(None)

            return trainer

    def stop():
        if len(asked) > 3:
            raise Stopped

    subject = subject_of(Module())
    with pytest.raises(Stopped):
        run(subject.evaluator, subject.model, stop=stop)
    assert len(losses) == 5
