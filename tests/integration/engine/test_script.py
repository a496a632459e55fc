"""A script as a runner's process: SIGTERM, exit codes, and going on."""

from __future__ import annotations

import json
import os
import signal

import pytest

from modelpress.result import ExitCode

pytestmark = pytest.mark.long

SCRIPT = """
import os

import torch
from torch import nn

import modelpress as mp
from shapes import Net

x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
model = Net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
compression = mp.prepare_compression(model, dummy_input=x[:1], optimizers=optimizer)
callbacks = compression.callbacks
callbacks.on_train_begin()
for epoch in compression.epochs(3):
    for batch in range(2):
        callbacks.on_step_begin(batch)
        if epoch == int(os.environ.get("TEST_HANG", -1)):
            open(os.path.join(os.environ["TEST_MARKS"], "hanging"), "w").close()
            while True:
                callbacks.on_step_begin(batch)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        callbacks.on_before_optimizer_step()
        optimizer.step()
        callbacks.on_after_optimizer_step()
    mp.report(epoch, loss=0.5, default=epoch / 10)
callbacks.on_train_end()
"""
SHAPES = """
from torch import nn


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
"""


def test_a_script_is_stopped_and_goes_on(bench):
    """SIGTERM in the second epoch is exit code 143; the next attempt trains what is left, and its artifact is whole."""
    (bench.code / "train").mkdir()
    (bench.code / "train" / "loop.py").write_text(SCRIPT)
    (bench.code / "shapes.py").write_text(SHAPES)
    spec = {
        "model": {"script": "train/loop.py"},
        "stages": [{"prune": {"configList": [{"opNames": ["0"], "sparsity": 0.5}], "schedule": {"startStep": 1}}}],
    }
    os.mkfifo(bench.marks / "hanging")
    process = bench.start(bench.request(1, spec=spec), TEST_HANG="1")
    bench.wait_for("hanging", process)
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=240)
    assert process.returncode == ExitCode.TERMINATED, log
    assert json.loads((bench.folder / "result.json").read_text())["reason"] == "RunnerTerminated"
    code, message, log = bench.run(bench.request(2, spec=spec))
    assert code == ExitCode.DONE, log
    assert (message["baseline"]["parameters"], message["compressed"]["parameters"]) == (58, 30)
    metrics = json.loads(bench.artifact()["metrics.json"].read_text())
    assert metrics["training"] == {"steps": 6, "executed": 6, "repeated": 0, "checkpoints": 2}
    lines = [json.loads(line) for line in (bench.folder / "progress.jsonl").read_text().splitlines()]
    assert [(line["at"], line["value"], line["metrics"]) for line in lines if "at" in line] == [
        (epoch, epoch / 10, {"default": epoch / 10, "loss": 0.5}) for epoch in (0, 1, 2)
    ]


def test_a_script_without_its_part_is_not_tried_again(bench):
    """A script that hands no model over is exit code 2: another attempt would not help."""
    (bench.code / "train.py").write_text("print('nothing to hand over')\n")
    code, message, log = bench.run(bench.request(spec={"model": {"script": "train.py"}, "stages": LEVEL}))
    assert code == ExitCode.INVALID, log
    assert message["reason"] == "InvalidModel"
    assert message["message"] == (
        "spec.model.script: train.py ended without handing a model over; call mp.prepare_compression(model) in it"
    )


LEVEL = [{"prune": {"algorithm": "level", "speedup": False, "configList": [{"sparsity": 0.5}]}}]


PARALLEL = """
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

import modelpress as mp
from shapes import Net

assert distributed.is_initialized()
rank, world = distributed.get_rank(), distributed.get_world_size()
x = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
y = (x[:, 0] > 0).long()
model = Net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
compression = mp.prepare_compression(
    model,
    evaluator=lambda model: (model(x).argmax(1) == y).float().mean(),
    dummy_input=x[:1],
    pretrain=lambda model: model[0].weight.data.mul_(1 + rank),
    optimizers=optimizer,
)
parallel = DistributedDataParallel(model)
callbacks = compression.callbacks
callbacks.on_train_begin()
for epoch in compression.epochs(2):
    for batch, index in enumerate(torch.randperm(16).split(8)):
        callbacks.on_step_begin(batch)
        optimizer.zero_grad()
        share = index[rank::world]
        torch.nn.functional.cross_entropy(parallel(x[share]), y[share]).backward()
        callbacks.on_before_optimizer_step()
        optimizer.step()
        callbacks.on_after_optimizer_step()
    mp.report(epoch, loss=rank)
weights = [torch.zeros_like(model[0].weight) for _ in range(world)]
distributed.all_gather(weights, model[0].weight.detach())
assert torch.equal(weights[0], weights[1])
callbacks.on_train_end()
"""


def test_processes_that_train_together_run_the_script_in_step(bench):
    """Two ranks score by their averaged gradients, cut the same channels, and leave one artifact."""
    (bench.code / "train.py").write_text(PARALLEL)
    (bench.code / "shapes.py").write_text(SHAPES)
    prune = {
        "algorithm": "taylor",
        "configList": [{"opNames": ["0"], "sparsity": 0.5}],
        "schedule": {"type": "linear", "endStep": 3},
    }
    spec = {
        "model": {"script": "train.py"},
        "stages": [{"prune": prune}],
        "runner": {"image": "unused", "processesPerNode": 2},
    }
    code, message, log = bench.run(bench.request(spec=spec), OMP_NUM_THREADS="1")
    assert code == ExitCode.DONE, log
    assert (message["baseline"]["parameters"], message["compressed"]["parameters"]) == (58, 30)
    metrics = json.loads(bench.artifact()["metrics.json"].read_text())
    assert metrics["training"]["repeated"] == 0
    assert metrics["compressed"]["default"] == message["compressed"]["default"]
    lines = [json.loads(line) for line in (bench.folder / "progress.jsonl").read_text().splitlines()]
    assert [line["metrics"] for line in lines if "at" in line] == [{"loss": 0.0}] * 2
