"""Asks a child process which channels depend on each other, with a time limit."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modelpress_runner.dependency import fork as forked
from modelpress_runner.dependency.groups import ChannelDependencies
from modelpress_runner.dependency.trace_graph import find_dependencies
from modelpress_runner.errors import CompressionError

START_SECONDS = 300  # for a child to import torch and the user's code, and to read the model
IN_PROCESS = "The dependency analysis ran inside the runner's process, as no other one can rebuild the model: {reason}"


def find_coupling(
    model: nn.Module, dummy_input: Any, seconds: int, note: Callable[[str], None] = lambda text: None
) -> ChannelDependencies:
    """The coupling of `model`, which stays untouched, found on the CPU by a child process.

    The child is forked where that is sound (see forked.py), else a fresh process that gets the model pickled. A model
    that a fresh one cannot unpickle (a class of a notebook or of a function, a lambda) is done in this process, under a
    watchdog that interrupts Python code only; `note` is told.

    Raises:
        CompressionError: it took longer than `seconds`, or the analysis failed.
    """
    answer = _ask_forked(model, dummy_input, seconds) if forked.possible() else _ask_fresh(model, dummy_input, seconds)
    if "unreadable" in answer:
        note(IN_PROCESS.format(reason=answer["unreadable"]))
        return _in_process(model, dummy_input, seconds)
    if "error" in answer:
        raise CompressionError(answer["error"])
    return ChannelDependencies.from_dict(answer["coupling"])


def _ask_forked(model: nn.Module, dummy_input: Any, seconds: int) -> dict[str, Any]:
    try:
        return forked.ask(model, dummy_input, seconds)
    except TimeoutError:
        raise _too_slow(seconds) from None


def _ask_fresh(model: nn.Module, dummy_input: Any, seconds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="modelpress-") as name:
        folder = Path(name)
        reason = _main_classes(model) or _pack(model, dummy_input, folder)
        return {"unreadable": reason} if reason else _ask(folder, seconds)


def _main_classes(model: nn.Module) -> str | None:
    names = sorted({type(m).__qualname__ for m in model.modules() if type(m).__module__ == "__main__"})
    return f"{', '.join(names)} defined in __main__" if names else None


def _pack(model: nn.Module, dummy_input: Any, folder: Path) -> str | None:
    try:
        torch.save((model, dummy_input), folder / "model.pt")
    except Exception as error:  # whatever a class's own __reduce__ may raise
        return f"{type(error).__name__}: {error}"
    return None


def _ask(folder: Path, seconds: int) -> dict[str, Any]:
    question = {"sys.path": sys.path, "seconds": seconds, "startSeconds": START_SECONDS}
    (folder / "question.json").write_text(json.dumps(question))
    # The package itself must be importable before the child can read sys.path out of the question.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    ready, started = os.pipe()
    with (folder / "log").open("wb") as log, os.fdopen(ready, "rb", buffering=0) as signal_of_life:
        try:
            child = subprocess.Popen(
                [sys.executable, "-P", "-m", "modelpress_runner.dependency.trace_graph", str(folder), str(started)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                pass_fds=(started,),
                start_new_session=True,
            )
        finally:
            os.close(started)
        try:
            # Its time counts from when it has read the model: importing torch may take longer than a small limit.
            if not select.select([signal_of_life], [], [], START_SECONDS)[0]:
                raise CompressionError(f"the dependency analysis did not start within {START_SECONDS} s")
            code = child.wait(seconds)
        except subprocess.TimeoutExpired:
            raise _too_slow(seconds) from None
        finally:
            _end(child)
    try:
        answer: dict[str, Any] = json.loads((folder / "answer.json").read_text())
    except FileNotFoundError:
        lines = (folder / "log").read_text(errors="replace").strip().splitlines()
        raise CompressionError(
            f"the dependency analysis died with exit code {code}: {lines[-1] if lines else 'no message'}"
        ) from None
    return answer


def _end(child: subprocess.Popen[bytes]) -> None:
    # The session is the child's own, so its helpers (data loaders, compilers) go with it.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _too_slow(seconds: int) -> CompressionError:
    return CompressionError(
        f"finding out which channels depend on each other took longer than shrinkTimeoutSeconds ({seconds}); "
        "exclude the layers that make it hard (attention, recurrent layers), or set shrink: false"
    )


class _TimeUpError(BaseException):
    """Not an Exception, so that no handler in a model's code swallows it."""


def _in_process(model: nn.Module, dummy_input: Any, seconds: int) -> ChannelDependencies:
    try:
        twin = copy.deepcopy(model)
    except Exception as error:
        raise CompressionError(
            f"the model can be neither pickled nor copied ({type(error).__name__}: {error}), so it cannot be shrunk; "
            "set shrink: false"
        ) from error
    try:
        with watchdog(seconds):
            return find_dependencies(twin, dummy_input)
    except _TimeUpError:
        raise _too_slow(seconds) from None


@contextlib.contextmanager
def watchdog(seconds: float) -> Iterator[None]:
    """Raises inside the block when it takes longer than `seconds`: SIGALRM in the main thread, else an asynchronous
    exception. Both interrupt Python code only."""
    in_main = threading.current_thread() is threading.main_thread()
    with _alarm(seconds) if in_main else _async_exception(seconds):
        yield


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    def ring(number: int, frame: Any) -> None:
        raise _TimeUpError

    before = signal.signal(signal.SIGALRM, ring)
    start = time.monotonic()
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if left:  # somebody else's alarm goes on
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - start), 1e-3), interval)


@contextlib.contextmanager
def _async_exception(seconds: float) -> Iterator[None]:
    thread = ctypes.c_ulong(threading.get_ident())
    lock = threading.Lock()
    over = False

    def ring() -> None:
        with lock:
            if not over:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(_TimeUpError))

    timer = threading.Timer(seconds, ring)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with lock:
            over = True
            ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, None)
        timer.cancel()
        timer.join()
