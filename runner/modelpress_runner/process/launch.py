"""Starts the processes of one node that train a model together, and makes one result of what they report.

Three layers: the process that the pod or a local run started (here called the node's process; it never imports torch),
a launcher below it (torchrun's or DeepSpeed's, in its own process), and below that the workers, each with its rank:

    main.py  ->  python -m modelpress_runner.process.launch  ->  main.py --worker FOLDER, once per process of the node

Every worker writes what became of it into FOLDER, so that the user's own error is told, whichever rank it happened on,
and not the launcher's remark that some child failed. Whoever is killed takes the layers below along.
"""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelpress.api.v1alpha1 import Runner, reasons
from modelpress.request import RUN_UID_VARIABLE, RunRequest
from modelpress.result import ExitCode, RunResult
from modelpress_runner.errors import InvalidSpecError
from modelpress_runner.process.parent_death import die_with
from modelpress_runner.process.stopping import StopFlag

log = logging.getLogger("modelpress")

PARENT_VARIABLE = "MODELPRESS_LAUNCHER_PID"  # environment variable of workers: the launcher's process
MEET_SECONDS = 1800  # until all nodes must be there: pods wait for nodes, and images for networks
SHUTDOWN_SECONDS = 30  # between SIGTERM and SIGKILL for the workers that are left when one has ended
LINGER_SECONDS = 15.0  # a worker that lost a peer leaves the first word to the one that failed
_LAUNCHER_FILE = "launcher.json"


@dataclass(frozen=True)
class Group:
    """The processes that train together, and which node of theirs this is.

    Attributes:
        nodes: how many nodes there are.
        per_node: processes on each.
        node: the number of this one, from 0.
        address: of the first node; the ranks meet there.
        port: at that address; 0: a free one of this machine.
        launcher: torchrun or deepspeed.
    """

    nodes: int
    per_node: int
    node: int
    address: str
    port: int
    launcher: str

    @property
    def size(self) -> int:
        """How many processes there are in all."""
        return self.nodes * self.per_node

    @property
    def ranks(self) -> range:
        """The ranks of this node."""
        return range(self.node * self.per_node, (self.node + 1) * self.per_node)


def group_of(runner: Runner | None, environment: Mapping[str, str]) -> Group | None:
    """The group that a run belongs to; None if it is one plain process.

    A pod's environment says which node it is (PET_NNODES, PET_NPROC_PER_NODE, PET_NODE_RANK, PET_MASTER_ADDR,
    PET_MASTER_PORT, as torchrun reads them). Without it all processes run on this machine.
    """
    runner = runner or Runner()
    if "PET_NODE_RANK" in environment:
        nodes = int(environment.get("PET_NNODES", runner.nodes))
        per_node = int(environment.get("PET_NPROC_PER_NODE", runner.processes_per_node))
        node = int(environment["PET_NODE_RANK"])
        address = environment.get("PET_MASTER_ADDR", "127.0.0.1")
        port = int(environment.get("PET_MASTER_PORT", "29500"))
    else:
        nodes, per_node, node, address, port = 1, runner.processes, 0, "127.0.0.1", 0
        if runner.nodes > 1:
            log.info("spec.runner.nodes: all %d processes run on this machine", per_node)
    if nodes * per_node == 1 and runner.launcher == "torchrun":
        return None
    return Group(nodes, per_node, node, address, port, runner.launcher)


# The node's process --------------------------------------------------------------------------------------------------


def run(
    request: RunRequest, group: Group, folder: Path, stop: StopFlag, progress: Path | None
) -> tuple[RunResult | None, ExitCode]:
    """Runs the node's workers to their end.

    Args:
        request: what they are asked to do, its code at hand.
        folder: empty; what they need and report goes there.
        stop: raised by SIGTERM, which is passed on to the workers.
        progress: file for rank 0's progress.

    Returns:
        What to report, None where another node reports; and the exit code.

    Raises:
        InvalidSpecError: the launcher is not installed.
    """
    if group.launcher == "deepspeed" and importlib.util.find_spec("deepspeed") is None:
        raise InvalidSpecError(
            "deepspeed is not installed; add modelpress[deepspeed] to the image or environment, or use torchrun",
            "spec.runner.launcher",
        )
    (folder / "request.json").write_text(request.to_json())
    command = [sys.executable, "-m", "modelpress_runner.process.launch", str(os.getpid()), str(folder), group.launcher]
    worker = ["modelpress_runner.main", "--worker", str(folder), "--request", str(folder / "request.json")]
    worker += ["--result", str(folder / "result.json")]
    if progress is not None:
        worker += ["--progress", str(progress)]
    port = group.port or _free_port()
    arguments = (_torchrun if group.launcher == "torchrun" else _deepspeed)(group, port)
    log.info("starting %d of %d processes with %s", group.per_node, group.size, group.launcher)
    stop()
    process = subprocess.Popen([*command, *arguments, *worker], env=_environment(request, group))
    with stop.told(lambda: _end(process)):
        process.wait()
    exits, met = _from_launcher(folder)
    return judge(read_reports(folder), exits, group, stopped=stop.asked, met=met)


def _torchrun(group: Group, port: int) -> list[str]:
    return [
        f"--nnodes={group.nodes}",
        f"--nproc-per-node={group.per_node}",
        f"--node-rank={group.node}",
        f"--master-addr={group.address}",
        f"--master-port={port}",
        f"--rdzv-conf=timeout={MEET_SECONDS}",
        f"--shutdown-timeout={SHUTDOWN_SECONDS}",
        *("--max-restarts=0", "--module"),
    ]


def _deepspeed(group: Group, port: int) -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    devices = [int(name) for name in visible.split(",") if name.isdigit()][: group.per_node]
    if len(devices) < group.per_node:
        devices = list(range(group.per_node))
    world = json.dumps({f"node-{node}": devices for node in range(group.nodes)})
    return [
        f"--world_info={base64.urlsafe_b64encode(world.encode()).decode()}",
        f"--node_rank={group.node}",
        f"--master_addr={group.address}",
        f"--master_port={port}",
        *("--quiet", "--no_local_rank", "--module"),
    ]


def _environment(request: RunRequest, group: Group) -> dict[str, str]:
    """The workers': one uid for the run, the node's threads shared out, and no detour through a network."""
    environment = {**os.environ, RUN_UID_VARIABLE: request.run_uid}
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    environment.setdefault("OMP_NUM_THREADS", str(available))
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        if environment.get(name, "").isdigit():
            environment[name] = str(max(1, int(environment[name]) // group.per_node))
    if group.nodes == 1:
        # A machine's name may stand for an address that nobody listens at.
        loopback = "lo0" if sys.platform == "darwin" else "lo"
        environment = {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback, **environment}
    for name in [name for name in environment if name.startswith("PET_")]:
        del environment[name]  # said as arguments; torchrun would read what is left over
    return environment


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM for the launcher, which passes it on."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)


# What the workers report ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Report:
    """How one worker ended. `gone`: because another process had gone away."""

    rank: int
    code: int
    result: RunResult
    time: float
    gone: bool = False


def write_report(folder: Path, rank: int, result: RunResult, code: int, *, gone: bool) -> None:
    """Leaves a worker's word for the node's process; the file is there as a whole or not at all."""
    value = {"rank": rank, "code": code, "result": result.to_dict(), "time": time.time(), "gone": gone}
    path = folder / f"rank-{rank}.json"
    path.with_suffix(".part").write_text(json.dumps(value))
    os.replace(path.with_suffix(".part"), path)


def read_reports(folder: Path) -> dict[int, Report]:
    """What workers have left, by rank."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("rank-*.json"))]
    reports = [Report(**{**value, "result": RunResult.model_validate(value["result"])}) for value in found]
    return {report.rank: report for report in reports}


def judge(
    reports: Mapping[int, Report], exits: Mapping[int, int], group: Group, *, stopped: bool, met: bool = True
) -> tuple[RunResult | None, ExitCode]:
    """One result and exit code for a node's workers.

    Rank 0's success counts whatever became of the others: it has committed. Otherwise the error that nobody else's end
    explains is told: what is invalid, then what failed first, then what was killed.

    Args:
        reports: what the workers left, by rank.
        exits: exit codes by rank as far as the launcher knows them; negative where a signal ended one.
        group: whose node it is.
        stopped: whether this run was asked to stop.
        met: False: the launcher waited in vain for the other nodes.
    """
    first = reports.get(0)
    if first is not None and first.code == ExitCode.DONE:
        return first.result, ExitCode.DONE
    if 0 not in group.ranks and all(rank in reports and reports[rank].code == 0 for rank in group.ranks):
        return None, ExitCode.DONE
    for code in (ExitCode.INVALID, ExitCode.FAILED):
        of_code = [report for report in reports.values() if report.code == code and not report.gone]
        if of_code:
            told = min(of_code, key=lambda report: report.time).result.message
            alike = [report for report in of_code if report.result.message == told]
            return _by(min(alike, key=lambda report: report.rank), group), code
    if stopped or any(report.code == ExitCode.TERMINATED and not report.gone for report in reports.values()):
        return terminated(), ExitCode.TERMINATED
    if not met:
        text = f"the {group.nodes} nodes did not meet within {MEET_SECONDS} s; see why a pod of this job does not run"
        return terminated(text), ExitCode.TERMINATED
    killed = sorted(rank for rank in group.ranks if rank not in reports)
    if killed:
        return _unheard(killed[0], exits, group), ExitCode.FAILED
    lost = min(reports.values(), key=lambda report: report.time, default=None)
    if group.nodes > 1:
        return terminated("a process on another node went away; the next attempt starts all of them"), (
            ExitCode.TERMINATED
        )
    message = lost.result.message if lost is not None else "the processes ended without a word; see the log"
    return RunResult(phase="Failed", reason=reasons.RUNNER_FAILED, message=message), ExitCode.FAILED


def terminated(message: str = "") -> RunResult:
    """The result of a run that was told to stop."""
    message = message or "stopped on request; the next attempt goes on from the last checkpoint, if there is one"
    return RunResult(phase="Failed", reason=reasons.RUNNER_TERMINATED, message=message)


def _by(report: Report, group: Group) -> RunResult:
    """A failure's result; which rank it was is told where it is not the first."""
    if report.rank == 0:
        return report.result
    message = f"process {report.rank} of {group.size} (counted from 0): {report.result.message}"
    return report.result.model_copy(update={"message": message})


def _unheard(rank: int, exits: Mapping[int, int], group: Group) -> RunResult:
    """A worker that left no word: killed, or never started."""
    code = exits.get(rank, 0)
    how = "ended without a word"
    if code < 0:
        with contextlib.suppress(ValueError):
            how = f"was killed by {signal.Signals(-code).name}"
        how += ", which the kernel does when memory runs out" if -code == signal.SIGKILL else ""
    elif code > 0:
        how = f"ended with exit code {code}"
    message = f"process {rank} of {group.size} (counted from 0) {how}; see the log"
    return RunResult(phase="Failed", reason=reasons.RUNNER_FAILED, message=message)


def _from_launcher(folder: Path) -> tuple[dict[int, int], bool]:
    """Exit codes of workers by rank, and whether the nodes met, as far as the launcher says."""
    try:
        value = json.loads((folder / _LAUNCHER_FILE).read_text())
    except OSError:
        return {}, True
    return {int(rank): int(code) for rank, code in value["exits"].items()}, bool(value["met"])


# The launcher's process ----------------------------------------------------------------------------------------------


def main(argv: Sequence[str]) -> int:
    """`PARENT FOLDER torchrun|deepspeed ARGUMENTS...`: becomes the launcher, which ends when its parent does."""
    parent, folder, launcher, *arguments = argv
    die_with(int(parent))
    os.environ[PARENT_VARIABLE] = str(os.getpid())
    if launcher == "deepspeed":
        from deepspeed.launcher import launch

        sys.argv = ["deepspeed", *arguments]
        launch.main()
        return 0
    from torch.distributed import DistError
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # The workers' own words are in the log already; torchrun's table below them would be the last that people read.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        torchrun.run(torchrun.parse_args(arguments))
    except ChildFailedError as error:
        exits: dict[str, Any] = {str(rank): failure.exitcode for rank, failure in error.failures.items()}
        (Path(folder) / _LAUNCHER_FILE).write_text(json.dumps({"exits": exits, "met": True}))
        return int(ExitCode.FAILED)
    except DistError as error:
        log.error("the nodes did not meet: %s", str(error).splitlines()[0])
        (Path(folder) / _LAUNCHER_FILE).write_text(json.dumps({"exits": {}, "met": False}))
        return int(ExitCode.TERMINATED)
    except SignalException:
        return int(ExitCode.TERMINATED)
    return int(ExitCode.DONE)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
