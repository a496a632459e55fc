"""A run in plain lines, for logs and pipes: no control characters, a line for each change of state."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, TextIO

from modelpress import formatting
from modelpress.api.v1alpha1 import CompressionJob, CompressionSweep, TrialResult
from modelpress.reconcile import EmitEvent
from modelpress.trials import number_of, parameters_of

from .cluster import Change, JobRecord, Key, Root

if TYPE_CHECKING:
    from .session import ActiveRun

SHOWN = ("default", "macs", "sizeBytes", "latencyMs")
FINISHED = frozenset({"Succeeded", "Failed", "Stopped"})


class LineDisplay:
    """Prints one line for each finished trial, change of phase and warning."""

    interval: float | None = 1.0

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._stages: dict[str, str] = {}  # by uid of the child Job
        self._run: ActiveRun | None = None
        self._finished = 0
        self._best: TrialResult | None = None

    def say(self, text: str) -> None:
        """One line, with the time of day."""
        now = dt.datetime.now().astimezone()
        print(f"{now:%H:%M:%S} {text}", file=self._stream, flush=True)

    notice = say

    def begin(self, run: ActiveRun) -> None:
        self._run = run
        root = run.root
        self._finished = sum(trial.status.phase in FINISHED for trial in run.cluster.trials)
        self._best = root.status.best if isinstance(root, CompressionSweep) else None
        self.say(opening(run))

    def changed(self, change: Change) -> None:
        after, before = change.after, change.before
        if isinstance(after, JobRecord) or after is None or self._run is None:
            return
        phase = after.status.phase
        is_new = not isinstance(before, type(after)) or before.status.phase != phase
        if isinstance(after, CompressionJob) and after.metadata.controller_uid() is not None:
            if is_new and phase in FINISHED:
                self._finished += 1
                self.say(self._trial_line(after))
            return
        if is_new and phase is not None:
            self.say(f"{after.metadata.name}: {phase}")
        if isinstance(after, CompressionSweep) and after.status.best != self._best:
            self._best = after.status.best
            if self._best is not None:
                self.say(f"best so far: {best_line(after, self._run)}")

    def event(self, key: Key, event: EmitEvent) -> None:
        if event.type == "Warning":
            self.say(f"{key.name}: {event.reason}: {event.message}")

    def refresh(self) -> None:
        """A line for each new stage of a standalone job; a sweep's trials would say too much."""
        if self._run is None or isinstance(self._run.root, CompressionSweep):
            return
        for record in self._run.cluster.jobs:
            progress = self._run.jobs.progress(record) if record.state == "running" else None
            if progress is not None and progress.stage and self._stages.get(record.uid) != progress.stage:
                self._stages[record.uid] = progress.stage
                steps = f", {progress.total} steps" if progress.total else ""
                self.say(f"{record.owner_name}: stage {progress.stage} (attempt {record.attempt}{steps})")

    def stopping(self, live: int) -> None:
        self.say(stopping_line(live))

    def end(self) -> None:
        self._run = None

    def _trial_line(self, trial: CompressionJob) -> str:
        assert self._run is not None
        root = self._run.root
        total = f"/{expected_trials(root)}" if isinstance(root, CompressionSweep) else ""
        parts = [f"trial {number_of(trial)} {trial.status.phase} ({self._finished}{total})"]
        parts.append(formatting.parameters(parameters_of(trial) or {}))
        parts.append(metrics_line(trial) or why_failed(trial))
        return "  ".join(part for part in parts if part)


def opening(run: ActiveRun) -> str:
    """The first line about a run."""
    root = run.root
    name = f"{root.kind} {root.metadata.name}"
    if not run.resumed:
        return f"{name}: starting; state and logs are in {run.cluster.journal.root}"
    if isinstance(root, CompressionSweep):
        done = sum(trial.status.phase in FINISHED for trial in run.cluster.trials)
        return f"{name}: going on with the run in {run.cluster.journal.root}, {done} trials finished"
    return f"{name}: going on with the run in {run.cluster.journal.root}"


def stopping_line(live: int) -> str:
    """What to say on the first Ctrl-C."""
    if not live:
        return "stopping"
    processes = "1 running process" if live == 1 else f"{live} running processes"
    return f"stopping: {processes} may write a checkpoint first; press Ctrl-C again to end at once"


def expected_trials(sweep: CompressionSweep) -> int:
    """How many trials there will be, as far as is known."""
    status, screening = sweep.status, sweep.spec.screening
    second = 0 if screening is None else max(screening.top, len(status.screening.promoted) if status.screening else 0)
    first = status.created - (len(status.screening.promoted) if status.screening else 0)
    return (first if status.exhausted else max(sweep.spec.max_trials, first)) + second


def metrics_line(obj: Root) -> str:
    """`default 0.971 (-0.4%)  macs 1.2M (-48.0%)`; empty where nothing was measured."""
    pair = obj.status.metrics if isinstance(obj, CompressionJob) else None
    if pair is None or not pair.compressed:
        return ""
    shown = [name for name in SHOWN if name in pair.compressed] or sorted(pair.compressed)[:4]
    return "  ".join(f"{name} {formatting.with_change(name, pair.compressed, pair.baseline)}" for name in shown)


def best_line(sweep: CompressionSweep, run: ActiveRun) -> str:
    """The best trial with its numbers against the dense model's."""
    best = sweep.status.best
    if best is None:
        return ""
    trial = run.cluster.get(Key("CompressionJob", best.name))
    measured = trial.status.metrics if isinstance(trial, CompressionJob) else None
    baseline = (measured.baseline if measured else None) or sweep.status.baseline or {}
    wanted = [objective.metric for objective in sweep.spec.objectives]
    shown = [name for name in dict.fromkeys((*wanted, *SHOWN)) if name in best.metrics]
    numbers = "  ".join(f"{name} {formatting.with_change(name, best.metrics, baseline)}" for name in shown)
    return f"trial {best.number}  {formatting.parameters(best.parameters)}  {numbers}".rstrip()


def why_failed(obj: Root) -> str:
    """Reason and message of the condition Failed; empty if there is none."""
    for item in obj.status.conditions:
        if item.type == "Failed" and item.status == "True":
            return f"{item.reason}: {item.message}" if item.message else item.reason
    return ""
