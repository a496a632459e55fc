"""Asks a forked child which channels depend on each other: the model is there already, and torch too.

A fresh process takes seconds to import torch; a fork takes milliseconds and needs no pickling, so that models of
notebooks work as well. A forked child may not use CUDA that its parent has begun to use, nor rely on the parent's
threads: it computes on one thread, as the workers of torch's DataLoader do.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import select
import signal
import sys
import tempfile
import time
import warnings
from typing import Any, NoReturn

import torch
from torch import nn

from modelpress_runner.dependency.trace_graph import find_dependencies
from modelpress_runner.errors import CompressionError

_PR_SET_PDEATHSIG = 1


def possible() -> bool:
    """Whether a forked child can do the analysis: on Linux, before CUDA is used."""
    return sys.platform == "linux" and not torch.cuda.is_initialized()


def ask(model: nn.Module, dummy_input: Any, seconds: int) -> dict[str, Any]:
    """The child's answer: {"coupling": ...} or {"error": reason}. The model in this process stays untouched.

    Raises:
        TimeoutError: it took longer than `seconds`.
        CompressionError: the child died.
    """
    parent = os.getpid()
    reading, writing = os.pipe()
    with tempfile.TemporaryFile() as log, os.fdopen(reading, "rb", buffering=0) as answers:
        sys.stdout.flush()
        sys.stderr.flush()
        with warnings.catch_warnings():
            # Python 3.12 warns of every fork beside threads; the module's text says why this one is sound.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            # Garbage of the parent's stays garbage: what ends with a thread (a process group) would wait for one here.
            gc.freeze()
            _answer(model, dummy_input, parent, writing, log.fileno())
        os.close(writing)
        try:
            text = _read(answers, time.monotonic() + seconds)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)  # it may not lead its own group yet
            status = os.waitpid(child, 0)[1]
        if text:
            answer: dict[str, Any] = json.loads(text)
            return answer
        log.seek(0)
        lines = log.read().decode(errors="replace").strip().splitlines()
        raise CompressionError(
            f"the dependency analysis died with exit code {os.waitstatus_to_exitcode(status)}: "
            f"{lines[-1] if lines else 'no message'}"
        )


def _read(answers: Any, deadline: float) -> bytes:
    """All that the child writes until it closes the pipe; its last byte is a newline, else it died in between."""
    parts: list[bytes] = []
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([answers], [], [], left)[0]:
            raise TimeoutError
        part = os.read(answers.fileno(), 1 << 16)
        if not part:
            text = b"".join(parts)
            return text if text.endswith(b"\n") else b""
        parts.append(part)


def _answer(model: nn.Module, dummy_input: Any, parent: int, writing: int, log: int) -> NoReturn:
    code = 1
    try:
        os.setsid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it was killed before it could be watched
            os._exit(1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(log, 1)
        os.dup2(log, 2)
        torch.set_num_threads(1)
        torch.manual_seed(0)
        try:
            answer: dict[str, Any] = {"coupling": find_dependencies(model, dummy_input).to_dict()}
        except CompressionError as error:
            answer = {"error": str(error)}
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(json.dumps(answer).encode() + b"\n")
        code = 0
    except SystemExit as error:
        os.write(2, f"{error}\n".encode())
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    os._exit(code)
