"""Runs whose loop is a script: what it gets from its job, what it must do, and how it goes on after an interruption."""

from __future__ import annotations

import json
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import modelpress as mp
from modelpress.request import RunRequest
from modelpress.store import open_store
from modelpress_runner.engine.checkpoint import Checkpointer
from modelpress_runner.errors import CompressionError, InvalidModelError, InvalidSpecError, UserCodeError
from modelpress_runner.process.progress import Event
from modelpress_runner.process.stopping import StopFlag, Stopped
from modelpress_runner.runs import trial
from modelpress_runner.runs.script import command_line

# What the script needs of the test: `story.stop`, `story.at(epoch)`, and a list to leave notes in.
SCRIPT = """
import argparse
import random
import sys

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import modelpress as mp
import story


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc1, self.drop, self.fc2 = nn.Linear(4, width), nn.Dropout(0.2), nn.Linear(width, 2)

    def forward(self, x):
        return self.fc2(self.drop(F.relu(self.fc1(x))))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 4, generator=generator)
    y = (x[:, 0] > 0).long()
    global loader
    loader = DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True, generator=generator)
    model = Net(options.width)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)

    def pretrain(model):
        story.notes.append("pretrain")
        first = torch.optim.SGD(model.parameters(), lr=0.5)
        for _ in range(5):
            first.zero_grad()
            F.cross_entropy(model(x), y).backward()
            first.step()

    def accuracy(model):
        return (model.eval()(x).argmax(1) == y).float().mean()

    story.at("prepare")
    compression = mp.prepare_compression(
        model, evaluator=accuracy, dummy_input=x[:1], pretrain=pretrain, optimizers=optimizer, lr_schedulers=[scheduler]
    )
    callbacks = compression.callbacks
    callbacks.on_train_begin()
    for epoch in compression.epochs(options.epochs):
        story.notes.append(epoch)
        callbacks.on_epoch_begin(epoch)
        model.train()
        for batch, (a, b) in enumerate(loader):
            callbacks.on_step_begin(batch)
            if batch == 2:
                story.at(epoch)
            optimizer.zero_grad()
            F.cross_entropy(model(a + 0.1 * random.random()), b).backward()
            callbacks.on_before_optimizer_step()
            optimizer.step()
            callbacks.on_after_optimizer_step()
        scheduler.step()
        callbacks.on_before_eval()
        mp.report(epoch, default=accuracy(model))
        callbacks.on_after_eval()
        callbacks.on_epoch_end()
    story.at("end")
    callbacks.on_train_end()
    story.compression = compression
    story.at("after")


if __name__ == "__main__":
    main()
"""

PRUNE = {
    "prune": {
        "configList": [{"opNames": ["fc1"], "sparsity": 0.5}],
        "schedule": {"type": "linear", "startStep": 0, "endStep": 10, "frequency": 5},
    }
}


class Desk:
    """A code folder, a store, and runs of the script in this process."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.code = folder / "code"
        self.code.mkdir()
        (self.code / "train.py").write_text(SCRIPT)
        self.events: list[Event] = []
        self.stop = StopFlag()
        self.story = types.ModuleType("story")
        self.story.notes = []
        self.story.at = lambda when: None
        monkeypatch.setitem(sys.modules, "story", self.story)

    def request(self, name: str = "own", **changes: Any) -> RunRequest:
        spec = {
            "model": {"script": "train.py"},
            "stages": [PRUNE],
            "benchmark": {"warmup": 0, "iterations": 2},
            "store": {"uri": str(self.folder / "store")},
        } | changes.pop("spec", {})
        return RunRequest.model_validate(
            {
                "purpose": "trial",
                "namespace": "default",
                "name": name,
                "uid": "1",
                "runUid": f"run{changes.get('attempt', 1)}",
                "root": f"default/{name}",
                "prefix": f"default/{name}",
                "codePath": str(self.code),
            }
            | changes
            | {"spec": spec}
        )

    def run(self, request: RunRequest) -> Any:
        store = open_store(str(self.folder / "store"))
        if request.purpose == "prepare":
            return trial.prepare(request, store, self.events.append, self.stop)
        return trial.run(request, store, self.events.append, self.stop)

    def files(self, name: str = "own") -> dict[str, Path]:
        root = self.folder / "store" / "default" / name
        manifest = json.loads((root / "manifest.json").read_text())
        return {Path(entry["path"]).name: root / entry["path"] for entry in manifest["files"]}

    def edit(self, old: str, new: str) -> None:
        assert old in SCRIPT
        (self.code / "train.py").write_text(SCRIPT.replace(old, new))

    def at(self, when: Any, act: Any) -> None:
        """Has the script do something at a place of its own."""
        self.story.at = lambda place: act() if place == when else None


@pytest.fixture
def desk(tmp_path, monkeypatch) -> Desk:
    return Desk(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Iterator[tuple[Desk, Any]]:
    """A run that nobody disturbs, and its result; a constraint that it cannot meet is part of it."""
    with pytest.MonkeyPatch.context() as patch:
        desk = Desk(tmp_path_factory.mktemp("alone"), patch)
        before = list(sys.path), list(sys.argv), sys.modules["__main__"]
        constraints = [{"metric": "parameters", "maxRatio": 0.1}, {"metric": "default", "min": 0.5}]
        result = desk.run(desk.request(spec={"constraints": constraints}))
        assert (sys.path, sys.argv, sys.modules["__main__"]) == before
        yield desk, result


def test_a_script_gets_its_recipe_from_the_job_and_leaves_an_artifact(alone):
    """The stages are the job's; the artifact is measured, judged, reloads, and counts the steps."""
    desk, result = alone
    assert result.phase == "Succeeded"
    # 4*8+8 + 8*2+2 = 58 parameters, 30 with half of the 8 channels
    assert (result.baseline["parameters"], result.compressed["parameters"]) == (58, 30)
    assert {"default", "latencyMs", "macs"} <= set(result.baseline)
    assert (result.smaller, result.portable, result.constraints_met, len(result.unmet)) == (True, True, False, 1)
    assert desk.story.notes == ["pretrain", 0, 1, 2]
    metrics = json.loads(desk.files()["metrics.json"].read_text())
    assert metrics["training"] == {"steps": 12, "executed": 12, "repeated": 0, "checkpoints": 3}
    assert metrics["stages"][0]["steps"] == 12
    assert metrics["notes"] == []
    x = torch.randn(3, 4)
    loaded = mp.load(str(desk.folder / "store" / "default" / "own"))
    torch.testing.assert_close(loaded(x), desk.story.compression.model.eval()(x))
    assert [event.at for event in desk.events if event.at is not None] == [0, 1, 2]


def test_trials_share_the_dense_model(desk, alone):
    """prepare runs the script until it hands the model over; a trial then pretrains no more, and ends like a run that
    did."""
    desk.story.at = lambda place: None if place == "prepare" else pytest.fail("prepare went on")
    prepared = desk.run(desk.request(purpose="prepare"))
    assert desk.story.notes == ["pretrain"]
    assert "latencyMs" not in prepared.baseline
    desk.story.at = lambda place: None
    result = desk.run(desk.request(prefix="default/own/trials/00003"))
    assert desk.story.notes == ["pretrain", 0, 1, 2]
    assert result.baseline["default"] == prepared.baseline["default"]
    assert result.code_digest == prepared.code_digest
    (weights,) = (desk.folder / "store/default/own/trials/00003").rglob("model.safetensors")
    assert weights.read_bytes() == alone[0].files()["model.safetensors"].read_bytes()


@pytest.mark.parametrize("when", [1, "end"])
def test_a_script_that_was_stopped_goes_on_behind_its_last_epoch(desk, alone, when):
    """Stopped in the midst of an epoch or behind the last, the run ends bit for bit like one that was left alone."""
    desk.at(when, desk.stop.ask)
    with pytest.raises(Stopped):
        desk.run(desk.request())
    before = list(desk.story.notes)
    desk.stop, desk.story.at = StopFlag(), lambda place: None
    desk.story.notes.clear()
    desk.run(desk.request(attempt=2))
    assert before == ["pretrain", *range(3 if when == "end" else when + 1)]
    assert desk.story.notes == ([] if when == "end" else list(range(when, 3)))
    for name in ("model.safetensors", "shrink.json"):
        assert desk.files()[name].read_bytes() == alone[0].files()[name].read_bytes()
    metrics = json.loads(desk.files()["metrics.json"].read_text())
    assert (metrics["training"]["steps"], metrics["training"]["repeated"]) == (12, 0)
    assert not list((desk.folder / "store/default/own").rglob("state.pt"))


def test_a_stopped_script_ends_when_its_last_checkpoint_is_written(desk, monkeypatch):
    """The end of the process would cut the write short, and an epoch would be trained twice."""
    written: list[str] = []
    write = Checkpointer._write

    def slowly(self: Checkpointer, path: str, content: Any) -> None:
        time.sleep(0.5)
        write(self, path, content)
        written.append(path)

    monkeypatch.setattr(Checkpointer, "_write", slowly)
    desk.at(1, desk.stop.ask)
    with pytest.raises(Stopped):
        desk.run(desk.request())
    assert written == ["state.pt"]


def test_a_loop_that_does_not_give_its_optimizers_begins_anew_and_says_so(desk):
    """Without optimizers there is no checkpoint; the artifact's notes tell how to get one."""
    desk.edit("pretrain=pretrain, optimizers=optimizer, lr_schedulers=[scheduler]", "pretrain=pretrain")
    desk.at(1, desk.stop.ask)
    with pytest.raises(Stopped):
        desk.run(desk.request())
    desk.stop, desk.story.at = StopFlag(), lambda place: None
    desk.story.notes.clear()
    desk.run(desk.request(attempt=2))
    assert desk.story.notes == [0, 1, 2]
    notes = json.loads(desk.files()["metrics.json"].read_text())["notes"]
    assert any("begins anew: give prepare_compression() the optimizers" in note for note in notes)


@pytest.mark.parametrize("when", ["prepare", "after"])
def test_a_signal_outside_the_loop_ends_the_script_at_once(desk, when):
    """Before the model is handed over, and behind on_train_end, nothing is lost by ending anywhere."""
    reached: list[str] = []

    def act() -> None:
        desk.stop.ask()
        reached.append("went on")

    desk.at(when, act)
    with pytest.raises(Stopped):
        desk.run(desk.request())
    assert reached == []


# What goes wrong -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "error", "message"),
    [
        ("    main()\n", "    pass\n", InvalidModelError, "train.py ended without handing a model over; call mp.prep"),
        (
            "    callbacks.on_train_end()\n",
            "    return\n",
            InvalidModelError,
            r"train.py ended too early: on_train_end\(\) was not called",
        ),
        (
            "    callbacks.on_train_begin()\n",
            "    return\n",
            InvalidModelError,
            "train.py ended too early: the training has not begun",
        ),
        ("import random", "import nowhere", InvalidModelError, r"train.py raised ModuleNotFoundError.*train.py:3"),
        ("def main():", "def main(:", InvalidModelError, "train.py raised SyntaxError"),
        ("    optimizer.zero_grad()", "    [][0]", UserCodeError, r"train.py raised IndexError: .*\(train.py:\d+\)"),
        ('    story.at("after")', "    sys.exit(3)", UserCodeError, "train.py raised SystemExit: 3"),
        (
            "    callbacks = compression.callbacks\n",
            "    mp.prepare_compression(model)\n    callbacks = compression.callbacks\n",
            InvalidModelError,
            "was called twice; a job compresses one model",
        ),
        (
            "model, evaluator=accuracy",
            "model, seed=3, evaluator=accuracy",
            InvalidModelError,
            "was given seed, but a job runs this script",
        ),
        (
            'story.at("after")',
            "model.fc2.weight.data.mul_(2)",
            CompressionError,
            r"train.py changed the model after on_train_end\(\)",
        ),
    ],
)
def test_a_script_that_does_not_do_its_part_fails_with_the_reason(desk, old, new, error, message):
    """It hands no model over, ends early, raises, exits, asks for what the job says, or changes the result."""
    desk.edit(old, new)
    with pytest.raises(error, match=message):
        desk.run(desk.request())
    assert not list((desk.folder / "store").rglob("manifest.json"))


def test_a_constraint_that_cannot_be_judged_ends_the_run_before_the_loop(desk):
    """As of any job."""
    with pytest.raises(InvalidSpecError, match="returns no metric 'f1'"):
        desk.run(desk.request(spec={"constraints": [{"metric": "f1", "min": 0.5}]}))
    assert desk.story.notes == ["pretrain"]


def test_a_script_that_is_not_there_is_named(desk):
    """The path is relative to the code folder."""
    with pytest.raises(InvalidModelError, match=r"spec.model.script: there is no file .*/code/other.py"):
        desk.run(desk.request(spec={"model": {"script": "other.py"}}))


def test_prepare_wants_a_model_too(desk):
    """A script that never hands one over fails the sweep's preparation."""
    desk.edit("    main()\n", "    pass\n")
    with pytest.raises(InvalidModelError, match="without handing a model over"):
        desk.run(desk.request(purpose="prepare"))


def test_weights_and_arguments_of_the_job_reach_the_script(desk):
    """model.weights is loaded into the model that is handed over, and nobody pretrains; args are the command line. A
    script that ends itself with sys.exit() has come to a good end."""
    tensors = {"fc1.weight": torch.full((12, 4), 0.5), "fc1.bias": torch.zeros(12)}
    tensors |= {"fc2.weight": torch.ones(2, 12), "fc2.bias": torch.tensor([1.0, -1.0])}
    torch.save(tensors, desk.code / "dense.pt")
    seen = []
    text = SCRIPT.replace(
        "    callbacks.on_train_begin()\n", "    story.weights(model)\n    callbacks.on_train_begin()\n"
    )
    (desk.code / "train.py").write_text(text.replace('story.at("after")', "sys.exit()"))
    desk.story.weights = lambda model: seen.append(model.fc1.weight.detach().clone())
    model = {"script": "train.py", "weights": {"uri": "dense.pt"}, "args": {"width": 12, "epochs": 4}}
    assert desk.run(desk.request(spec={"model": model})).phase == "Succeeded"
    assert torch.equal(seen[0], tensors["fc1.weight"])
    assert desk.story.notes == [0, 1, 2, 3]


def test_arguments_become_a_command_line():
    """As argparse reads it: --name=value, flags, and lists."""
    args = {"lr": -0.1, "name": "a b", "augment": True, "quiet": False, "widths": [8, 16], "empty": ""}
    assert command_line(args) == ["--lr=-0.1", "--name=a b", "--augment", "--widths", "8", "16", "--empty="]
    assert command_line(None) == []
