"""Runner processes on a small task: code in a folder, a request, and what came out of it."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from warm_processes import WarmProcess, WarmProcesses

CODE = '''
"""A network of two layers on two Gaussian clouds."""
import os
import random
import sys

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import modelpress as mp


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1)
        self.bn = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(0.1)
        self.fc = nn.Linear(width, 2)

    def forward(self, x):
        return self.fc(self.drop(F.relu(self.bn(self.conv1(x)))).mean(dim=(2, 3)))


def mark(what):
    """Tells the test how far the process is; the test answers by removing the file, or by a signal."""
    folder = os.environ.get("TEST_MARKS")
    if folder is not None:
        open(os.path.join(folder, what), "w").close()


def create(width: int = 8, train: bool = True, epochs: int = 2):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(64, 1, 6, 6, generator=g)
    y = (torch.arange(64) % 2)
    x = x + y.float().reshape(-1, 1, 1, 1)
    calls = {"epoch": 0}

    def training_step(batch, model):
        a, b = batch
        noise = random.random() + np.random.rand()
        return F.cross_entropy(model(a + 0.01 * noise), b)

    def training_func(model, optimizer, training_step, scheduler, max_steps, max_epochs):
        steps = 0
        for _ in range(max_epochs or 10**6):
            calls["epoch"] += 1
            mark(f"epoch-{calls['epoch']}")
            for number, index in enumerate(torch.randperm(64).split(16)):
                if max_steps is not None and steps >= max_steps:
                    return
                if number == 2 and os.environ.get("TEST_HANG") == str(calls["epoch"]):
                    mark("hanging")
                    while True:
                        training_step((x[index], y[index]), model)
                optimizer.zero_grad()
                training_step((x[index], y[index]), model).backward()
                optimizer.step()
                steps += 1
            scheduler.step()

    model = Net(width)
    if train:
        mark("dense")
        calls["epoch"] = -100  # nobody is to hang in here
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        training_func(model, optimizer, training_step, torch.optim.lr_scheduler.ConstantLR(optimizer), None, epochs)
        calls["epoch"] = 0
    optimizer = mp.trace(torch.optim.Adam)(model.parameters(), lr=0.01)
    evaluator = mp.TorchEvaluator(
        training_func,
        optimizer,
        training_step,
        mp.trace(torch.optim.lr_scheduler.ExponentialLR)(optimizer, gamma=0.9),
        dummy_input=x[:1],
        evaluating_func=lambda model: (model(x).argmax(1) == y).float().mean(),
    )
    return model, evaluator
'''

STAGES = [
    {
        "prune": {
            "algorithm": "l1",
            "configList": [{"opTypes": ["Conv2d"], "sparsity": 0.5}],
            "schedule": {"type": "linear", "rounds": 2, "train": {"epochs": 1}},
        }
    },
    {"finetune": {"epochs": 3}},
]


class Workbench:
    """A code folder, a store, and runner processes between them."""

    def __init__(self, folder: Path, runners: WarmProcesses) -> None:
        self.folder = folder
        self.runners = runners
        self.code = folder / "code"
        self.code.mkdir()
        (self.code / "clouds.py").write_text(CODE)
        self.store = folder / "store"
        self.marks = folder / "marks"
        self.marks.mkdir()
        self.root = "default/clouds-12345678"

    @property
    def dense(self) -> Path:
        return self.store / self.root / "dense"

    def request(self, attempt: int = 1, **changes: Any) -> dict[str, Any]:
        spec = {
            "model": {"entrypoint": "clouds:create"},
            "stages": STAGES,
            "benchmark": {"warmup": 1, "iterations": 5},
            "store": {"uri": str(self.store)},
        }
        request = {
            "apiVersion": "modelpress.dev/v1alpha1",
            "kind": "RunRequest",
            "purpose": "trial",
            "namespace": "default",
            "name": "clouds",
            "uid": "12345678-0000",
            "attempt": attempt,
            "runUid": f"{attempt}aaaaaaa-bbbb",
            "root": self.root,
            "prefix": self.root,
            "codePath": str(self.code),
        }
        spec |= changes.pop("spec", {})
        return {**request, **changes, "spec": spec}

    def arguments(self, request: dict[str, Any], *more: str) -> list[str]:
        """What a runner is told, the request written."""
        (self.folder / "request.json").write_text(json.dumps(request))
        (self.folder / "result.json").unlink(missing_ok=True)
        names = {"request": "request.json", "result": "result.json", "progress": "progress.jsonl"}
        return [*(word for key, name in names.items() for word in (f"--{key}", str(self.folder / name))), *more]

    def environment(self, **more: str) -> dict[str, str]:
        """What a runner finds around it."""
        return {**os.environ, "TEST_MARKS": str(self.marks), **more}

    def start(self, request: dict[str, Any], *arguments: str, **environment: str) -> WarmProcess:
        """A runner under way; what it prints is its log."""
        told = self.arguments(request, *arguments)
        log = self.folder / "runner.log"
        log.unlink(missing_ok=True)
        return self.runners.start(told, Path.cwd(), self.environment(**environment), log)

    def run(self, request: dict[str, Any], *arguments: str, **environment: str) -> tuple[int, dict[str, Any], str]:
        """Exit code, result and log."""
        process = self.start(request, *arguments, **environment)
        _, log = process.communicate(timeout=240)
        return process.returncode, json.loads((self.folder / "result.json").read_text()), log

    def run_alone(self, request: dict[str, Any], **environment: str) -> tuple[int, dict[str, Any], str]:
        """The same of a new interpreter: python -m modelpress_runner.main."""
        command = [sys.executable, "-m", "modelpress_runner.main", *self.arguments(request)]
        around = self.environment(**environment)
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, env=around, timeout=240, check=False)
        return done.returncode, json.loads((self.folder / "result.json").read_text()), done.stderr

    def wait_for(self, mark: str, process: WarmProcess | subprocess.Popen[str], timeout: float = 240) -> None:
        """Returns when the process has come to `mark`; the mark must have been made a FIFO before it started."""
        reader = os.open(self.marks / mark, os.O_RDONLY | os.O_NONBLOCK)
        try:
            if not select.select([reader], [], [], timeout)[0]:
                process.kill()
                raise AssertionError(f"{mark} was not reached: {process.communicate()[1]}")
        finally:
            os.close(reader)

    def artifact(self) -> dict[str, Path]:
        """The committed files by name."""
        manifest = json.loads((self.store / self.root / "manifest.json").read_text())
        paths = [self.store / self.root / entry["path"] for entry in manifest["files"]]
        return {path.name: path for path in paths}


@pytest.fixture(scope="module")
def make_bench(tmp_path_factory: pytest.TempPathFactory, runners: WarmProcesses) -> Callable[[], Workbench]:
    return lambda: Workbench(tmp_path_factory.mktemp("bench"), runners)


@pytest.fixture
def bench(tmp_path: Path, runners: WarmProcesses) -> Workbench:
    return Workbench(tmp_path, runners)
