"""Two processes with a DeepSpeed engine that are stopped: also where one of them can no longer be played back."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

SCRIPT = """
import json
import sys
import time
import warnings

import torch
from torch import nn

import modelpress as mp
from modelpress.api.v1alpha1 import Stage
from modelpress.store import open_store
from modelpress_runner.engine.checkpoint import Checkpointer
from modelpress_runner.engine.run import run_stages
from modelpress_runner.process.stopping import Stopped
from modelpress_runner.runtime import distributed as ranks
from modelpress_runner.subject.subject import Subject

warnings.simplefilter("ignore", FutureWarning)
folder, attempt, stop_at, looks = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "looks"
ranks.init_process_group()
rank, world = ranks.rank(), ranks.world_size()
data = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
seen = []


def training_func(engine, optimizer, training_step, lr_scheduler, max_steps, max_epochs):
    for _ in range(max_epochs):
        for batch in data[torch.randperm(32)].split(8):
            seen.append(round(float(batch[0, 0]), 4))
            time.sleep(0.05)  # ranks ask each other twice a second what to do
            engine.backward(training_step(batch[rank::world], engine))
            engine.step()
            if looks and rank == 1:  # an average of weights, of this rank alone
                engine.module.state_dict()


def stop():
    if rank == 1 and len(seen) >= stop_at:
        raise Stopped


with torch.random.fork_rng():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
evaluator = mp.DeepspeedTorchEvaluator(
    training_func,
    lambda batch, engine: engine(batch).pow(2).mean(),
    {"train_batch_size": 8, "zero_optimization": {"stage": 1}},
    mp.trace(torch.optim.AdamW)(net.parameters(), lr=0.01),
)
checkpointer = Checkpointer(open_store(folder), "", "the same", attempt)
stages = [Stage.model_validate({"finetune": {"epochs": 12}})]
found = {"stopped": False}
try:
    outcome = run_stages(Subject(net, evaluator), stages, seed=3, checkpointer=checkpointer, stop=stop)
    found |= {"notes": outcome.notes, "weights": net[0].weight.flatten().tolist(), "training": outcome.training}
except Stopped:
    found["stopped"] = True
print(json.dumps({**found, "seen": seen}))
ranks.destroy_process_group()
"""
LIMIT = 300  # seconds for ranks that wait for each other for ever; a busy machine takes its time
LOOKS = (
    "an interrupted training would have begun anew from some step on: training_func looks at the weights after nearly "
    "every step (as an average of weights does)"
)


def play(folder: Path, attempt: int, stop_at: int, what: str) -> list[dict]:
    """What each of two ranks found; rank 1 alone is asked to stop, once it has seen so many batches."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder.mkdir(exist_ok=True)
    script = folder / "script.py"
    script.write_text(SCRIPT)
    started = []
    for rank in range(2):
        group = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
        group |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
        environment = {**os.environ, **group, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        command = [sys.executable, str(script), str(folder / "store"), str(attempt), str(stop_at), what]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True))
    try:
        out = [process.communicate(timeout=LIMIT)[0] for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
    assert [process.returncode for process in started] == [0, 0], out
    return [json.loads(text.splitlines()[-1]) for text in out]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The training in one go."""
    first, second = play(tmp_path_factory.mktemp("whole"), 1, 10**6, "")
    assert first == second
    assert len(first["seen"]) == 48
    return first


def test_ranks_that_were_stopped_go_on_each_with_its_part(whole, tmp_path):
    """Weights and the order of the samples are those of a training in one go, bit for bit."""
    stopped = play(tmp_path / "run", 1, 20, "")
    assert [each["stopped"] for each in stopped] == [True, True]
    assert stopped[0]["seen"] == stopped[1]["seen"]
    for one, two in zip(stopped, play(tmp_path / "run", 2, 10**6, ""), strict=True):
        assert two["seen"] == whole["seen"]  # its function is called again from its begin
        assert one["seen"] == whole["seen"][: len(one["seen"])]
        assert two["weights"] == whole["weights"]
        assert two["notes"] == []
        assert two["training"]["executed"] == two["training"]["steps"] == 48


def test_a_rank_that_cannot_be_played_back_holds_nobody_up_at_a_stop(whole, tmp_path):
    """All end at the same step; no checkpoint is kept then that only one of them could go on from."""
    stopped = play(tmp_path / "run", 1, 20, "looks")
    assert [each["stopped"] for each in stopped] == [True, True]
    assert stopped[0]["seen"] == stopped[1]["seen"] == whole["seen"][: len(stopped[0]["seen"])]
    first, second = play(tmp_path / "run", 2, 10**6, "looks")
    assert first["weights"] == second["weights"] == whole["weights"]
    assert (first["notes"], second["notes"]) == ([], [LOOKS])
