"""The dependency analysis in a forked child: same answer, same limits, nothing left behind."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from pathlib import Path

import prune_zoo
import pytest
import torch
from torch import nn

from modelpress_runner.dependency import fork as forked
from modelpress_runner.dependency.analyse import find_coupling
from modelpress_runner.dependency.trace_graph import find_dependencies
from modelpress_runner.errors import CompressionError

pytestmark = pytest.mark.skipif(not forked.possible(), reason="needs Linux, before CUDA is used")


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Process ids of all forks."""
    pids: list[int] = []
    fork = os.fork

    def recorded() -> int:
        pid = fork()
        if pid:
            pids.append(pid)
        return pid

    monkeypatch.setattr(os, "fork", recorded)
    return pids


def gone(pid: int) -> bool:
    """Whether the process and its group are no more."""
    for probe in (os.kill, os.killpg):
        try:
            probe(pid, 0)
        except ProcessLookupError:
            continue
        return False
    return True


def test_a_fork_gives_what_this_process_would(children: list[int]) -> None:
    """Same coupling from a child; the model stays as it is, no note, no process left."""
    model = prune_zoo.trained_like(prune_zoo.Residual(8)).train()
    model.stem.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    dummy = torch.ones(2, 1, 8, 8)
    notes: list[str] = []
    found = find_coupling(model, dummy, 120, notes.append)
    assert model.training
    assert not model.stem.weight.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert notes == []
    assert [gone(pid) for pid in children] == [True]
    assert found == find_dependencies(model, dummy)


def test_a_class_that_only_this_process_has_needs_no_fallback(children: list[int]) -> None:
    """A class of a function or a notebook is analysed in the child like any other."""

    class Local(nn.Sequential):
        pass

    Local.__module__, Local.__qualname__ = "__main__", "Net"
    notes: list[str] = []
    dependencies = find_coupling(Local(nn.Linear(2, 4), nn.Linear(4, 3)), torch.ones(2, 2), 120, notes.append)
    assert [group.producers for group in dependencies.groups] == [("0",)]
    assert notes == []
    assert len(children) == 1


def test_a_model_that_hangs_runs_into_the_limit(children: list[int]) -> None:
    """A forward pass that never ends is stopped, named, and leaves no process."""
    with pytest.raises(CompressionError, match=r"took longer than shrinkTimeoutSeconds \(1\); exclude the layers"):
        find_coupling(prune_zoo.Hanging(), torch.ones(prune_zoo.IMAGE), 1)
    assert [gone(pid) for pid in children] == [True]


def test_a_child_that_dies_is_named_with_its_last_words(children: list[int]) -> None:
    """A model that ends the process takes the child with it, not the runner."""
    with pytest.raises(CompressionError, match="died with exit code 1: no licence for this model"):
        find_coupling(prune_zoo.Crashing(), torch.ones(prune_zoo.IMAGE), 120)
    assert [gone(pid) for pid in children] == [True]


def test_a_failing_forward_is_told_in_one_sentence() -> None:
    """What the child found wrong is raised here."""
    with pytest.raises(CompressionError, match="torch-pruning cannot follow this model"):
        find_coupling(nn.Linear(3, 2), torch.ones(2, 7), 120)


def test_a_parent_that_has_computed_on_many_threads_can_fork() -> None:
    """The parent's thread pool does not stop the child."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        model = prune_zoo.Residual(8)
        model(torch.ones(64, 1, 8, 8)).sum().backward()
        assert find_coupling(model, torch.ones(2, 1, 8, 8), 120).groups
    finally:
        torch.set_num_threads(before)


def test_a_killed_parent_takes_its_child_along() -> None:
    """SIGKILL to the parent ends the child too: the pipe that both hold is closed."""
    code = (
        "import sys, torch; sys.path.insert(0, sys.argv[1]); import prune_zoo\n"
        "from modelpress_runner.dependency.analyse import find_coupling\n"
        "print('ready', flush=True)\n"
        "find_coupling(prune_zoo.Hanging(), torch.ones(prune_zoo.IMAGE), 600)\n"
    )
    reading, writing = os.pipe()
    folder = os.path.dirname(prune_zoo.__file__)
    parent = subprocess.Popen(
        [sys.executable, "-c", code, folder], stdout=subprocess.PIPE, pass_fds=(writing,), start_new_session=True
    )
    os.close(writing)
    assert parent.stdout is not None
    with parent.stdout, os.fdopen(reading, "rb") as pipe:
        assert parent.stdout.readline() == b"ready\n"
        _wait_for_a_child(parent.pid)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        assert pipe.read() == b""  # returns only when every holder is gone


def _wait_for_a_child(pid: int) -> None:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    while not children.read_text().split():
        os.sched_yield()


class Collecting(nn.Linear):
    """Has Python look for garbage when it is called."""

    def forward(self, x):
        gc.collect()
        return super().forward(x)


def test_garbage_of_the_parent_is_not_the_childs(tmp_path):
    """What the parent has not thrown away yet (a process group with its threads) is not taken apart in the child."""
    parent, marker = os.getpid(), tmp_path / "taken apart in the child"

    class Group:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            if os.getpid() != parent:
                marker.touch()

    model = nn.Sequential(Collecting(4, 6), nn.ReLU(), nn.Linear(6, 2))
    gc.collect()
    gc.disable()
    try:
        Group()
        answer = forked.ask(model, torch.zeros(2, 4), 60)
    finally:
        gc.enable()
    assert answer["coupling"]
    assert not marker.exists()
