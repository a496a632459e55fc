"""Two processes that train one model: as one does with the same batches, and the same again when they are disturbed."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from warm_processes import WarmProcess

from modelpress.result import ExitCode, RunRecord, RunResult

pytestmark = pytest.mark.long

CODE = '''
"""A network without statistics on two Gaussian clouds; every process takes its share of each batch."""
import os
import time

import torch
import torch.nn.functional as F
from torch import distributed, nn

import modelpress as mp


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 2)

    def forward(self, x):
        return self.fc(F.relu(self.conv2(F.relu(self.conv1(x)))).mean(dim=(2, 3)))


def ranks():
    return (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)


def hang(epoch):
    """Tells the test who hangs, and waits for a signal; only where it is asked for."""
    if os.environ.get("TEST_HANG") != str(epoch) or ranks()[0] != 1:
        return False
    with open(os.environ["TEST_FIFO"], "w") as fifo:
        fifo.write(str(os.getpid()))
    return True


def create():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(64, 1, 6, 6, generator=g)
    y = torch.arange(64) % 2
    x = x + 2 * y.float().reshape(-1, 1, 1, 1)
    rank, world = ranks()
    calls = {"epoch": 0}

    def training_step(batch, model):
        images, labels = batch
        return F.cross_entropy(model(images), labels)

    def training_func(model, optimizer, training_step, scheduler, max_steps, max_epochs):
        steps = 0
        for _ in range(max_epochs or 10**6):
            calls["epoch"] += 1
            for number, batch in enumerate(torch.randperm(64).split(16)):
                if max_steps is not None and steps >= max_steps:
                    return
                mine = batch[rank::world]
                if number == 2 and os.environ.get("TEST_RAISE") == str(calls["epoch"]) and rank == 1:
                    raise ValueError("no more data")
                if number == 2 and hang(calls["epoch"]):
                    while True:
                        time.sleep(0.01)
                        with torch.no_grad():
                            training_step((x[mine], y[mine]), model)
                optimizer.zero_grad()
                training_step((x[mine], y[mine]), model).backward()
                optimizer.step()
                steps += 1

    def evaluate(model):
        """Every process counts its own share."""
        right = (model(x[rank::world]).argmax(1) == y[rank::world]).sum().float()
        if world > 1:
            distributed.all_reduce(right)
        return right / 64

    torch.manual_seed(0)
    model = Net()
    evaluator = mp.TorchEvaluator(
        training_func,
        mp.trace(torch.optim.Adam)(model.parameters(), lr=0.05),
        training_step,
        dummy_input=x[:1],
        evaluating_func=evaluate,
    )
    return model, evaluator
'''
STAGES = [
    {
        "prune": {
            "algorithm": "taylor",
            "configList": [{"opTypes": ["Conv2d"], "sparsity": 0.5}],
            "scores": {"steps": 4},
        }
    },
    {"finetune": {"epochs": 3}},
]


class Gang:
    """A bench whose requests are for two processes."""

    def __init__(self, bench: Any) -> None:
        self.bench = bench
        (bench.code / "shares.py").write_text(CODE)
        self.fifo = bench.folder / "fifo"
        os.mkfifo(self.fifo)

    def request(self, attempt: int = 1, processes: int = 2, **runner: Any) -> dict[str, Any]:
        spec = {
            "model": {"entrypoint": "shares:create"},
            "stages": STAGES,
            "runner": {"processesPerNode": processes, **runner},
        }
        request: dict[str, Any] = self.bench.request(attempt, spec=spec)
        return request

    def run(self, request: dict[str, Any], **environment: str) -> tuple[int, dict[str, Any], str]:
        """Exit code, result and log."""
        found: tuple[int, dict[str, Any], str] = self.bench.run(request, TEST_FIFO=str(self.fifo), **environment)
        return found

    def hanging(self, request: dict[str, Any], epoch: int) -> tuple[WarmProcess, int]:
        """A run whose rank 1 hangs in an epoch of training, and the pid of that rank."""
        reader = os.open(self.fifo, os.O_RDONLY | os.O_NONBLOCK)
        process = self.bench.start(
            request, TEST_FIFO=str(self.fifo), TEST_HANG=str(epoch), MODELPRESS_CHECKPOINT_STEPS="4"
        )
        try:
            if not select.select([reader], [], [], 120)[0]:
                process.kill()
                raise AssertionError(process.communicate()[1])
            return process, int(os.read(reader, 100))
        finally:
            os.close(reader)

    def disturb(self, request: dict[str, Any], epoch: int, number: signal.Signals, *, rank: bool) -> tuple[int, Any]:
        """Send a signal while rank 1 hangs in an epoch of training: to rank 1 itself, or to the node's process."""
        process, pid = self.hanging(request, epoch)
        os.kill(pid if rank else process.pid, number)
        process.communicate(timeout=60)
        return process.returncode, json.loads((self.bench.folder / "result.json").read_text())

    def artifact(self, name: str) -> Path:
        """A committed file."""
        path: Path = self.bench.artifact()[name]
        return path

    def metrics(self) -> dict[str, Any]:
        """metrics.json."""
        value: dict[str, Any] = json.loads(self.artifact("metrics.json").read_text())
        return value


@dataclass
class Story:
    """One process; two; two that are stopped in one attempt, lose a rank in the next, and end in the third."""

    alone: Gang
    gang: Gang
    disturbed: Gang
    stopped: tuple[int, Any]
    lost: tuple[int, Any]
    finished: tuple[int, dict[str, Any], str]


@pytest.fixture(scope="module")
def story(make_bench) -> Story:
    alone, gang, disturbed = (Gang(make_bench()) for _ in range(3))
    for bench, processes in ((alone, 1), (gang, 2)):
        code, _, log = bench.run(bench.request(processes=processes))
        assert code == ExitCode.DONE, log
    # An epoch for the scores, at whose end another begins, then three of finetuning.
    stopped = disturbed.disturb(disturbed.request(1), 3, signal.SIGTERM, rank=False)
    lost = disturbed.disturb(disturbed.request(2), 1, signal.SIGKILL, rank=True)
    return Story(alone, gang, disturbed, stopped, lost, disturbed.run(disturbed.request(3)))


def test_two_processes_cut_what_one_does(story):
    """The same criterion from halves of the batches gives the same channels, and the model trains to the same score."""
    cuts = [json.loads(bench.artifact("shrink.json").read_text()) for bench in (story.alone, story.gang)]
    assert cuts[0] == cuts[1]
    assert cuts[0]["edits"]
    alone, gang = story.alone.metrics(), story.gang.metrics()
    assert gang["baseline"]["default"] == alone["baseline"]["default"]
    for name in ("parameters", "macs"):
        assert gang["compressed"][name] == alone["compressed"][name]
    assert gang["compressed"]["default"] == pytest.approx(alone["compressed"]["default"], abs=1 / 64)
    assert gang["compressed"]["default"] > 0.9
    weights = [load_file(bench.artifact("model.safetensors")) for bench in (story.alone, story.gang)]
    apart = max(float((weights[0][name] - weights[1][name]).abs().max()) for name in weights[0])
    assert apart < 1e-3
    print("largest difference of a weight:", apart)
    print("scores of one and of two processes:", alone["compressed"]["default"], gang["compressed"]["default"])


def test_a_stopped_gang_says_so(story):
    """SIGTERM reaches every rank, also the one that waits for another; 143 as ever."""
    code, message = story.stopped
    assert code == ExitCode.TERMINATED
    assert (message["phase"], message["reason"]) == ("Failed", "RunnerTerminated")
    record = story.disturbed.bench.store / story.disturbed.bench.root / "1-1aaaaaaa" / "result.json"
    assert json.loads(record.read_text())["reason"] == "RunnerTerminated"


def test_a_lost_rank_ends_the_gang(story):
    """Nobody waits for a process that was killed; the message says which it was, and how."""
    code, message = story.lost
    assert code == ExitCode.FAILED
    assert message["reason"] == "RunnerFailed"
    assert message["message"].startswith("process 1 of 2 (counted from 0) was killed by SIGKILL")


def test_the_next_attempt_goes_on_from_the_checkpoint(story):
    """No matter how each of the two disturbed attempts ended, the result is the same bit for bit."""
    code, _, log = story.finished
    assert code == ExitCode.DONE, log
    for metrics in (story.gang.metrics(), story.disturbed.metrics()):
        assert (metrics["training"]["steps"], metrics["training"]["repeated"]) == (12, 0)
        assert not any("anew" in note for note in metrics["notes"])
    for name in ("model.safetensors", "shrink.json"):
        assert story.gang.artifact(name).read_bytes() == story.disturbed.artifact(name).read_bytes()


def test_one_rank_reports_and_writes(story):
    """One artifact, one record, one line of progress per event; the result is rank 0's."""
    folder = story.gang.bench.store / story.gang.bench.root
    assert [path.name for path in folder.glob("1-*")] == ["1-1aaaaaaa"]
    message = json.loads((story.gang.bench.folder / "result.json").read_text())
    result = RunResult.model_validate(message)
    assert result.manifest_digest is not None
    record = RunRecord.model_validate_json((folder / "1-1aaaaaaa" / "result.json").read_text())
    assert record.manifest_digest == result.manifest_digest
    lines = [json.loads(line) for line in (story.gang.bench.folder / "progress.jsonl").read_text().splitlines()]
    trained = [line["step"] for line in lines if line["message"].startswith("finetune:")]
    assert trained[-1] == 12
    assert trained == sorted(set(trained))


def test_the_users_own_error_is_told_whichever_rank_it_happens_on(make_bench):
    """Exit code 1 with the user's file and line, not a launcher's word that a child failed."""
    gang = Gang(make_bench())
    code, message, log = gang.run(gang.request(), TEST_RAISE="4")
    assert code == ExitCode.FAILED
    line = next(number for number, text in enumerate(CODE.splitlines(), 1) if "no more data" in text)
    expected = f"process 1 of 2 (counted from 0): training_func raised ValueError: no more data (shares.py:{line})"
    assert message["message"] == expected
    assert 'raise ValueError("no more data")' in log
    assert "ChildFailedError" not in log


def test_a_killed_node_takes_its_ranks_along(make_bench):
    """DeepSpeed's launcher and its workers end when the process above them is killed; a signal does not reach them."""
    gang = Gang(make_bench())
    process, pid = gang.hanging(gang.request(launcher="deepspeed"), 4)
    workers = [pid, *siblings(pid)]
    assert len(workers) == 2
    watches = [os.pidfd_open(worker) for worker in workers]
    process.kill()
    process.communicate(timeout=60)
    for watch in watches:
        assert select.select([watch], [], [], 30)[0]
        os.close(watch)


class Pods:
    """Two nodes of one process each, as two pods are: each with an environment, a request and a result of its own."""

    def __init__(self, gang: Gang, folder: Path) -> None:
        self.gang, self.folder = gang, folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]

    def start(self, **environment: str) -> list[subprocess.Popen[str]]:
        """Both nodes' processes."""
        request = self.gang.request(processes=1, nodes=2)
        request["runUid"] = ""  # a pod's comes from its environment
        return [self._start(node, request, environment) for node in (0, 1)]

    def _start(self, node: int, request: dict[str, Any], environment: dict[str, str]) -> subprocess.Popen[str]:
        place = self.folder / f"node-{node}"
        place.mkdir()
        (place / "request.json").write_text(json.dumps(request))
        command = [sys.executable, "-m", "modelpress_runner.main", "--request", str(place / "request.json")]
        pod = {
            "PET_NNODES": "2",
            "PET_NPROC_PER_NODE": "1",
            "PET_NODE_RANK": str(node),
            "PET_MASTER_ADDR": "127.0.0.1",
            "PET_MASTER_PORT": str(self.port),
            "RANK": str(node),
            "WORLD_SIZE": "2",
            "MODELPRESS_RUN_UID": f"{node}bbbbbbb-cccc",
            "GLOO_SOCKET_IFNAME": "lo",
        }
        return subprocess.Popen(
            [*command, "--result", str(place / "result.json")],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TEST_FIFO": str(self.gang.fifo), **pod, **environment},
        )

    def result(self, node: int) -> dict[str, Any] | None:
        """What a node reports."""
        path = self.folder / f"node-{node}" / "result.json"
        return json.loads(path.read_text()) if path.exists() else None


@pytest.mark.parametrize("disturbed", [False, True])
def test_two_nodes_are_one_gang(make_bench, tmp_path, disturbed):
    """The first node reports and the second one keeps silent; when the second is told to end, both end with 143."""
    gang = Gang(make_bench())
    pods = Pods(gang, tmp_path)
    reader = os.open(gang.fifo, os.O_RDONLY | os.O_NONBLOCK)
    first, second = pods.start(**({"TEST_HANG": "4"} if disturbed else {}))
    if disturbed:
        assert select.select([reader], [], [], 120)[0]
        second.terminate()
    _, second_log = second.communicate(timeout=120)
    if disturbed:
        first.terminate()  # as the Job controller does when a pod has failed
    _, first_log = first.communicate(timeout=120)
    os.close(reader)
    ends = (first.returncode, second.returncode)
    if disturbed:
        assert ends == (ExitCode.TERMINATED, ExitCode.TERMINATED), first_log + second_log
        assert [(pods.result(node) or {}).get("reason") for node in (0, 1)] == ["RunnerTerminated"] * 2
    else:
        assert ends == (ExitCode.DONE, ExitCode.DONE), first_log + second_log
        assert pods.result(1) is None
        result = RunResult.model_validate(pods.result(0))
        assert (result.phase, result.smaller) == ("Succeeded", True)
        assert gang.artifact("shrink.json").parent.name == "1-0bbbbbbb"


def siblings(pid: int) -> list[int]:
    """Processes with the same parent."""
    parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(child) for child in children if int(child) != pid]
