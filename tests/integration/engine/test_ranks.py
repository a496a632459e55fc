"""What ranks agree on, in a real process group of two: decisions, errors, stops, and checkpoints in parts."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.long

SCRIPT = '''
import json
import os
import sys
import time

import torch
from torch import nn

from modelpress.api.v1alpha1 import Stage
from modelpress.store import open_store
from modelpress_runner.runtime import distributed as ranks
from modelpress_runner.engine.checkpoint import Checkpointer
from modelpress_runner.engine.run import run_stages
from modelpress_runner.errors import CompressionError, InvalidSpecError
from modelpress_runner.evaluators.torch_evaluator import TorchEvaluator
from modelpress_runner.process.stopping import Stopped
from modelpress_runner.subject.subject import Subject
from modelpress_runner.evaluators.trace import trace

folder = sys.argv[1]
found = {}
if "RANK" in os.environ:
    ranks.init_process_group()
rank, world = ranks.rank(), ranks.world_size()
torch.manual_seed(0)


def raised(work):
    try:
        ranks.on_rank_zero(work)
    except Exception as error:
        return [type(error).__name__, str(error), getattr(error, "path", None)]


def only_main():
    assert rank == 0
    return {"plan": [1, 2]}


def refuse():
    raise InvalidSpecError("does not fit", "spec.stages[0]")


found["by_main"] = ranks.on_rank_zero(only_main)
found["refused"] = raised(refuse)
found["unforeseen"] = raised(lambda: 1 / 0)
found["masks"] = {
    outer: {name: mask.tolist() for name, mask in inner.items()}
    for outer, inner in ranks.broadcast_tensors({"fc": {"weight": torch.full((2,), float(rank))}}).items()
}
model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
with torch.no_grad():
    model[0].weight.fill_(4.0 + rank)
    model[1].running_mean.fill_(float(rank))
found["apart"] = ranks.sync_and_diff(model)
found["mean"] = ranks.all_reduce_mean(torch.tensor([1.0 + rank])).tolist()
found["now"] = [model[0].weight[0, 0].item(), model[1].running_mean[0].item(), ranks.sync_and_diff(model)]


class Spread(TorchEvaluator):
    """Each rank has a part of the state that the others do not have."""

    sharded = True
    loaded = None

    def state_dict(self):
        return {**super().state_dict(), "part": torch.tensor([rank, self.steps])}

    def load_state_dict(self, state):
        self.loaded = state.pop("part").tolist()
        super().load_state_dict(state)


def run(stop_after, wrapped=Spread):
    """Four epochs; rank 1 alone is asked to stop after so many."""
    torch.manual_seed(0)
    pause = 0.1 if stop_after else 0.0  # ranks meet twice a second
    net = nn.Linear(4, 1)
    data = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))

    def step(batch, module):
        return module(batch).pow(2).mean()

    def train(module, optimizer, training_step, scheduler, max_steps, max_epochs):
        for _ in range(max_epochs):
            for batch in data[torch.randperm(32)].split(8):
                optimizer.zero_grad()
                training_step(batch[rank::world], module).backward()
                evaluator.steps += 1
                time.sleep(pause)
                optimizer.step()

    evaluator = wrapped(train, trace(torch.optim.Adam)(net.parameters(), lr=0.01), step)
    evaluator.steps = 0
    saved = []

    def stop():
        if stop_after is not None and rank == world - 1 and evaluator.steps >= 4 * stop_after:
            raise Stopped

    stages = [Stage.model_validate({"finetune": {"epochs": 4}})]
    keep = Checkpointer(open_store(folder), "", "the same", 1 if stop_after else 2)
    try:
        outcome = run_stages(
            Subject(net, evaluator), stages, seed=3, checkpointer=keep, stop=stop
        )
    except Stopped:
        return {"stopped": evaluator.steps}
    weights = [round(value, 6) for value in net.weight.flatten().tolist()]
    return {"loaded": evaluator.loaded, "steps": evaluator.steps, "notes": outcome.notes, "weights": weights}


found["run"] = run(int(sys.argv[2]) if len(sys.argv) > 2 else None)
print(json.dumps(found))
ranks.destroy_process_group()
'''


def play(folder: Path, processes: int, *arguments: str) -> list[dict[str, Any]]:
    """What each rank found."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = folder / "script.py"
    script.write_text(SCRIPT)
    started = []
    for rank in range(processes):
        group = {"RANK": str(rank), "WORLD_SIZE": str(processes), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
        group |= {"MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo", "LOCAL_WORLD_SIZE": str(processes)}
        environment = {**os.environ, **(group if processes > 1 else {})}
        command = [sys.executable, str(script), str(folder / "store"), *arguments]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True))
    out = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [0] * processes, out
    return [json.loads(text.splitlines()[-1]) for text in out]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Two ranks that are stopped, then go on; and one process that goes on in their place."""
    folder, other = tmp_path_factory.mktemp("ranks"), tmp_path_factory.mktemp("alone")
    stopped = play(folder, 2, "2")
    shutil.copytree(folder / "store", other / "store")
    return {"stopped": stopped, "resumed": play(folder, 2), "alone": play(other, 1)}


def test_rank_0_decides_for_all(story):
    """What it gives, every rank gets: data, tensors, weights and statistics."""
    for found in story["stopped"]:
        assert found["by_main"] == {"plan": [1, 2]}
        assert found["masks"] == {"fc": {"weight": [0.0, 0.0]}}
        assert found["mean"] == [1.5]
        assert found["apart"] == 0.25
        assert found["now"] == [4.0, 0.0, 0.0]


def test_rank_0s_errors_are_everybodys(story):
    """Of their type with their path where they are the runner's own; what nobody foresaw is named."""
    first, second = story["stopped"]
    assert (
        first["refused"] == second["refused"] == ["InvalidSpecError", "spec.stages[0]: does not fit", "spec.stages[0]"]
    )
    assert first["unforeseen"][:2] == ["ZeroDivisionError", "division by zero"]
    assert second["unforeseen"][:2] == ["CompressionError", "rank 0 raised ZeroDivisionError: division by zero"]


def test_one_rank_stops_all_at_the_same_place(story):
    """Asked behind the second epoch, rank 1 brings rank 0 along at the next place where they meet."""
    first, second = (found["run"]["stopped"] for found in story["stopped"])
    assert first == second
    assert 8 <= first < 16


def test_each_rank_goes_on_with_its_own_part(story):
    """What is spread over the ranks comes back to the rank that had it, and the weights are the same on both."""
    first, second = (found["run"] for found in story["resumed"])
    stopped = story["stopped"][0]["run"]["stopped"]
    assert (first["loaded"], second["loaded"]) == ([0, stopped], [1, stopped])
    assert (first["steps"], second["steps"]) == (16, 16)  # those that were played back among them
    assert first["weights"] == second["weights"]
    assert first["notes"] == []


def test_another_number_of_processes_begins_the_training_anew(story):
    """One process sees other data than two did, so what they did cannot be played back; both is said."""
    (found,) = story["alone"]
    assert (found["run"]["loaded"], found["run"]["steps"]) == (None, 16)
    goes_on, anew = found["run"]["notes"]
    assert goes_on == "the run goes on with 1 processes; before there were 2"
    assert "2 processes trained together before, and 1 do now" in anew


STRANGER = """
import os
import pathlib
import pickle
import sys

import torch
from torch import distributed

from modelpress_runner.runtime import distributed as ranks
from modelpress_runner.errors import CompressionError

me, stranger, ran = int(os.environ["RANK"]), int(sys.argv[1]), pathlib.Path(sys.argv[2])
ranks.init_process_group()


class Code:
    def __reduce__(self):
        return (pathlib.Path.touch, (ran,))


if me == stranger:
    text = torch.frombuffer(bytearray(pickle.dumps(Code())), dtype=torch.uint8)
    sizes = torch.tensor([len(text), 0])
    if stranger == 0:
        distributed.broadcast(sizes, src=0)
        distributed.broadcast(text, src=0)
    else:
        distributed.all_gather([torch.empty_like(sizes) for _ in range(2)], sizes)
        distributed.all_gather([torch.empty_like(text) for _ in range(2)], text)
else:
    try:
        ranks.broadcast_object(None) if stranger == 0 else ranks.all_gather_object([1])
    except CompressionError as error:
        print(error)
"""


@pytest.mark.parametrize("stranger", [0, 1])
def test_a_strangers_pickle_is_never_unpickled(stranger: int, tmp_path: Path) -> None:
    """Who joins in the place of a rank, and knows how ranks frame what they tell, is answered with an error."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script, ran = tmp_path / "script.py", tmp_path / "ran"
    script.write_text(STRANGER)
    started = []
    for rank in range(2):
        group = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
        group |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
        command = [sys.executable, str(script), str(stranger), str(ran)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, **group}, text=True))
    out = [process.communicate(timeout=120)[0] for process in started]
    assert "another process of this run sent something else than plain data" in out[1 - stranger]
    assert not ran.exists()


def test_no_collective_of_the_runner_unpickles() -> None:
    """The functions of torch.distributed that pickle are called nowhere in the runner; its own ones tell plain data."""
    theirs = re.compile(
        r"_object_list|\b(dist|distributed|c10d)\.(all_)?gather_object"
        r"|from torch\.distributed\b.* import .*gather_object"
    )
    assert theirs.search("torch.distributed.all_gather_object(out, value)")
    assert not theirs.search("ranks.all_gather_object(value)")
    sources = Path(__file__).resolve().parents[3] / "runner"
    found = [
        f"{path.name}:{number}"
        for path in sources.rglob("*.py")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if theirs.search(line)
    ]
    assert found == []
