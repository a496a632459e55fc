"""Groups of processes: who belongs to one, how their launchers are told, and what becomes of their reports."""

from __future__ import annotations

import base64
import importlib.util
import json
import time
from pathlib import Path

import pytest

from modelpress.api.v1alpha1 import Runner
from modelpress.request import RunRequest
from modelpress.result import ExitCode, RunResult
from modelpress_runner.errors import InvalidSpecError
from modelpress_runner.process import launch
from modelpress_runner.process.launch import TrainingGroup, WorkerReport, group_of, judge
from modelpress_runner.process.stopping import StopFlag

TWO = TrainingGroup(1, 2, 0, "127.0.0.1", 0, "torchrun")
NODE_1 = TrainingGroup(2, 1, 1, "a-0.a", 29500, "torchrun")
POD = {
    "PET_NNODES": "2",
    "PET_NPROC_PER_NODE": "4",
    "PET_NODE_RANK": "1",
    "PET_MASTER_ADDR": "a-0.a",
    "PET_MASTER_PORT": "29500",
}


def report(rank: int, code: int, message: str = "", *, at: float = 0.0, gone: bool = False) -> WorkerReport:
    """How one worker ended."""
    phase = "Succeeded" if code == 0 else "Failed"
    reason = {0: "Succeeded", 1: "RunnerFailed", 2: "InvalidModel", 143: "RunnerTerminated"}[code]
    return WorkerReport(rank, code, RunResult(phase=phase, reason=reason, message=message), at, gone)


def told(
    *reports: WorkerReport, exits: dict[int, int] | None = None, group: TrainingGroup = TWO, stopped: bool = False
):
    """Exit code, reason and message of a node's process."""
    result, code = judge({one.rank: one for one in reports}, exits or {}, group, stopped=stopped)
    return int(code), result and result.reason, result and result.message


def test_one_process_is_no_group():
    """Nothing is launched for it, unless the launcher is asked for by name."""
    assert group_of(None, {}) is None
    assert group_of(Runner(gpus=4), {}) is None
    assert group_of(Runner(launcher="deepspeed"), {}) == TrainingGroup(1, 1, 0, "127.0.0.1", 0, "deepspeed")


def test_nodes_run_side_by_side_on_one_machine():
    """Without a pod's environment all processes of all nodes are this machine's."""
    found = group_of(Runner(nodes=2, processes_per_node=3), {})
    assert found == TrainingGroup(1, 6, 0, "127.0.0.1", 0, "torchrun")
    assert list(found.ranks) == [0, 1, 2, 3, 4, 5]


def test_a_pod_is_one_node():
    """Its environment says which, and where the ranks meet."""
    found = group_of(Runner(nodes=2, processes_per_node=4), POD)
    assert found == TrainingGroup(2, 4, 1, "a-0.a", 29500, "torchrun")
    assert (found.size, list(found.ranks)) == (8, [4, 5, 6, 7])


def test_deepspeed_is_told_every_node_and_the_devices_of_this_machine(monkeypatch: pytest.MonkeyPatch):
    """Its launcher sets the visible devices itself, so it must get those that this run may use."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3,5")
    arguments = launch._deepspeed(TrainingGroup(2, 2, 1, "a-0.a", 29500, "deepspeed"), 29500)
    world = arguments[0].removeprefix("--world_info=")
    assert json.loads(base64.urlsafe_b64decode(world)) == {"node-0": [2, 3], "node-1": [2, 3]}
    assert {"--node_rank=1", "--master_addr=a-0.a", "--master_port=29500"} < set(arguments)


def test_threads_are_shared_out(monkeypatch: pytest.MonkeyPatch):
    """What a pod or a shell gives the whole run is divided among its processes; torchrun reads no PET_ variable."""
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    monkeypatch.setenv("MKL_NUM_THREADS", "1")
    for name, value in POD.items():
        monkeypatch.setenv(name, value)
    spec = {"model": {"entrypoint": "a:b"}, "stages": [{"finetune": {"epochs": 1}}], "store": {"uri": "memory://"}}
    where = {"namespace": "n", "name": "a", "uid": "u", "root": "r", "prefix": "r", "runUid": "run"}
    request = RunRequest.model_validate({"purpose": "trial", **where, "spec": spec})
    environment = launch._environment(request, TrainingGroup(2, 4, 1, "a-0.a", 29500, "torchrun"))
    assert (environment["OMP_NUM_THREADS"], environment["MKL_NUM_THREADS"]) == ("1", "1")
    assert environment["MODELPRESS_RUN_UID"] == "run"
    assert not [name for name in environment if name.startswith("PET_")]
    assert "GLOO_SOCKET_IFNAME" not in environment
    alone = launch._environment(request, TWO)
    assert (alone["OMP_NUM_THREADS"], alone["GLOO_SOCKET_IFNAME"]) == ("3", "lo")


def test_rank_0_speaks_for_all():
    """It has committed: what became of the others does not matter any more."""
    assert told(report(0, 0, "fine"), report(1, 0)) == (0, "Succeeded", "fine")
    assert told(report(0, 0, "fine"), exits={1: -9}) == (0, "Succeeded", "fine")
    assert told(report(1, 0), group=NODE_1) == (0, None, None)


@pytest.mark.parametrize(
    ("reports", "exits", "stopped", "expected"),
    [
        # Whose error it was, not what the others saw of it; the first of several.
        ([report(0, 143, gone=True), report(1, 1, "no data", at=5)], {}, False, (1, "process 1 of 2", "no data")),
        ([report(0, 1, "late", at=9), report(1, 1, "early", at=5)], {}, False, (1, "process 1 of 2", "early")),
        ([report(0, 1, "same", at=9), report(1, 1, "same", at=5)], {}, False, (1, "same", "same")),
        ([report(0, 1, "x", at=1), report(1, 2, "bad model", at=5)], {}, False, (2, "process 1 of 2", "bad model")),
        ([report(0, 1, "x"), report(1, 143)], {}, True, (1, "x", "x")),
        # Stopped on request.
        ([report(0, 143), report(1, 143)], {}, True, (143, "stopped", "checkpoint")),
        ([report(0, 143)], {1: -9}, True, (143, "stopped", "checkpoint")),
        ([report(0, 143, gone=True), report(1, 143)], {}, False, (143, "stopped", "checkpoint")),
        # Killed, or never heard of.
        (
            [report(0, 143, gone=True)],
            {1: -9},
            False,
            (1, "process 1 of 2", "SIGKILL, which the kernel does"),
        ),
        ([], {0: -11, 1: -15}, False, (1, "process 0 of 2", "SIGSEGV")),
        ([report(0, 143, gone=True)], {1: 7}, False, (1, "process 1 of 2", "exit code 7")),
        ([report(0, 143, gone=True)], {}, False, (1, "process 1 of 2", "without a word")),
        # Each says that the other is gone: the network is at fault, and another attempt counts.
        (
            [report(0, 143, "late", at=9, gone=True), report(1, 143, "reset", at=5, gone=True)],
            {},
            False,
            (1, "reset", "reset"),
        ),
    ],
)
def test_the_error_that_explains_the_others_is_told(reports, exits, stopped, expected):
    """Invalid, then failed, then stopped, then killed, then lost."""
    code, _, message = told(*reports, exits=exits, stopped=stopped)
    assert code == expected[0]
    assert expected[1] in message
    assert expected[2] in message


def test_a_lost_node_is_a_disruption():
    """A node whose peers went away did nothing wrong, nor one that waited for them in vain."""
    assert told(report(1, 143, gone=True), group=NODE_1)[:2] == (143, "RunnerTerminated")
    result, code = judge({}, {}, NODE_1, stopped=False, met=False)
    assert (result.reason, code) == ("RunnerTerminated", 143)
    assert "did not meet" in result.message
    # A launcher that does not come up is nobody's disruption.
    assert told(group=NODE_1)[:2] == (1, "RunnerFailed")


def test_a_launcher_that_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The field's path, and what to install; nothing is started."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    group = TrainingGroup(1, 1, 0, "127.0.0.1", 0, "deepspeed")
    with pytest.raises(InvalidSpecError, match=r"^spec\.runner\.launcher: deepspeed is not installed; add modelpress"):
        launch.run(RunRequest.model_construct(), group, tmp_path, StopFlag(), None)


def test_reports_are_read_as_they_were_written(tmp_path: Path):
    """A whole result, and nothing of a report that is being written."""
    result = RunResult(phase="Failed", reason="RunnerFailed", message="x" * 5000)
    before = time.time()
    launch.write_report(tmp_path, 1, result, 1, gone=False)
    (tmp_path / "rank-0.part").write_text('{"rank": 0')
    found = launch.read_reports(tmp_path)
    assert list(found) == [1]
    assert (found[1].result, found[1].code, found[1].gone) == (result, ExitCode.FAILED, False)
    assert found[1].time >= before
