"""A training function that is called again to go on: bit for bit the plain script, or begun anew with a note."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

import modelpress as mp
from modelpress.api.v1alpha1 import Stage
from modelpress.store import open_store
from modelpress_runner.engine.checkpoint import Checkpointer
from modelpress_runner.engine.run import run_stages
from modelpress_runner.process.stopping import Stopped
from modelpress_runner.runtime import rng
from modelpress_runner.subject.subject import Subject

EPOCHS = 3
STEPS = 8 * EPOCHS
SEED = 11


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))


X = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()
DATA = TensorDataset(X, Y, torch.arange(64))


def step(batch, model, *args):
    """Draws from every global generator."""
    noise = random.random() + float(np.random.randn())
    return F.cross_entropy(model(batch[0] * (1 + 0.01 * noise)), batch[1])


class Log:
    """What a training saw: the rate, the samples and the loss of each step, and what its loop noted."""

    def __init__(self):
        self.rates, self.samples, self.losses, self.scales, self.best = [], [], [], [], []


def plain(model, optimizer, training_step, scheduler, max_steps, max_epochs, log):
    """The usual loop: a shuffled loader, a rate by epochs."""
    loader = DataLoader(DATA, batch_size=8, shuffle=True)
    for _ in range(max_epochs):
        for batch in loader:
            optimizer.zero_grad()
            loss = training_step(batch, model)
            loss.backward()
            optimizer.step()
            log.rates.append(optimizer.param_groups[0]["lr"])
            log.samples.append(batch[2].tolist())
            log.losses.append(loss.item())
        scheduler.step()


def drawing(model, optimizer, training_step, scheduler, max_steps, max_epochs, log):
    """Draws between two steps, as augmentation in the loop does; accumulates gradients, and clips them."""
    for _ in range(max_epochs):
        for number, rows in enumerate(torch.randperm(64).split(4)):
            batch = (X[rows] + 0.01 * torch.randn(4, 4) * random.random(), Y[rows], rows)
            loss = training_step(batch, model) / 2
            loss.backward()
            log.samples.append(rows.tolist())
            if number % 2:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                log.rates.append(optimizer.param_groups[0]["lr"])
                log.losses.append(loss.item())
        scheduler.step()


def keeping(model, optimizer, training_step, scheduler, max_steps, max_epochs, log):
    """Validates, lowers the rate on a plateau, keeps the best weights and puts them back."""
    best, kept = float("inf"), None
    plateau = lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    for _ in range(max_epochs):
        plain(model, optimizer, training_step, scheduler, None, 1, log)
        model.eval()
        with torch.no_grad():
            loss = F.cross_entropy(model(X), Y).item()
        model.train()
        plateau.step(loss)
        log.best.append(loss)
        if loss < best:
            best, kept = loss, copy.deepcopy(model.state_dict())
    model.load_state_dict(kept)


def scaled(model, optimizer, training_step, scheduler, max_steps, max_epochs, log):
    """Mixed precision with a scaler of the function's own; the first scale overflows in half precision."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4, growth_interval=3)
    for _ in range(max_epochs):
        for rows in torch.randperm(64).split(8):
            optimizer.zero_grad()
            loss = training_step((X[rows], Y[rows]), model)
            scaler.scale(loss * (float("inf") if len(log.losses) == 4 else 1)).backward()
            scaler.unscale_(optimizer)
            before = scaler.get_scale()
            scaler.step(optimizer)
            scaler.update()
            log.scales.append((before, scaler.get_scale()))
            log.losses.append(loss.item())
        scheduler.step()


def closing(model, optimizer, training_step, scheduler, max_steps, max_epochs, log):
    """The optimizer gets a closure."""
    for _ in range(max_epochs):
        for rows in torch.randperm(64).split(8):

            def closure(rows=rows):
                optimizer.zero_grad()
                loss = training_step((X[rows], Y[rows]), model)
                loss.backward()
                return loss

            log.losses.append(optimizer.step(closure).item())
        scheduler.step()


def evaluator_for(model, loop, log, steps=None, **changes):
    optimizer = mp.trace(torch.optim.Adam)(model.parameters(), lr=0.01)
    scheduler = mp.trace(lr_scheduler.StepLR)(optimizer, step_size=1, gamma=0.5)
    counted = steps if steps is not None else []

    def training_step(batch, model, *args):
        counted.append(None)
        return step(batch, model)

    return mp.TorchEvaluator(
        lambda *args: loop(*args, log), optimizer, changes.pop("training_step", training_step), scheduler, **changes
    )


def script(loop):
    """The user's own script: the same loop, without modelpress."""
    model = made()
    log = Log()
    with rng.fork_rng(rng.derive(SEED, 0)):
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        loop(model, optimizer, step, lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5), None, EPOCHS, log)
    return model, log


def made():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return Net()


def tune(model, evaluator, stop=lambda: None, store=None, attempt=1, **options):
    stages = [Stage.model_validate({"finetune": {"epochs": EPOCHS}})]
    keeper = None if store is None else Checkpointer(store, "job", "same", attempt, **options)
    with rng.fork_rng(attempt):
        return run_stages(Subject(model, evaluator), stages, seed=SEED, checkpointer=keeper, stop=stop, scores=False)


def same(model, other):
    return all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


LOOPS = [plain, drawing, keeping, scaled, closing]


@pytest.mark.parametrize("loop", LOOPS)
def test_finetuning_is_the_users_own_script(loop):
    """Weights, rates, samples and losses, bit for bit."""
    model, log = script(loop)
    ours, seen = made(), Log()
    outcome = tune(ours, evaluator_for(ours, loop, seen))
    assert same(model, ours)
    assert vars(log) == vars(seen)
    assert outcome.notes == []


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("at", [1, 7, 9, 20])
def test_a_run_that_goes_on_is_the_users_own_script(loop, at, tmp_path):
    """Stopped at a step, and once more two steps later: the function sees all it would have seen."""
    model, log = script(loop)
    store = open_store(str(tmp_path))
    forwards = []
    for attempt, end in enumerate((at, at + 2, None), 1):
        ours, seen, calls, asked = made(), Log(), [], []

        def stop(end=end, asked=asked):
            asked.append(None)
            if end is not None and len(asked) > (end - (forwards[-1] if forwards else 0)) + 2:
                raise Stopped

        evaluator = evaluator_for(ours, loop, seen, calls)
        try:
            outcome = tune(ours, evaluator, stop, store, attempt)
            break
        except Stopped:
            forwards.append(end)
    assert attempt == 3
    assert same(model, ours)
    assert vars(log) == vars(seen)
    assert outcome.notes == []
    assert outcome.training["repeated"] == 0
    assert len(calls) < STEPS * 2  # what was played back made no forward pass


@dataclass
class Attempt:
    """What the loops below look at to be another than they were."""

    first: bool


def other_data(log, model, optimizer, training_step, scheduler, max_steps, max_epochs):
    rows = torch.randperm(64)
    if log.first:
        rows = rows.flip(0)
    for part in rows.split(8):
        optimizer.zero_grad()
        training_step((X[part], Y[part]), model).backward()
        optimizer.step()
    scheduler.step()


def other_draws(log, model, optimizer, training_step, scheduler, max_steps, max_epochs):
    for part in torch.arange(64).split(8):
        torch.rand(2 if log.first else 1)
        optimizer.zero_grad()
        training_step((X[part], Y[part]), model).backward()
        optimizer.step()
    scheduler.step()


def raising(log, model, optimizer, training_step, scheduler, max_steps, max_epochs):
    for number, part in enumerate(torch.arange(64).split(8)):
        if number == 2 and log.first and optimizer.param_groups[0]["params"][0].grad.abs().max() == 0:
            raise ValueError("gradients are gone")
        optimizer.zero_grad()
        training_step((X[part], Y[part]), model).backward()
        optimizer.step()
    scheduler.step()


@pytest.mark.parametrize(
    ("loop", "why"),
    [(other_data, "other data"), (other_draws, "other random numbers"), (raising, "gradients are gone")],
)
def test_a_function_that_does_something_else_begins_anew(loop, why, tmp_path):
    """Never continued differently: the result is that of a training from the start, and a note says why."""
    store = open_store(str(tmp_path))
    asked = []

    def stop():
        asked.append(None)
        if len(asked) > 6:
            raise Stopped

    def turned(*args):
        loop(args[-1], *args[:-1])

    one = made()
    with pytest.raises(Stopped):
        tune(one, evaluator_for(one, turned, Attempt(first=False)), stop, store, 1)
    again, expected = made(), made()
    outcome = tune(again, evaluator_for(again, turned, Attempt(first=True)), store=store, attempt=2)
    tune(expected, evaluator_for(expected, turned, Attempt(first=True)))
    [note] = [note for note in outcome.notes if "anew" in note]
    assert why in note
    assert same(expected, again)


def averaging(model, optimizer, training_step, scheduler, max_steps, max_epochs, log):
    """An average of the weights, after each step."""
    average = torch.optim.swa_utils.AveragedModel(model)
    for _ in range(max_epochs):
        for rows in torch.randperm(64).split(8):
            optimizer.zero_grad()
            training_step((X[rows], Y[rows]), model).backward()
            optimizer.step()
            average.update_parameters(model)
        scheduler.step()
    model.load_state_dict(average.module.state_dict())


def own_optimizer(model, optimizer, training_step, scheduler, max_steps, max_epochs, log):
    """Trains something of its own beside."""
    own = torch.zeros(2, requires_grad=True)
    beside = torch.optim.SGD([own], lr=0.1)
    for _ in range(max_epochs):
        for rows in torch.randperm(64).split(8):
            optimizer.zero_grad()
            (training_step((X[rows], Y[rows]), model) + (own - 1).square().sum()).backward()
            optimizer.step()
            beside.step()
        scheduler.step()


@pytest.mark.parametrize(("loop", "why"), [(averaging, "looks at the weights"), (own_optimizer, "SGD of its own")])
def test_what_cannot_be_played_back_is_not_saved_and_said(loop, why, tmp_path):
    """Such a training begins anew where it was interrupted, and its result is that of a script all the same."""
    model, _ = script(loop)
    store = open_store(str(tmp_path))
    asked = []

    def stop():
        asked.append(None)
        if len(asked) > 20:
            raise Stopped

    one = made()
    with pytest.raises(Stopped):
        tune(one, evaluator_for(one, loop, Log()), stop, store, 1, every=1)
    again = made()
    outcome = tune(again, evaluator_for(again, loop, Log()), store=store, attempt=2, every=1)
    assert same(model, again)
    assert any(why in note for note in outcome.notes)


def test_scores_inside_change_nothing(monkeypatch):
    """A score at every step, with random numbers of its own and in eval mode: the training is the script's."""
    monkeypatch.setattr("modelpress_runner.training.pace.LEAST", 0.0)
    monkeypatch.setattr("modelpress_runner.training.session.LOOK_SECONDS", 0.0)
    monkeypatch.setattr("modelpress_runner.training.pace.SPREAD", 0.0)
    monkeypatch.setattr("modelpress_runner.training.session.FIRST_SCORE", 0.0)
    monkeypatch.setattr("modelpress_runner.training.session.SCORE_SHARE", 1e9)
    model, log = script(keeping)
    ours, seen, events = made(), Log(), []
    evaluator = evaluator_for(ours, keeping, seen, evaluating_func=lambda model: float(torch.rand(())) + model(X).sum())
    stages = [Stage.model_validate({"finetune": {"epochs": EPOCHS}})]
    with rng.fork_rng(1):
        run_stages(Subject(ours, evaluator), stages, seed=SEED, report=events.append)
    assert same(model, ours)
    assert vars(log) == vars(seen)
    within = [event.step for event in events if ": step " in event.message]
    assert within == list(range(1, STEPS + 1))
