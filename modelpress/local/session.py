"""Runs a file or a mapping to its end on this machine: what `modelpress run` and `mp.run` are made of."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import importlib.util
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from modelpress.api.errors import SpecError
from modelpress.api.v1alpha1 import CompressionJob, CompressionSweep, TrialResult, reasons
from modelpress.experiment import Experiment
from modelpress.reconcile import EmitEvent

from .cluster import Change, JobRecord, Key, LocalCluster, Root
from .controller import LocalController, is_finished
from .devices import environments, visible_devices
from .errors import UsageError
from .jobs import RUNNER, JobProcesses
from .lines import LineDisplay
from .plan import RunPlan, artifact_root, open_state, plan_run
from .process import cores, last_lines, without_tracebacks
from .sources import Document, load_documents

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
DONE, FAILED, INVALID, MISSED = 0, 1, 2, 3


class Display(Protocol):
    """Shows a run while it lasts. Called in the event loop, so each call must be quick."""

    interval: float | None  # seconds between two calls of refresh; None: it wants none

    def begin(self, run: ActiveRun) -> None:
        """A run starts, or goes on."""

    def notice(self, text: str) -> None:
        """Something the user should read."""

    def changed(self, change: Change) -> None: ...

    def event(self, key: Key, event: EmitEvent) -> None: ...

    def refresh(self) -> None:
        """Look at the run's progress files again."""

    def stopping(self, live: int) -> None:
        """The user asked to stop; `live` processes are writing checkpoints."""

    def end(self) -> None:
        """The run is over; also called when it ends in an error."""


@dataclass(frozen=True)
class ActiveRun:
    """A run in progress, for displays."""

    plan: RunPlan
    cluster: LocalCluster
    jobs: JobProcesses
    resumed: bool

    @property
    def root(self) -> Root:
        return self.cluster.root


@dataclass(frozen=True)
class FailureLog:
    """Where a failed process's output is, and its last lines."""

    job: str
    path: Path
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Finished:
    """How one object's run ended. `interrupted` is the signal that stopped it early, if one did."""

    root: Root
    trials: tuple[CompressionJob, ...]
    uri: str
    state: Path
    already: bool  # it was finished before this run
    interrupted: int | None
    failure: FailureLog | None

    @property
    def exit_code(self) -> int:
        """0 done, 1 failed, 2 invalid, 3 the result misses a constraint; 128 + signal where one stopped it."""
        if self.interrupted is not None and not is_finished(self.root):
            return 128 + self.interrupted
        return exit_code_of(self.root)


@dataclass(frozen=True)
class LocalResult:
    """What mp.run gives back.

    Attributes:
        objects: the file's jobs and sweeps as they ended, with their status.
        trials: all trials of its sweeps.
        best: the best feasible trial of the last sweep that has one.
        uri: where the model is: the last object's artifact (a sweep's `best/`); for mp.load. None if there is none.
        exit_code: as `modelpress run` would exit.
    """

    objects: tuple[Root, ...]
    trials: tuple[CompressionJob, ...]
    best: TrialResult | None
    uri: str | None
    exit_code: int


def run(
    path_or_dict: str | os.PathLike[str] | Mapping[str, Any] | Experiment,
    *,
    store: str | None = None,
    parallel: int | None = None,
    progress: bool = False,
) -> LocalResult:
    """Run a YAML file, one object given as a mapping, or an mp.Experiment on this machine, to its end.

    Args:
        path_or_dict: file with one or more documents; a mapping, in YAML or in Python spelling; or a sweep in the
            making.
        store: folder or URI that overrides the spec's; without either it is ./modelpress-runs.
        parallel: trials at a time; overrides a sweep's parallelism.
        progress: print a line for each finished trial and change of state to standard error.

    Raises:
        SpecError: the file or mapping is invalid; its text lists every problem.
        LocalError: the run cannot start or go on.
        KeyboardInterrupt: after a clean stop on Ctrl-C; the same call goes on.
    """
    source = path_or_dict.to_dict() if isinstance(path_or_dict, Experiment) else path_or_dict
    plans = plan_documents(load_documents(source), store=store, parallel=parallel)
    display = LineDisplay(sys.stderr) if progress else None
    finished = run_plans(plans, display)
    if exit_code(finished, len(plans)) == 128 + signal.SIGINT:
        raise KeyboardInterrupt
    return result_of(finished)


# Before the start ----------------------------------------------------------------------------------------------------


def plan_documents(
    documents: Sequence[Document], *, store: str | None = None, parallel: int | None = None
) -> list[RunPlan]:
    """Settle everything before anything starts.

    Raises:
        SpecError: semantic problems, of all documents together.
        UsageError: --parallel is not positive, or torch is not installed.
    """
    if parallel is not None and not 1 <= parallel <= 1000:
        raise UsageError(f"--parallel: must be 1 to 1000, found {parallel}; give the number of trials to run at once")
    cwd = Path.cwd()
    plans = [plan_run(document, cwd=cwd, store=store, parallel=parallel) for document in documents]
    problems = [problem for plan in plans for problem in plan.problems]
    if problems:
        raise SpecError(problems)
    for package in ("modelpress_runner", "torch"):
        if importlib.util.find_spec(package) is None:
            raise UsageError(
                f"running needs the package {package!r}; install it with: pip install 'modelpress[runner]'"
            )
    return plans


# Running -------------------------------------------------------------------------------------------------------------


def run_plans(
    plans: Sequence[RunPlan], display: Display | None = None, *, command: Sequence[str] = RUNNER
) -> list[Finished]:
    """Run objects one after the other; a signal ends the row. Works inside a notebook's event loop, too."""
    work = _Work(plans, display, command)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return work.run()
    # A loop runs here already (a notebook): take a thread of its own, which lives as long as the processes do.
    thread = threading.Thread(target=work.run_quietly, name="modelpress-run")
    with _handlers(lambda number, frame: work.interrupt(number)):
        thread.start()
        thread.join()
    if work.error is not None:
        raise work.error
    return work.finished


class _Work:
    def __init__(self, plans: Sequence[RunPlan], display: Display | None, command: Sequence[str]) -> None:
        self.plans, self.display, self.command = plans, display, command
        self.finished: list[Finished] = []
        self.error: BaseException | None = None
        self.signal: int | None = None
        self._controller: LocalController | None = None
        self._jobs: JobProcesses | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self) -> list[Finished]:
        with asyncio.Runner() as runner:
            runner.run(self._main())
        return self.finished

    def run_quietly(self) -> None:
        try:
            self.run()
        except BaseException as error:
            self.error = error

    def interrupt(self, number: int) -> None:
        """From another thread: as if the signal had come."""
        if self._loop is None:
            self.signal = int(number)
            return
        with contextlib.suppress(RuntimeError):  # the loop has just been closed
            self._loop.call_soon_threadsafe(self._on_signal, number)

    async def _main(self) -> None:
        self._loop = loop = asyncio.get_running_loop()
        with _handlers(lambda number, frame: loop.call_soon_threadsafe(self._on_signal, number)):
            for plan in self.plans:
                self.finished.append(await self._run_one(plan))
                if self.signal is not None:
                    break

    def _on_signal(self, number: int) -> None:
        if self.signal is None:
            self.signal = int(number)
            if self._controller is not None and self._jobs is not None:
                self._stop_cleanly()
        elif self._controller is not None:
            self._controller.kill()

    def _stop_cleanly(self) -> None:
        assert self._controller is not None
        assert self._jobs is not None
        self._controller.stop()
        if self.display is not None:
            self.display.stopping(self._jobs.live)

    async def _run_one(self, plan: RunPlan) -> Finished:
        display = self.display
        obj, journal = open_state(plan, display.notice if display else lambda text: None)
        try:
            if display is not None and plan.runner is not None and plan.runner.nodes > 1:
                display.notice(f"spec.runner.nodes: all {plan.runner.processes} processes of a run are on this machine")
            cluster = LocalCluster(journal, lambda: dt.datetime.now(dt.UTC))
            resumed = (journal.root / "object.json").exists()
            cluster.load(obj)
            already = is_finished(cluster.root)
            jobs = JobProcesses(
                cluster,
                self.command,
                child_environment(plan.parallelism),
                slots=environments(visible_devices(), plan.parallelism, plan.runner),
            )
            controller = LocalController(
                cluster,
                jobs,
                code_path=plan.code_path,
                base_path=plan.base_path,
                strategy=_strategy(cluster.root),
                problems=tuple(str(problem) for problem in plan.problems),
                observer=display,
            )
            self._controller, self._jobs = controller, jobs
            if self.signal is not None:
                controller.stop()
            async with _shown(display, ActiveRun(plan, cluster, jobs, resumed)):
                await controller.run()
            return Finished(
                root=cluster.root,
                trials=cluster.trials,
                uri=artifact_root(plan, cluster.root),
                state=journal.root,
                already=already,
                interrupted=self.signal,
                failure=_failure(cluster, jobs),
            )
        finally:
            self._controller = self._jobs = None
            journal.close()


@contextlib.contextmanager
def _handlers(handler: Callable[[int, Any], Any]) -> Iterator[None]:
    """Handle SIGINT, SIGTERM and SIGHUP meanwhile, if this is the main thread. What is ignored (nohup) stays so."""
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    before = [(number, signal.getsignal(number)) for number in numbers]
    handled = [(number, old) for number, old in before if old not in (signal.SIG_IGN, None)]
    for number, _ in handled:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in handled:
            signal.signal(number, old)


@contextlib.asynccontextmanager
async def _shown(display: Display | None, running: ActiveRun) -> AsyncIterator[None]:
    if display is None:
        yield
        return
    display.begin(running)
    task = asyncio.create_task(_refresh(display, display.interval)) if display.interval else None
    try:
        yield
    finally:
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        display.end()


async def _refresh(display: Display, interval: float) -> None:
    while True:
        await asyncio.sleep(interval)
        display.refresh()


def _strategy(root: Root) -> Any:
    if not isinstance(root, CompressionSweep):
        return None
    from modelpress.search import strategy_for

    return strategy_for(root.spec)


def child_environment(parallelism: int) -> dict[str, str]:
    """Threads of each runner where several share the cores; what the user has set stays."""
    if parallelism <= 1:
        return {}
    threads = str(max(1, cores() // parallelism))
    return {name: threads for name in THREADS if name not in os.environ}


# Afterwards ----------------------------------------------------------------------------------------------------------


def condition(obj: Root, type_: str) -> tuple[str, str, str] | None:
    """Status, reason and message of a condition, if the object has it."""
    for item in obj.status.conditions:
        if item.type == type_:
            return item.status, item.reason, item.message
    return None


def exit_code_of(root: Root) -> int:
    """Exit code of an object that has come to its end."""
    status, failed = root.status, condition(root, reasons.FAILED)
    if status.phase != "Succeeded":
        invalid = failed is not None and failed[1] in (reasons.INVALID_SPEC, reasons.INVALID_MODEL)
        return INVALID if invalid else FAILED
    available = condition(root, reasons.ARTIFACT_AVAILABLE)
    if available is not None and available[0] == "False" and available[1] == reasons.PUBLISH_FAILED:
        return FAILED
    met = condition(root, reasons.CONSTRAINTS_MET)
    if met is not None and met[0] != "True":
        return MISSED
    if isinstance(root, CompressionSweep) and root.status.best is None:
        return MISSED if root.status.trials.succeeded else FAILED
    return DONE


def result_of(finished: Sequence[Finished]) -> LocalResult:
    """All runs of a file as one result: the worst exit code, the last best trial."""
    sweeps = [run.root for run in finished if isinstance(run.root, CompressionSweep)]
    best = next((sweep.status.best for sweep in reversed(sweeps) if sweep.status.best is not None), None)
    return LocalResult(
        objects=tuple(run.root for run in finished),
        trials=tuple(trial for run in finished for trial in run.trials),
        best=best,
        uri=model_uri(finished[-1]) if finished else None,
        exit_code=exit_code(finished),
    )


def exit_code(finished: Sequence[Finished], planned: int | None = None) -> int:
    """One exit code for a row of runs: a signal's, else the first of failed, invalid, constraint missed, done.

    Args:
        planned: how many there were to be; a signal after one that just finished kept the others from starting.
    """
    codes = [run.exit_code for run in finished]
    if finished and planned is not None and len(finished) < planned and finished[-1].interrupted is not None:
        return 128 + finished[-1].interrupted
    signalled = [code for code in codes if code > 128]
    return next((code for code in (*signalled, FAILED, INVALID, MISSED) if code in codes), DONE)


def model_uri(run: Finished) -> str | None:
    """URI of the folder that mp.load opens; None if there is no model."""
    if run.root.status.artifact is None:
        return None
    if isinstance(run.root, CompressionSweep):
        return f"{run.uri}/best" if run.root.status.best is not None else None
    return run.root.status.artifact.uri


def _failure(cluster: LocalCluster, jobs: JobProcesses) -> FailureLog | None:
    """The output of the process that failed last."""
    failed = [record for record in cluster.jobs if record.state == "failed" and record.cause != "disrupted"]
    if not failed:
        return None
    last: JobRecord = max(failed, key=lambda record: record.finished_at or dt.datetime.min.replace(tzinfo=dt.UTC))
    path = jobs.log_path(last)
    # Tracebacks are for whoever opens the log.
    return FailureLog(last.name, path, tuple(without_tracebacks(last_lines(path, 1000, limit=65_536))[-15:]))
