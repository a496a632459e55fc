"""mp.report: what it takes, where it goes, and that it does nothing outside a run."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from own_loop import Task, level

import modelpress as mp
from modelpress.scores import ScoreHistory
from modelpress_runner.errors import InvalidModelError
from modelpress_runner.in_process.reporting import reporting
from modelpress_runner.process.progress import Event, ProgressFile, Thinning


def test_outside_a_run_it_only_checks():
    """A script under development may call it; nothing comes of it."""
    mp.report(3, default=0.5)
    mp.report(1, default=0.5)
    with pytest.raises(InvalidModelError):
        mp.report(-1, default=0.5)


def test_metrics_become_an_event_of_the_run():
    """Numbers of any kind become floats; `default` is the event's value, and the stage is the run's at that time."""
    events: list[Event] = []
    with reporting(events.append) as run:
        run(Event("1-finetune", 2, 5, "chunk"))
        mp.report(40, default=torch.tensor(0.5), loss=np.float32(0.25), steps=3)
        mp.report(40, loss=1)
    assert events[1:] == [
        Event(
            "1-finetune",
            2,
            5,
            "reported at step 40: loss 0.25, steps 3",
            0.5,
            at=40,
            metrics={"default": 0.5, "loss": 0.25, "steps": 3.0},
        ),
        Event("1-finetune", 2, 5, "reported at step 40: loss 1", None, at=40, metrics={"loss": 1.0}),
    ]
    mp.report(41, default=0.5)
    assert len(events) == 3


@pytest.mark.parametrize(
    ("step", "metrics", "message"),
    [
        (-1, {"default": 1}, "was given the step -1; give a whole number, 0 or more"),
        (1.0, {"default": 1}, "was given the step 1.0"),
        (True, {"default": 1}, "was given the step True"),
        (2**53 + 1, {"default": 1}, "was given the step 9007199254740993"),
        (0, {}, "was given no metric; name at least one"),
        (0, {"default": float("nan")}, "mp.report, metric 'default', was given nan; a metric must be finite"),
        (0, {"loss": None}, r"metric 'loss', was given nothing \(None\); give a number"),
        (0, {"loss": torch.ones(2)}, r"was given a tensor of shape \(2,\); give a single number"),
        (0, {"loss": True}, "was given a bool; give a number"),
        (0, {"macs": 3}, "was given 'macs', which modelpress measures itself; rename it"),
        (0, {"top 1": 3}, "was given a metric named 'top 1'; use at most 63 letters"),
        (0, {f"m{i}": 0.0 for i in range(55)}, "was given 55 metrics; give at most 54"),
    ],
)
def test_what_is_no_metric_is_refused(step, metrics, message):
    """Steps that are none, names that are taken, values that are no finite numbers."""
    with pytest.raises(InvalidModelError, match=message):
        mp.report(step, **metrics)


def test_steps_never_go_back():
    """The same step again is fine, a smaller one is not."""
    with reporting(lambda event: None):
        mp.report(5, default=1)
        mp.report(5, default=2)
        with pytest.raises(InvalidModelError, match="was given the step 4 after 5; count on from call to call"):
            mp.report(4, default=1)


def test_a_training_func_reports_in_the_midst_of_mp_compress():
    """Reports from inside a training function are events of the call's own report."""
    task, events = Task(), []

    def training_func(model, optimizer, training_step, scheduler, max_steps, max_epochs):
        for number, (x, y) in enumerate(task.batches()):
            optimizer.zero_grad()
            loss = training_step((x, y), model)
            loss.backward()
            optimizer.step()
            mp.report(number, loss=loss)

    evaluator = mp.TorchEvaluator(
        training_func,
        mp.trace(torch.optim.SGD)(task.model.parameters(), lr=0.1),
        lambda batch, model: torch.nn.functional.cross_entropy(model(batch[0]), batch[1]),
    )
    mp.compress(task.model, [{"finetune": {"epochs": 1}}], evaluator, report=events.append)
    assert [(event.stage, event.at) for event in events if event.at is not None] == [
        ("", 0),
        ("", 1),
        ("", 2),
        ("", 3),
    ]
    assert all(set(event.metrics) == {"loss"} for event in events if event.at is not None)


def test_scores_of_the_users_own_take_the_place_of_those_taken_while_it_trains():
    """Two counts of steps cannot be compared: from the first report on, the history has the user's alone."""
    history = ScoreHistory()
    history.add(1, 0.1)
    history.add(2, 0.2)
    assert history.points() == [{"step": 1, "value": 0.1}, {"step": 2, "value": 0.2}]
    history.add(100, 0.3, own=True)
    history.add(3, 0.4)
    history.add(200, 0.5, {"default": 0.5, "loss": 2.0}, own=True)
    history.add(300, None, {"loss": 1.0}, own=True)
    assert history.points() == [
        {"step": 100, "value": 0.3},
        {"step": 200, "value": 0.5, "metrics": {"loss": 2.0}},
    ]


def test_the_progress_file_has_every_metric(tmp_path):
    """A line has the user's step and metrics beside the run's own place."""
    file = ProgressFile(tmp_path / "progress.jsonl")
    with reporting(file) as run:
        run(Event("loop", 1, 3, "epoch 1 of 3"))
        mp.report(20, default=0.5, loss=0.25)
    first, second = map(json.loads, (tmp_path / "progress.jsonl").read_text().splitlines())
    assert "at" not in first
    del second["t"]
    assert second == {
        "stage": "loop",
        "step": 1,
        "total": 3,
        "value": 0.5,
        "message": "reported at step 20: loss 0.25",
        "at": 20,
        "metrics": {"default": 0.5, "loss": 0.25},
    }


def test_thousands_of_reports_are_thinned_out(tmp_path):
    """Of 4 + 8 + 16 items the first 4, every second, every fourth: 12 are kept; the file stays small likewise."""
    thinning = Thinning(4)
    assert [number for number in range(28) if thinning.keeps()] == [0, 1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24]
    file = ProgressFile(tmp_path / "progress.jsonl")
    for step in range(3 * 1024):
        file(Event("loop", 0, 0, "", 0.5, at=step))
    assert len((tmp_path / "progress.jsonl").read_text().splitlines()) == 2048


def test_a_loop_reports_like_any_code():
    """Within a prepared loop reports go where the loop's own progress goes."""
    task, events = Task(), []
    compression = mp.prepare_compression(task.model, [level()], report=events.append)
    compression.callbacks.on_train_begin()
    task.train(compression.callbacks, 1, each=lambda: mp.report(0, default=1.0))
    compression.callbacks.on_train_end()
    mp.report(0, default=0.0)
    assert [event.value for event in events if event.at is not None] == [1.0] * 4
