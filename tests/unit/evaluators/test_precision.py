"""Mixed precision and closures in the user's loop: what hooks see, and what a scaler carries on."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from modelpress.api.v1alpha1 import Stage
from modelpress.store import open_store
from modelpress_runner.engine.checkpoint import Checkpointer
from modelpress_runner.engine.run import run_stages
from modelpress_runner.passes.frozen import scoring_passes
from modelpress_runner.process.stopping import Stopped
from modelpress_runner.runtime import user_rng as generators
from modelpress_runner.subject.subject import Subject

X = torch.tensor([[1.0, 2.0]])


def network() -> nn.Sequential:
    """y = a + b."""
    model = nn.Sequential(nn.Linear(2, 1, bias=False))
    nn.init.ones_(model[0].weight)
    return model


def scaled(scaler, infinite_at=(), seen=None):
    """A loop with autocast and a scaler; the loss is the output, so its gradient is (1, 2)."""
    steps = []

    def training_func(model, optimizer, training_step, scheduler, max_steps, max_epochs):
        for _ in range(max_steps or 4):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = training_step(X, model)
            steps.append(None)
            scaler.scale(loss * float("inf") if len(steps) in infinite_at else loss).backward()
            scaler.step(optimizer)
            scaler.update()
            if seen is not None:
                seen.append(scaler.get_scale())

    return training_func


@pytest.mark.parametrize("fused", [False, True])
def test_hooks_see_unscaled_gradients(task, fused):
    """Also of optimizers that take the scale out within their kernel."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    evaluator = task.evaluator(
        training_func=scaled(scaler),
        training_step=lambda batch, model: model(batch).float().sum(),
        optimizers=lambda params: torch.optim.Adam(params, lr=0.5, fused=fused),
    )
    model = network()
    evaluator.bind(model)
    seen = []
    evaluator.before_optimizer_step(lambda: seen.append(evaluator.gradient(model[0].weight).tolist()))
    evaluator.train(max_steps=2)
    assert seen == [[[1.0, 2.0]]] * 2


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips_counts_for_nobody(task, fused):
    """Of four steps the second has an infinite gradient: three times before, three times after."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    evaluator = task.evaluator(
        training_func=scaled(scaler, infinite_at=(2,)),
        training_step=lambda batch, model: model(batch).float().sum(),
        optimizers=lambda params: torch.optim.Adam(params, lr=0.5, fused=fused),
    )
    model = network()
    evaluator.bind(model)
    calls = []
    evaluator.before_optimizer_step(lambda: calls.append("before"))
    evaluator.after_optimizer_step(lambda: calls.append("after"))
    evaluator.train(max_steps=4)
    assert calls == ["before", "after"] * 3
    assert torch.isfinite(model[0].weight).all()
    assert scaler.get_scale() == 512.0


def test_scores_are_collected_from_steps_that_are_made(task):
    """A skipped step has no finite gradient and no score: the loop is asked once more, and the scale is put back."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    evaluator = task.evaluator(
        training_func=scaled(scaler, infinite_at=(1, 3)),
        training_step=lambda batch, model: model(batch).float().sum(),
        optimizers=lambda params: torch.optim.SGD(params, lr=0.5),
    )
    model = network()
    seen = []
    scoring_passes(model, evaluator, 4, before_step=lambda: seen.append(evaluator.gradient(model[0].weight).tolist()))
    assert seen == [[[1.0, 2.0]]] * 4
    assert scaler.get_scale() == 1024.0


def test_a_pass_broken_off_inside_a_step_leaves_the_scaler_usable(task):
    """Stopped between unscaling and stepping: the next training does not meet what the scaler noted."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    evaluator = task.evaluator(
        training_func=scaled(scaler),
        training_step=lambda batch, model: model(batch).float().sum(),
        optimizers=lambda params: torch.optim.SGD(params, lr=0.5),
    )
    model = network()

    def stop():
        raise Stopped

    with pytest.raises(Stopped):
        scoring_passes(model, evaluator, 1, before_step=stop)
    assert not scaler._per_optimizer_states
    evaluator.bind(model)
    evaluator.train(max_steps=2)
    assert model[0].weight.tolist() == [[0.0, -1.0]]


def test_the_scale_goes_on_on_after_a_restart(task, tmp_path):
    """A scaler outside the loop grows every two steps; a run cut short after its first steps ends like a whole one."""

    def subject(seen):
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
        evaluator = task.evaluator(
            training_func=scaled(scaler, seen=seen),
            training_step=lambda batch, model: model(batch).float().sum(),
            optimizers=lambda params: torch.optim.SGD(params, lr=0.5),
            evaluating_func=None,
        )
        return Subject(network(), evaluator)

    recipe = [Stage.model_validate({"finetune": {"maxSteps": 6}})]
    whole, cut, rest = [], [], []
    run_stages(subject(whole), recipe, seed=0)
    assert whole == [8.0, 16.0, 16.0, 32.0, 32.0, 64.0]

    def stop():
        if len(cut) == 3:
            raise Stopped

    store = open_store(str(tmp_path))
    with pytest.raises(Stopped):
        run_stages(subject(cut), recipe, seed=0, checkpointer=Checkpointer(store, "job", "same", 1), stop=stop)
    run_stages(subject(rest), recipe, seed=0, checkpointer=Checkpointer(store, "job", "same", 2))
    assert cut == whole[:3]
    assert rest == whole  # the first three are played back


def test_a_scaler_that_is_off_has_no_state():
    """GradScaler(enabled=False) is saved and set without a word."""
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    states = generators.save({"scaler": scaler})
    assert states == {"scaler": {"kind": "GradScaler", "state": {}}}
    assert generators.restore({"scaler": scaler}, states) == []


@pytest.mark.parametrize("by_name", [False, True])
def test_a_step_with_a_closure_has_its_gradients(task, by_name):
    """The hook comes behind the closure's first call, however the closure is given, once for each step."""

    def training_func(model, optimizer, training_step, scheduler, max_steps, max_epochs):
        def closure():
            optimizer.zero_grad()
            loss = training_step(X, model)
            loss.backward()
            return loss

        for _ in range(max_steps):
            optimizer.step(closure=closure) if by_name else optimizer.step(closure)

    for make in (
        lambda params: torch.optim.SGD(params, lr=0.5),
        lambda params: torch.optim.LBFGS(params, lr=0.1, max_iter=5),
    ):
        evaluator = task.evaluator(
            training_func=training_func,
            training_step=lambda batch, model: model(batch).square().sum() / 2,
            optimizers=make,
        )
        model = network()
        evaluator.bind(model)
        order = []
        evaluator.before_optimizer_step(lambda: order.append(evaluator.gradient(model[0].weight).tolist()))  # noqa: B023
        evaluator.before_optimizer_step(lambda: order.append("second"))  # noqa: B023
        evaluator.after_optimizer_step(lambda: order.append("after"))  # noqa: B023
        evaluator.train(max_steps=2)
        assert order[:3] == [[[3.0, 6.0]], "second", "after"]
        assert len(order) == 6
        evaluator.unbind()
        twin = copy.deepcopy(model)
        seen = []
        scoring_passes(twin, evaluator, 2, before_step=lambda: seen.append(evaluator.gradient(twin[0].weight)))  # noqa: B023
        assert torch.equal(seen[0], seen[1])
        assert torch.equal(twin[0].weight, model[0].weight)
