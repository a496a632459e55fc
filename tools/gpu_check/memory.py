"""Peak memory by phase: of the GPU where that is the device, else of this process and its children."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

SAMPLE_SECONDS = 0.1  # between two looks at child processes


class Peaks:
    """Peak bytes and seconds of named phases, while the context is open; a phase within another counts for itself.

    On "cuda" the bytes are those that torch has allocated there. On "cpu" they are resident bytes of this process above
    what it had when the context was opened (the interpreter, torch and what else is imported), and the private bytes
    of its children.

    Args:
        device: "cpu" (Linux) or "cuda".

    Attributes:
        peaks: bytes by phase, in the order in which phases were first entered.
        seconds: of each phase, without those within it.
        base: resident bytes of the process when the context was opened; 0 on "cuda".
    """

    def __init__(self, device: str) -> None:
        self._cuda = device == "cuda"
        self.peaks: dict[str, int] = {}
        self.seconds: dict[str, float] = {}
        self.base = 0
        self._open: list[str] = []
        self._since = 0.0
        self._children = 0  # the most private bytes of children since the last boundary
        self._over = threading.Event()
        self._sampler: threading.Thread | None = None

    def __enter__(self) -> Peaks:
        if self._cuda:
            torch.cuda.synchronize()
            self.base = 0
        else:
            self.base = _resident()
            self._sampler = threading.Thread(target=self._sample, daemon=True)
            self._sampler.start()
        self._reset()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._over.set()
        if self._sampler is not None:
            self._sampler.join()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """The block is a phase of this name."""
        self._boundary()
        self._open.append(name)
        self.peaks.setdefault(name, 0)
        self.seconds.setdefault(name, 0.0)
        try:
            yield
        finally:
            self._boundary()
            self._open.pop()

    def _boundary(self) -> None:
        if self._open:
            name = self._open[-1]
            self.peaks[name] = max(self.peaks[name], self._peak())
            self.seconds[name] += time.perf_counter() - self._since
        self._reset()

    def _peak(self) -> int:
        if self._cuda:
            torch.cuda.synchronize()
            return int(torch.cuda.max_memory_allocated())
        return _status("VmHWM") - self.base + self._children

    def _reset(self) -> None:
        self._since = time.perf_counter()
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
            return
        self._children = 0
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew

    def _sample(self) -> None:
        own = os.getpid()
        while not self._over.wait(SAMPLE_SECONDS):
            self._children = max(self._children, sum(_private(pid) for pid in _children(own)))


@contextlib.contextmanager
def watching(places: dict[str, str], phase: Callable[[str], AbstractContextManager[None]]) -> Iterator[None]:
    """Inside, every call of a function runs in a phase: `places` has its name by "module:attribute.path"."""
    with contextlib.ExitStack() as undone:
        for place, name in places.items():
            module, _, path = place.partition(":")
            owner: Any = importlib.import_module(module)
            *outer, attribute = path.split(".")
            for each in outer:
                owner = getattr(owner, each)
            original = owner.__dict__[attribute]
            undone.callback(setattr, owner, attribute, original)
            setattr(owner, attribute, _watched(original, name, phase))
        yield


def _watched(function: Any, name: str, phase: Callable[[str], AbstractContextManager[None]]) -> Any:
    @functools.wraps(function)
    def watched(*args: Any, **kwargs: Any) -> Any:
        with phase(name):
            return function(*args, **kwargs)

    return watched


def _resident() -> int:
    return _status("VmRSS")


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def _children(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                after = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(after[1]) == parent:
                    found.append(int(entry.name))
    return found


def _private(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:  # it has ended meanwhile
        return 0
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))
