"""The dependency analysis in a fresh process, its time limit, and the fallback inside this process."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import prune_zoo
import pytest
import torch
from torch import nn

from modelpress_runner.dependency import analyse as plan
from modelpress_runner.dependency.analyse import find_coupling
from modelpress_runner.dependency.trace_graph import find_dependencies
from modelpress_runner.errors import CompressionError


@pytest.fixture(autouse=True)
def no_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a system where forking is not sound."""
    monkeypatch.setattr(plan.forked, "possible", lambda: False)


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """Every process that the plan starts."""
    started: list[subprocess.Popen[bytes]] = []

    class Recorded(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)  # type: ignore[call-overload]
            started.append(self)

    monkeypatch.setattr(plan.subprocess, "Popen", Recorded)
    return started


def gone(child: subprocess.Popen[bytes]) -> bool:
    """Whether nothing of the child's process group is left."""
    try:
        os.killpg(child.pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_child_gives_what_this_process_would(children: list[subprocess.Popen[bytes]]) -> None:
    """Same coupling from a process of its own; the model stays as it is, and no process is left."""
    model = prune_zoo.trained_like(prune_zoo.Residual(8)).train()
    model.stem.weight.requires_grad_(False)
    dummy = torch.ones(2, 1, 8, 8)
    notes: list[str] = []
    found = find_coupling(model, dummy, 120, notes.append)
    assert model.training
    assert not model.stem.weight.requires_grad
    assert notes == []
    assert len(children) == 1
    assert gone(children[0])
    assert found == find_dependencies(model, dummy)


def test_a_model_that_hangs_runs_into_the_limit(children: list[subprocess.Popen[bytes]]) -> None:
    """A forward pass that never ends is stopped, named, and leaves no process."""
    with pytest.raises(CompressionError, match=r"took longer than shrinkTimeoutSeconds \(1\); exclude the layers"):
        find_coupling(prune_zoo.Hanging(), torch.ones(prune_zoo.IMAGE), 1)
    assert len(children) == 1
    assert gone(children[0])


def test_a_child_that_dies_is_named_with_its_last_words(children: list[subprocess.Popen[bytes]]) -> None:
    """A model that ends the process takes the child with it, not the runner."""
    with pytest.raises(CompressionError, match="died with exit code 1: no licence for this model"):
        find_coupling(prune_zoo.Crashing(), torch.ones(prune_zoo.IMAGE), 120)
    assert gone(children[0])


def test_code_that_only_the_parent_can_import_is_found_by_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, children: list[subprocess.Popen[bytes]]
) -> None:
    """The child has the parent's sys.path, so a model of the user's own file is rebuilt there."""
    (tmp_path / "users_own_net.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self):\n"
        "        super().__init__(nn.Linear(2, 4), nn.Linear(4, 3))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    net = importlib.import_module("users_own_net").Net()
    notes: list[str] = []
    dependencies = find_coupling(net, torch.ones(2, 2), 120, notes.append)
    assert [(group.producers, len(group.units)) for group in dependencies.groups] == [(("0",), 4)]
    assert notes == []
    assert len(children) == 1


def test_a_class_the_child_does_not_know_is_done_here_and_said(
    monkeypatch: pytest.MonkeyPatch, children: list[subprocess.Popen[bytes]]
) -> None:
    """A class of __main__ or of a function is analysed in this process, with a note that names the reason."""

    class Local(nn.Sequential):
        pass

    notes: list[str] = []
    dependencies = find_coupling(Local(nn.Linear(2, 4), nn.Linear(4, 3)), torch.ones(2, 2), 120, notes.append)
    assert [group.producers for group in dependencies.groups] == [("0",)]
    assert len(notes) == 1
    assert "ran inside the runner's process" in notes[0]

    Local.__module__, Local.__qualname__ = "__main__", "Net"
    find_coupling(Local(nn.Linear(2, 4), nn.Linear(4, 3)), torch.ones(2, 2), 120, notes.append)
    assert notes[1].endswith("Net defined in __main__")
    assert children == []


def test_a_class_that_vanished_for_the_child_is_done_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, children: list[subprocess.Popen[bytes]]
) -> None:
    """If the child cannot unpickle the model, its message ends up in the note."""
    (tmp_path / "short_lived.py").write_text("from torch import nn\nclass Net(nn.Sequential): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    net = importlib.import_module("short_lived").Net(nn.Linear(2, 4), nn.Linear(4, 3))
    (tmp_path / "short_lived.py").unlink()
    notes: list[str] = []
    assert find_coupling(net, torch.ones(2, 2), 120, notes.append).groups
    assert "ModuleNotFoundError: No module named 'short_lived'" in notes[0]
    assert len(children) == 1


class Endless(nn.Module):
    """Python code without end. Its lambda keeps it in this process."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Linear(2, 2)
        self.act = lambda x: x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Runs until something interrupts it."""
        while True:
            try:
                x = self.act(x)
            except Exception:  # must not swallow the watchdog
                return x


def test_the_watchdog_interrupts_the_main_thread() -> None:
    """In this process an endless model is interrupted, and alarms are as before."""
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(CompressionError, match=r"shrinkTimeoutSeconds \(1\)"):
        find_coupling(Endless(), torch.ones(2, 2), 1)
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_the_watchdog_interrupts_any_other_thread() -> None:
    """The same where no signal can be had."""
    raised: list[BaseException] = []

    def work() -> None:
        try:
            find_coupling(Endless(), torch.ones(2, 2), 1)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    assert [type(error) for error in raised] == [CompressionError]
    assert "shrinkTimeoutSeconds (1)" in str(raised[0])


def test_the_watchdog_keeps_somebody_elses_alarm() -> None:
    """A timer that was set before goes on with the time it had left."""
    before = signal.setitimer(signal.ITIMER_REAL, 1000)
    try:
        with plan.watchdog(60):
            pass
        left, _ = signal.getitimer(signal.ITIMER_REAL)
        assert 900 < left <= 1000
    finally:
        signal.setitimer(signal.ITIMER_REAL, *before)


def test_a_model_that_cannot_be_copied_is_refused() -> None:
    """Neither pickled nor copied: the reason, and what to do."""
    model = nn.Sequential(nn.Linear(2, 2))
    model.lock = threading.Lock()
    with pytest.raises(CompressionError, match=r"neither pickled nor copied .*set shrink: false"):
        find_coupling(model, torch.ones(2, 2), 60)


def test_a_forward_that_fails_is_told_in_one_sentence() -> None:
    """A dummy input that does not fit names torch's complaint; one without gradients says so."""
    with pytest.raises(CompressionError, match="cannot follow this model: RuntimeError: mat1 and mat2 shapes"):
        find_dependencies(nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 3)), torch.ones(2, 7))

    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x).detach()

    with pytest.raises(CompressionError, match="no output of the model depends on its parameters"):
        find_dependencies(Detached(), torch.ones(2, 2))


def test_a_killed_parent_leaves_no_child(tmp_path: Path) -> None:
    """The child has an alarm of its own, a little behind the parent's limit."""
    folder = tmp_path / "question"
    folder.mkdir()
    torch.save((prune_zoo.Hanging(), torch.ones(prune_zoo.IMAGE)), folder / "model.pt")
    question = {"sys.path": sys.path, "seconds": -4, "startSeconds": 300}
    (folder / "question.json").write_text(json.dumps(question))
    ready, started = os.pipe()
    child = subprocess.Popen(
        [sys.executable, "-m", "modelpress_runner.dependency.trace_graph", str(folder), str(started)],
        pass_fds=(started,),
    )
    os.close(started)
    with os.fdopen(ready, "rb") as pipe:
        assert pipe.read() == b""
    assert child.wait(60) == -14  # SIGALRM
