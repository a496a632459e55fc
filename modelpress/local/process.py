"""What the kernel says about processes: which one a pid is now, whether it lives, whether memory ran out."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from modelpress.control_characters import escape_control_characters

from .regular import open_regular

_ESCAPE = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|[@-Z\\-_])")  # ECMA-48: colours and cursor moves
# What Python prints between the tracebacks of one exception and its cause.
_BETWEEN = ("During handling of the above exception", "The above exception was the direct cause")


def start_mark(pid: int) -> str | None:
    """Text that tells this process from a later one with the same pid; None if there is no such process.

    On Linux the boot id and the start time in clock ticks since boot (proc(5), field 22 of /proc/PID/stat); elsewhere
    what ps prints as start time, to the second. A zombie counts as gone.
    """
    if Path("/proc/self/stat").exists():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except (OSError, UnicodeDecodeError):
            return None
        return None if fields[0] in "ZX" else f"{boot}:{fields[19]}"
    done = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def is_alive(pid: int, mark: str | None) -> bool:
    """Whether the process that `mark` was taken from still runs."""
    return mark is not None and start_mark(pid) == mark


def was_given(pid: int, argument: str) -> bool:
    """Whether this very text is among the arguments that a process was started with."""
    try:
        return os.fsencode(argument) in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except FileNotFoundError:
        if Path("/proc/self/cmdline").exists():
            return False
    except OSError:
        return False
    done = subprocess.run(["ps", "-ww", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return argument in done.stdout


async def wait_gone(pid: int, mark: str | None, seconds: float) -> bool:
    """Wait until a process that may be nobody's child of ours is gone; False after `seconds`."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    gone = asyncio.Event()
    descriptor: int | None = None
    with contextlib.suppress(OSError, AttributeError):  # no such process, or no pidfd on this system
        descriptor = os.pidfd_open(pid)
        loop.add_reader(descriptor, gone.set)
    try:
        while is_alive(pid, mark):
            left = deadline - loop.time()
            if left <= 0:
                return False
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(gone.wait(), left if descriptor is not None else min(left, 0.05))
            gone.clear()
            if descriptor is not None and is_alive(pid, mark):
                await asyncio.sleep(0.01)  # readable, but not yet out of the table
        return True
    finally:
        if descriptor is not None:
            loop.remove_reader(descriptor)
            os.close(descriptor)


def signal_group(pid: int, number: signal.Signals) -> None:
    """Send a signal to the process group that `pid` leads; harmless if it is gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def oom_kills() -> int | None:
    """How many processes the kernel killed for memory since boot, all cgroups together; None if it does not say."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


def cores() -> int:
    """Cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS
        return os.cpu_count() or 1


def last_lines(path: Path, count: int = 20, limit: int = 16_384) -> list[str]:
    """The last non-blank lines of a log, read from its end; lines that a progress bar rewrote count once."""
    try:
        with os.fdopen(open_regular(path, os.O_RDONLY), "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - limit))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    lines = (line.rstrip().rpartition("\r")[2].rstrip() for line in text.split("\n"))
    plain = (escape_control_characters(_ESCAPE.sub("", line)) for line in lines)
    return [line for line in plain if line][-count:]


def without_tracebacks(lines: Sequence[str]) -> list[str]:
    """The lines of a log without its tracebacks; each leaves the line that names its exception.

    The first lines may be the rest of a traceback whose beginning is not among them.
    """
    out: list[str] = []
    inside = bool(lines) and lines[0].startswith(" ")
    for line in lines:
        if line.lstrip(" |+-").startswith("Traceback (most recent call last)"):
            inside = True
            # Whoever logs an exception announces it in a line of its own.
            if out and out[-1].rstrip().endswith("traceback:"):
                out.pop()
        elif line.startswith(_BETWEEN):
            inside = False
        elif inside and line.startswith(" "):
            continue
        else:
            inside = False
            out.append(line)
    return out
