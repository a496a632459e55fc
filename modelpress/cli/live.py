"""A run on a terminal: overall bar, the trials that are running, the best so far; drawn anew four times a second."""

from __future__ import annotations

import time
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from modelpress import formatting
from modelpress.api.v1alpha1 import TERMINAL_PHASES, CompressionSweep
from modelpress.cli.markup import escape
from modelpress.local.cluster import Change, JobRecord, Key
from modelpress.local.lines import best_line, expected_trials, opening, stopping_line
from modelpress.local.session import ActiveRun
from modelpress.reconcile import EmitEvent
from modelpress.trials import number_of, parameters_of

MAX_RUNNING = 16  # rows of running trials; a terminal has no more room


class LiveDisplay:
    """Redraws itself in place; warnings scroll above it."""

    interval: float | None = 0.25

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream, highlight=False)
        self._live: Live | None = None
        self._run: ActiveRun | None = None
        self._began = 0.0
        self._finished_before = 0
        self._finished = 0
        self._stopping = ""

    def begin(self, run: ActiveRun) -> None:
        self._run = run
        self._began = time.monotonic()
        self._finished = self._finished_before = sum(t.status.phase in TERMINAL_PHASES for t in run.cluster.trials)
        self.notice(opening(run))
        self._live = Live(self._render(), console=self._console, auto_refresh=False, transient=True)
        self._live.start()

    def notice(self, text: str) -> None:
        self._console.print(escape(text), soft_wrap=True)

    def changed(self, change: Change) -> None:
        after, before = change.after, change.before
        if isinstance(after, JobRecord) or after is None or after.metadata.controller_uid() is None:
            return
        was = before.status.phase if before is not None and not isinstance(before, JobRecord) else None
        if after.status.phase in TERMINAL_PHASES and was not in TERMINAL_PHASES:
            self._finished += 1

    def event(self, key: Key, event: EmitEvent) -> None:
        if event.type == "Warning":
            self._console.print(escape(f"{key.name}: {event.reason}: {event.message}"), style="yellow", soft_wrap=True)

    def refresh(self) -> None:
        if self._live is not None:
            self._live.update(self._render(), refresh=True)

    def stopping(self, live: int) -> None:
        self._stopping = stopping_line(live)
        self.refresh()

    def end(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    # Drawing ---------------------------------------------------------------------------------------------------------

    def _render(self) -> RenderableType:
        assert self._run is not None
        parts: list[RenderableType] = [self._overall(), self._running()]
        root = self._run.root
        if isinstance(root, CompressionSweep) and root.status.best is not None:
            parts.append(Text(f"best: {best_line(root, self._run)}", style="green"))
        if self._stopping:
            parts.append(Text(self._stopping, style="bold yellow"))
        return Group(*parts)

    def _overall(self) -> RenderableType:
        assert self._run is not None
        root = self._run.root
        elapsed = time.monotonic() - self._began
        line = Table.grid(padding=(0, 1))
        if not isinstance(root, CompressionSweep):
            line.add_row(
                Text(f"{root.metadata.name}: {root.status.phase or 'Pending'}  {formatting.duration(elapsed)}")
            )
            return line
        total = expected_trials(root)
        here = self._finished - self._finished_before
        left = elapsed / here * max(0, total - self._finished) if here else None
        line.add_row(
            Text(root.metadata.name, style="bold"),
            ProgressBar(total=max(1, total), completed=self._finished, width=30),
            Text(f"{self._finished}/{total} trials"),
            Text(f"{formatting.duration(elapsed)} elapsed"),
            Text(f"{formatting.duration(left)} left" if left is not None else ""),
        )
        return line

    def _running(self) -> RenderableType:
        assert self._run is not None
        records = [record for record in self._run.cluster.jobs if not record.terminal]
        table = Table.grid(padding=(0, 2))
        for record in records[:MAX_RUNNING]:
            progress = self._run.jobs.progress(record) if record.state == "running" else None
            if progress is None:
                table.add_row(self._label(record), Text("starting" if record.state == "pending" else "running"))
                continue
            steps: RenderableType = Text("")
            if progress.total:
                steps = ProgressBar(total=progress.total, completed=min(progress.step or 0, progress.total), width=16)
            count = f"{progress.step}/{progress.total}" if progress.step is not None and progress.total else ""
            value = f"{progress.value:.4g}" if progress.value is not None else ""
            said = progress.message if progress.message != progress.stage else ""
            message = Text(said, style="dim", no_wrap=True, overflow="ellipsis")
            table.add_row(self._label(record), Text(progress.stage), steps, Text(count), Text(value), message)
        if len(records) > MAX_RUNNING:
            table.add_row(Text(f"and {len(records) - MAX_RUNNING} more"))
        return table

    def _label(self, record: JobRecord) -> Text:
        assert self._run is not None
        if record.purpose != "trial":
            return Text(f"  {record.purpose}")
        trial = self._run.cluster.get(Key("CompressionJob", record.owner_name))
        if trial is None or isinstance(trial, CompressionSweep) or number_of(trial) is None:
            return Text(f"  attempt {record.attempt}")
        return Text(f"  trial {number_of(trial)}  {formatting.parameters(parameters_of(trial) or {})}")
