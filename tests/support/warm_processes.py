"""Runners and operators that begin with everything imported: one process has, and forks for each that is asked for.

What such a process does is what `python -m modelpress_runner.main` or `python -m modelpress_operator` does, under a pid
of its own; only imports are paid once: eight seconds of processor in a run that trains and exports, one in an operator.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

# Modules that are loaded before the first of a kind starts; the last one has its main function.
LOADED = {
    "runner": (
        *("torch._dynamo", "torch._inductor.codecache", "torch.export._trace"),  # with an optimizer, with an export
        *("modelpress_runner.runs.trial", "modelpress_runner.main"),
    ),
    "operator": ("kubernetes.client", "modelpress_operator.render", "modelpress_operator.__main__"),
}


class WarmProcess:
    """One of them, with what tests use of a Popen."""

    def __init__(self, processes: WarmProcesses, pid: int, log: Path) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._processes, self._log = processes, log

    def poll(self) -> int | None:
        """The exit code, if it has ended."""
        self.returncode = self._processes.ended(self.pid, 0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, once it has ended; subprocess.TimeoutExpired if that takes longer than `timeout` seconds."""
        self.returncode = self._processes.ended(self.pid, timeout)
        if self.returncode is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[None, str]:
        """Its log, once it has ended."""
        self.wait(timeout)
        return None, self._log.read_text()

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)


class WarmProcesses:
    """The process that forks, "runner" or "operator", for as long as the context is open.

    It is started when it is first needed. To be used by one thread.
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._process: subprocess.Popen[bytes] | None = None
        self._codes: dict[int, int] = {}  # of those that have ended, by pid
        self._started: list[int] = []  # pids that were told and not yet taken
        self._rest = b""

    def __enter__(self) -> WarmProcesses:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._process is None:
            return
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(timeout=60)

    def start(self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str], log: Path) -> WarmProcess:
        """One with these arguments and nothing but this environment; what it prints is added to the file `log`."""
        if self._process is None:
            command = [sys.executable, __file__, self._kind]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin is not None
        order = {"argv": list(arguments), "cwd": str(folder), "env": dict(environment), "log": str(log)}
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        while not self._started:
            self._read(None)
        pid = self._started.pop()
        self._codes.pop(pid, None)  # of an earlier process with this pid
        return WarmProcess(self, pid, log)

    def run(self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str]) -> tuple[int, str]:
        """Exit code and log of one with these arguments and nothing but this environment, once it has ended."""
        log_file = folder / f"{self._kind}.log"
        log_file.unlink(missing_ok=True)
        process = self.start(arguments, folder, environment, log_file)
        _, log = process.communicate()
        assert process.returncode is not None
        return process.returncode, log

    def ended(self, pid: int, timeout: float | None) -> int | None:
        """The exit code of one of them, as Popen has it; None if it still runs after `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while pid not in self._codes:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not self._read(left):
                return None
        return self._codes[pid]

    def _read(self, timeout: float | None) -> bool:
        """Take in what the process says; whether it said anything within `timeout` seconds."""
        assert self._process is not None
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], timeout)[0]:
            return False
        data = os.read(self._process.stdout.fileno(), 65536)
        if not data:
            raise RuntimeError(f"the process that forks has ended with {self._process.wait()}")
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            word, *numbers = line.split()
            if word == b"started":
                self._started.append(int(numbers[0]))
            else:
                self._codes[int(numbers[0])] = int(numbers[1])
        return True


def _serve(kind: str) -> None:
    *_, module = (importlib.import_module(name) for name in LOADED[kind])
    gc.freeze()
    running: dict[int, int] = {}  # pid by pidfd
    rest = b""
    while True:
        for ready in select.select([0, *running], [], [])[0]:
            if ready != 0:
                pid = running.pop(ready)
                os.close(ready)
                print("ended", pid, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
                continue
            data = os.read(0, 65536)
            if not data:
                return
            *orders, rest = (rest + data).split(b"\n")
            for order in orders:
                child = os.fork()
                if child == 0:
                    os._exit(_run(module.main, json.loads(order)))
                running[os.pidfd_open(child)] = child
                print("started", child, flush=True)


def _run(main: Callable[[Sequence[str]], int], order: dict[str, Any]) -> int:
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        code = int(main(order["argv"]))
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    _serve(sys.argv[1])
