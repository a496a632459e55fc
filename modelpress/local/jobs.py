"""Runs child Jobs as processes: what kubelet and Job controller are to the operator.

    python -m modelpress_runner.main --request FILE --result FILE --progress FILE --parent-pid PID

Each process leads its own process group and writes to one log file. It is held at a gate until its pid is journaled, so
there is never a running process that a restarted controller does not know of.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelpress.api.v1alpha1 import reasons
from modelpress.plainjson import json_of
from modelpress.reconcile.model import Cause
from modelpress.result import ExitCode, RunResult

from .cluster import Change, JobRecord, LocalCluster
from .errors import StateError
from .process import is_alive, last_lines, oom_kills, signal_group, start_mark, wait_gone, was_given
from .progress import ProgressReader, RunnerProgress
from .regular import open_regular, read_regular

RUNNER = (sys.executable, "-m", "modelpress_runner.main")
GRACE_SECONDS = 30.0  # between SIGTERM and SIGKILL, as in a pod
MAX_DETAIL = 1000
MAX_RESULT = 64 * 1024  # bytes of result.json; a result has at most one KiB
# Reads one line, then becomes the runner, with the same pid. At end of file (the controller died) it runs nothing.
GATE = ("/bin/sh", "-c", 'read -r go && [ "$go" = go ] && exec "$@" </dev/null; exit 143', "modelpress-gate")


@dataclass
class JobProcesses:
    """Starts pending Jobs, watches them end, ends those being deleted."""

    cluster: LocalCluster
    command: Sequence[str] = RUNNER
    environment: Mapping[str, str] = field(default_factory=dict)  # on top of this process's own
    grace: float = GRACE_SECONDS
    slots: Sequence[Mapping[str, str]] = ()  # more environment, another one for each process that runs beside others

    def __post_init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[None]] = {}  # by Job uid, until the process is gone
        self._pids: dict[str, int] = {}
        self._slots: dict[str, int] = {}
        self._readers: dict[str, ProgressReader] = {}
        self._killers: dict[str, asyncio.TimerHandle] = {}
        self.changed = asyncio.Event()  # a process has ended, or could not be watched any more
        self.failure: BaseException | None = None
        self._abandoned = False
        self.cluster.watch(self._on_change)

    @property
    def live(self) -> int:
        """How many processes are running or on their way out."""
        return len(self._tasks)

    def start_all(self) -> None:
        """Take up what the journal holds: start what never started, judge what died with an earlier controller."""
        for record in list(self.cluster.jobs):
            self._adopt(record)

    def folder(self, record: JobRecord) -> Path:
        """Where the process's files are."""
        return self.cluster.journal.run_folder(record.name, record.uid)

    def log_path(self, record: JobRecord) -> Path:
        """What the process printed."""
        return self.folder(record) / "runner.log"

    def progress(self, record: JobRecord) -> RunnerProgress | None:
        """The newest progress that the runner wrote; None while there is none."""
        for line in reversed(last_lines(self.folder(record) / "progress.jsonl", count=2, limit=4096)):
            with contextlib.suppress(ValueError, TypeError, AttributeError):
                return RunnerProgress.of(json_of(line))
        return None

    def reader(self, record: JobRecord) -> ProgressReader:
        """What follows the process's progress, always the same one as long as it runs."""
        if record.uid not in self._readers:
            self._readers[record.uid] = ProgressReader(self.folder(record) / "progress.jsonl")
        return self._readers[record.uid]

    def kill_all(self) -> None:
        """SIGKILL every process now. Its Job stays recorded as running, so the next controller calls it disrupted."""
        self._abandoned = True
        for pid in self._pids.values():
            signal_group(pid, signal.SIGKILL)

    async def close(self) -> None:
        """SIGKILL what is left and wait until it is gone."""
        self.kill_all()
        for handle in self._killers.values():
            handle.cancel()
        if self._tasks:
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def terminate(self, uid: str) -> None:
        """SIGTERM to a process, SIGKILL after the grace period."""
        pid = self._pids.get(uid)
        if pid is None or uid in self._killers:
            return
        signal_group(pid, signal.SIGTERM)
        loop = asyncio.get_running_loop()
        self._killers[uid] = loop.call_later(self.grace, signal_group, pid, signal.SIGKILL)

    def terminate_all(self) -> None:
        """SIGTERM to every process."""
        for uid in list(self._pids):
            self.terminate(uid)

    # Reacting --------------------------------------------------------------------------------------------------------

    def _on_change(self, change: Change) -> None:
        if isinstance(change.after, JobRecord):
            record = change.after
            if record.deleting and not (isinstance(change.before, JobRecord) and change.before.deleting):
                self._delete(record)
            elif change.before is None:
                self._adopt(record)

    def _adopt(self, record: JobRecord) -> None:
        if record.uid in self._tasks:
            return
        if record.pid is not None and not record.terminal:
            self._spawn(record.uid, self._reap(record))
        elif record.deleting:
            self._spawn(record.uid, self._forget(record))
        elif record.state == "pending":
            self._spawn(record.uid, self._run(record))

    def _delete(self, record: JobRecord) -> None:
        if record.uid in self._pids:
            self.terminate(record.uid)  # _run forgets it once it is gone
        elif record.uid not in self._tasks:
            self._spawn(record.uid, self._forget(record))

    def _spawn(self, uid: str, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks[uid] = task
        task.add_done_callback(lambda done: self._done(uid, done))

    def _done(self, uid: str, task: asyncio.Task[None]) -> None:
        self._tasks.pop(uid, None)
        self._pids.pop(uid, None)
        self._slots.pop(uid, None)
        killer = self._killers.pop(uid, None)
        if killer is not None:
            killer.cancel()
        if not task.cancelled() and task.exception() is not None:
            self.failure = task.exception()
        self.changed.set()

    async def _forget(self, record: JobRecord) -> None:
        self.cluster.remove_job(record.name, record.uid)

    async def _reap(self, record: JobRecord) -> None:
        """End a process that outlived its controller, then judge it by the result it left."""
        assert record.pid is not None
        # A folder that came from elsewhere may name any process; ours was started with a file of this folder.
        ours = was_given(record.pid, str(self.folder(record) / "request.json"))
        if ours and is_alive(record.pid, record.mark):
            signal_group(record.pid, signal.SIGTERM)
            if not await wait_gone(record.pid, record.mark, self.grace):
                signal_group(record.pid, signal.SIGKILL)
                await wait_gone(record.pid, record.mark, self.grace)
        if record.deleting:
            await self._forget(record)
            return
        result = RunResult.from_message(self._message(record))
        if result is None:
            cause: Cause | None = "disrupted"
            reason = "ShellGone"
            detail: str | None = "modelpress run ended before this process did"
        else:
            cause = None if result.phase == "Succeeded" else _cause_of(result)
            reason, detail = result.reason, result.message or None
        self.cluster.update_job(
            record.name,
            record.uid,
            state="failed" if cause else "succeeded",
            cause=cause,
            reason=reason if cause else None,
            detail=detail if cause else None,
            message=self._message(record),
            finished_at=self._last_sign(record),
        )

    def _last_sign(self, record: JobRecord) -> dt.datetime:
        """When the process was last seen to write: nobody saw it end, and the time since does not count as running."""
        times = [record.started_at] if record.started_at else []
        for path in self.folder(record).glob("*"):
            with contextlib.suppress(OSError):
                times.append(dt.datetime.fromtimestamp(path.stat().st_mtime, dt.UTC))
        return min(max(times), self.cluster.clock()) if times else self.cluster.clock()

    async def _run(self, record: JobRecord) -> None:
        folder = self.folder(record)
        argv = [
            *(*GATE, *self.command),
            *("--request", str(folder / "request.json")),
            *("--result", str(folder / "result.json")),
            *("--progress", str(folder / "progress.jsonl")),
            *("--parent-pid", str(os.getpid())),
        ]
        kills = oom_kills()
        self.cluster.journal.check_run(folder)
        try:
            log = os.fdopen(open_regular(self.log_path(record), os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab")
        except OSError as error:
            raise StateError(f"cannot write the log {self.log_path(record)}: {error.strerror}") from error
        with log:
            try:
                process = await asyncio.create_subprocess_exec(
                    *argv,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=log,
                    stderr=asyncio.subprocess.STDOUT,
                    env={**os.environ, "PYTHONUNBUFFERED": "1", **self.environment, **self._slot(record)},
                    process_group=0,
                )
            except OSError as error:
                self._conclude(record, None, "error", "CannotStart", f"cannot start {argv[0]}: {error.strerror}")
                return
        self._pids[record.uid] = process.pid
        started = self.cluster.update_job(
            record.name,
            record.uid,
            state="running",
            pid=process.pid,
            mark=start_mark(process.pid),
            started_at=self.cluster.clock(),
        )
        assert process.stdin is not None
        if started is not None and not started.deleting:
            process.stdin.write(b"go\n")
        with contextlib.suppress(ConnectionError):
            await process.stdin.drain()
        process.stdin.close()
        code = await process.wait()
        out_of_memory = kills is not None and (oom_kills() or 0) > kills
        cause, reason = judge_exit(code, out_of_memory)
        lines = last_lines(self.log_path(record), count=1)
        self._conclude(record, code, cause, reason, lines[-1] if lines and cause else None)

    def _slot(self, record: JobRecord) -> Mapping[str, str]:
        """The environment of the slot that fewest processes are in; those that train nothing need none."""
        if not self.slots or record.purpose not in ("trial", "prepare"):
            return {}
        taken = list(self._slots.values())
        self._slots[record.uid] = min(range(len(self.slots)), key=taken.count)
        return self.slots[self._slots[record.uid]]

    def _conclude(
        self, record: JobRecord, code: int | None, cause: Cause | None, reason: str, detail: str | None
    ) -> None:
        if self._abandoned:
            return
        now = self.cluster.job(record.name)
        if now is not None and now.uid == record.uid and now.deleting:
            self.cluster.remove_job(record.name, record.uid)
            return
        self.cluster.update_job(
            record.name,
            record.uid,
            state="failed" if cause else "succeeded",
            cause=cause,
            reason=reason if cause else None,
            detail=detail[:MAX_DETAIL] if detail else None,
            message=self._message(record),
            finished_at=self.cluster.clock(),
            exit_code=code,
        )

    def _message(self, record: JobRecord) -> str | None:
        try:
            return read_regular(self.folder(record) / "result.json", MAX_RESULT).decode("utf-8")
        except (OSError, UnicodeDecodeError):
            return None


def judge_exit(code: int, out_of_memory: bool) -> tuple[Cause | None, str]:
    """Cause and reason of a process's end. `code` is negative where a signal ended it (subprocess's convention)."""
    if code == ExitCode.DONE:
        return None, "Completed"
    if code == ExitCode.INVALID:
        return "invalid", "Invalid"
    if code in (ExitCode.TERMINATED, -signal.SIGTERM):
        return "terminated", "Terminated"
    if code == -signal.SIGKILL and out_of_memory:
        return "oom", "OOMKilled"
    if code < 0:
        with contextlib.suppress(ValueError):
            return "error", signal.Signals(-code).name
    return "error", f"ExitCode{abs(code)}"


def _cause_of(result: RunResult) -> Cause:
    if result.reason in (reasons.INVALID_SPEC, reasons.INVALID_MODEL):
        return "invalid"
    return "terminated" if result.reason == reasons.RUNNER_TERMINATED else "error"
