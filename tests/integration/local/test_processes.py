"""Child Jobs as real processes: exit codes and signals become states and causes, whatever becomes of the controller."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelpress.local.cluster import Change, JobRecord, LocalCluster
from modelpress.local.errors import StateError
from modelpress.local.jobs import JobProcesses, judge_exit
from modelpress.local.journal import Journal
from modelpress.local.process import is_alive, last_lines, start_mark, wait_gone, without_tracebacks

FAKE = (sys.executable, str(Path(__file__).with_name("fake_runner.py")))


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """An open state directory."""
    journal = Journal.open(tmp_path / "state")
    yield journal
    journal.close()


def cluster_of(journal: Journal) -> LocalCluster:
    """A cluster over that journal, with the jobs it holds."""
    cluster = LocalCluster(journal, lambda: dt.datetime.now(dt.UTC))
    for value in journal.read_all("jobs"):
        cluster._index(JobRecord.from_dict(value["job"]))
    return cluster


def record(purpose: Any = "trial", attempt: int = 1, uid: str = "11111111-aaaa") -> JobRecord:
    """A pending child Job of the job `one`."""
    return JobRecord(f"one-{attempt}", uid, "CompressionJob", "one", "owner", purpose, attempt)


def write_request(journal: Journal, job: JobRecord, **args: Any) -> None:
    """The request file of that Job; `args` tell the fake runner how to behave."""
    request = {
        "purpose": job.purpose,
        "name": "one",
        "attempt": job.attempt,
        "prefix": "default/one",
        "spec": {
            "model": {"args": args},
            "store": {"uri": str(journal.root.parent / "store")},
            "stages": [{"prune": {"configList": [{"sparsity": 0.5}]}}],
        },
    }
    folder = journal.run_folder(job.name, job.uid).relative_to(journal.root)
    journal.write_text(f"{folder}/request.json", json.dumps(request))


class Watch:
    """Wakes whoever waits for a Job to reach a state."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.cluster, self._changed = cluster, asyncio.Event()
        cluster.watch(self._on_change)

    def _on_change(self, change: Change) -> None:
        self._changed.set()

    async def until(self, *states: str) -> JobRecord | None:
        """The Job `one-1` once it is in one of the states; None once it is gone, where 'gone' is one of them."""
        async with asyncio.timeout(20):
            while True:
                job = self.cluster.job("one-1")
                if (job.state if job else "gone") in states:
                    return job
                self._changed.clear()
                await self._changed.wait()


async def run_to_end(journal: Journal, **args: Any) -> JobRecord:
    """One process from start to end."""
    cluster = cluster_of(journal)
    jobs, watch = JobProcesses(cluster, FAKE), Watch(cluster)
    job = record()
    write_request(journal, job, **args)
    cluster.create_job(job)
    done = await watch.until("succeeded", "failed")
    await jobs.close()
    assert done is not None
    return done


async def test_a_success_carries_the_result_verbatim(journal: Journal) -> None:
    """Exit code 0: the message is the result file's text, and start comes before end."""
    job = await run_to_end(journal)
    assert (job.state, job.cause, job.exit_code) == ("succeeded", None, 0)
    text = (journal.run_folder(job.name, job.uid) / "result.json").read_text()
    assert job.message == text
    assert json.loads(text)["compressed"]["macs"] == 500.0
    assert job.started_at is not None
    assert job.finished_at is not None
    assert job.started_at <= job.finished_at


@pytest.mark.parametrize(("code", "cause"), [(1, "error"), (2, "invalid"), (143, "terminated"), (3, "error")])
async def test_exit_codes_become_causes(journal: Journal, code: int, cause: str) -> None:
    """Each exit code of the contract has its cause, and the last line of the log is the detail."""
    job = await run_to_end(journal, exits={"trial": [code]}, loud="\x1b[31mred\x1b[0m words")
    assert (job.state, job.cause, job.exit_code) == ("failed", cause, code)
    assert job.detail == "red words"


async def test_a_killed_process_is_an_error_with_its_signal(journal: Journal) -> None:
    """SIGKILL by a person, no memory being short, is an error named after the signal."""
    job = await run_to_end(journal, exits={"trial": [-9]})
    assert (job.state, job.cause, job.reason) == ("failed", "error", "SIGKILL")


def test_the_kernels_killing_for_memory_is_told_from_others() -> None:
    """Only SIGKILL while the kernel counted a kill is called out of memory."""
    assert judge_exit(-9, out_of_memory=True) == ("oom", "OOMKilled")
    assert judge_exit(-9, out_of_memory=False) == ("error", "SIGKILL")
    assert judge_exit(-11, out_of_memory=True) == ("error", "SIGSEGV")
    assert judge_exit(-15, out_of_memory=True) == ("terminated", "Terminated")


async def test_a_runner_that_cannot_be_started_is_an_error(journal: Journal) -> None:
    """A missing program ends the Job like any other failure."""
    cluster = cluster_of(journal)
    jobs, watch = JobProcesses(cluster, ("/no/such/program",)), Watch(cluster)
    job = record()
    write_request(journal, job)
    cluster.create_job(job)
    done = await watch.until("failed")
    await jobs.close()
    assert done is not None
    assert done.cause == "error"
    assert "/no/such/program" in (done.detail or "")


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A FIFO that keeps a run waiting as long as nobody opens it for writing."""
    path = tmp_path / "gate"
    os.mkfifo(path)
    return path


async def test_deleting_ends_the_process_and_then_the_record(journal: Journal, gate: Path) -> None:
    """A deleted Job gets SIGTERM; its record goes when the process is gone."""
    cluster = cluster_of(journal)
    jobs, watch = JobProcesses(cluster, FAKE), Watch(cluster)
    job = record()
    write_request(journal, job, gate=str(gate))
    cluster.create_job(job)
    running = await watch.until("running")
    assert running is not None
    assert running.pid is not None
    assert os.getpgid(running.pid) == running.pid
    cluster.update_job(job.name, job.uid, deleting=True)
    assert await watch.until("gone") is None
    assert start_mark(running.pid) is None
    await jobs.close()
    assert jobs.live == 0
    assert journal.read("jobs/one-1.json") is None


async def test_a_process_that_ignores_sigterm_is_killed_after_the_grace_period(journal: Journal) -> None:
    """SIGKILL follows SIGTERM."""
    cluster = cluster_of(journal)
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); open(SAID, 'w').close(); signal.pause()"
    said = journal.root / "said"
    os.mkfifo(said)
    jobs = JobProcesses(cluster, (sys.executable, "-c", stubborn.replace("SAID", repr(str(said)))), grace=0.05)
    watch = Watch(cluster)
    job = record()
    write_request(journal, job)
    cluster.create_job(job)
    await asyncio.to_thread(said.read_bytes)  # it ignores SIGTERM from now on
    cluster.update_job(job.name, job.uid, deleting=True)
    await watch.until("gone")
    await jobs.close()


async def test_killing_everything_leaves_the_record_for_the_next_shell(journal: Journal, gate: Path) -> None:
    """A second Ctrl-C ends processes at once; the next start calls them disrupted, with nothing counted as failed."""
    cluster = cluster_of(journal)
    jobs, watch = JobProcesses(cluster, FAKE), Watch(cluster)
    job = record()
    write_request(journal, job, gate=str(gate))
    cluster.create_job(job)
    await watch.until("running")
    await jobs.close()
    assert cluster.job("one-1").state == "running"
    after = cluster_of(journal)
    jobs, watch = JobProcesses(after, FAKE), Watch(after)
    jobs.start_all()
    found = await watch.until("failed")
    await jobs.close()
    assert (found.cause, found.reason) == ("disrupted", "ShellGone")


async def test_a_result_left_by_a_dead_process_counts(journal: Journal) -> None:
    """A run that was over when the controller died is not called disrupted."""
    cluster = cluster_of(journal)
    job = record()
    write_request(journal, job)
    cluster.create_job(job)
    cluster.update_job("one-1", job.uid, state="running", pid=2**22 + 1, mark="gone", started_at=cluster.clock())
    text = '{"v":1,"phase":"Succeeded","reason":"Committed"}'
    (journal.run_folder("one-1", job.uid) / "result.json").write_text(text)
    after = cluster_of(journal)
    jobs, watch = JobProcesses(after, FAKE), Watch(after)
    jobs.start_all()
    found = await watch.until("succeeded")
    await jobs.close()
    assert found.message == text


async def test_a_process_that_outlived_its_shell_is_ended_first(journal: Journal, tmp_path: Path) -> None:
    """Nobody starts the next attempt while the last one still runs."""
    cluster = cluster_of(journal)
    job = record()
    write_request(journal, job)
    request = journal.run_folder(job.name, job.uid) / "request.json"
    orphan = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "import signal; signal.pause()", "--request", str(request)), process_group=0
    )
    cluster.create_job(job)
    mark = start_mark(orphan.pid)
    cluster.update_job("one-1", job.uid, state="running", pid=orphan.pid, mark=mark, started_at=cluster.clock())
    after = cluster_of(journal)
    jobs, watch = JobProcesses(after, FAKE), Watch(after)
    jobs.start_all()
    found = await watch.until("failed")
    assert found.cause == "disrupted"
    assert not is_alive(orphan.pid, mark)
    assert await orphan.wait() == -signal.SIGTERM
    await jobs.close()


async def test_a_stranger_that_the_folder_names_is_left_alone(journal: Journal) -> None:
    """A folder from elsewhere may record any process with its right start: it was not started for this folder."""
    stranger = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "input()"), stdin=asyncio.subprocess.PIPE, process_group=0
    )
    cluster = cluster_of(journal)
    job = record()
    write_request(journal, job)
    cluster.create_job(job)
    mark = start_mark(stranger.pid)
    cluster.update_job("one-1", job.uid, state="running", pid=stranger.pid, mark=mark, started_at=cluster.clock())
    after = cluster_of(journal)
    jobs, watch = JobProcesses(after, FAKE), Watch(after)
    jobs.start_all()
    assert (await watch.until("failed")).cause == "disrupted"
    await jobs.close()
    assert is_alive(stranger.pid, mark)
    stranger.stdin.write(b"\n")
    assert await stranger.wait() == 0


@pytest.mark.parametrize("name", ["result.json", "progress.jsonl", "runner.log", "other"])
async def test_pipes_and_links_in_a_run_end_it(journal: Journal, tmp_path: Path, name: str) -> None:
    """Neither the controller nor the process waits on a pipe, and nothing is written through a link."""
    (tmp_path / "outside").write_text("kept")
    for make in (
        os.mkfifo,
        lambda path: path.symlink_to(tmp_path / "outside"),
        lambda path: path.symlink_to("/dev/zero"),
    ):
        cluster = cluster_of(journal)
        job = record(uid=f"{name[0]}1111111-aaaa")
        write_request(journal, job)
        odd = journal.run_folder(job.name, job.uid) / name
        make(odd)
        jobs = JobProcesses(cluster, FAKE)
        cluster.create_job(job)
        await asyncio.wait_for(jobs.changed.wait(), 60)
        assert isinstance(jobs.failure, StateError)
        assert "is damaged (it is neither a file nor a folder); remove the folder" in str(jobs.failure)
        await jobs.close()
        assert jobs.progress(job) is None
        assert last_lines(jobs.log_path(job)) == []
        assert jobs._message(job) is None
        odd.unlink()
        cluster.remove_job(job.name, job.uid)
    assert (tmp_path / "outside").read_text() == "kept"


async def test_a_pid_used_again_is_left_alone(journal: Journal) -> None:
    """The recorded start tells our dead process from a stranger's with the same pid."""
    stranger = await asyncio.create_subprocess_exec(sys.executable, "-c", "input()", stdin=asyncio.subprocess.PIPE)
    cluster = cluster_of(journal)
    job = record()
    write_request(journal, job)
    cluster.create_job(job)
    cluster.update_job("one-1", job.uid, state="running", pid=stranger.pid, mark="boot:1", started_at=cluster.clock())
    after = cluster_of(journal)
    jobs, watch = JobProcesses(after, FAKE), Watch(after)
    jobs.start_all()
    assert (await watch.until("failed")).cause == "disrupted"
    await jobs.close()
    stranger.stdin.write(b"\n")
    assert await stranger.wait() == 0


async def test_a_job_that_never_started_starts_now(journal: Journal) -> None:
    """A pending Job in the journal is an order, not a loss."""
    job = record()
    write_request(journal, job)
    cluster_of(journal).create_job(job)
    after = cluster_of(journal)
    jobs, watch = JobProcesses(after, FAKE), Watch(after)
    jobs.start_all()
    found = await watch.until("succeeded")
    await jobs.close()
    assert found.exit_code == 0


async def test_progress_is_the_runners_last_line(journal: Journal) -> None:
    """Stage, step and value come from the progress file; a half-written line is passed over."""
    job = await run_to_end(journal)
    jobs = JobProcesses(cluster_of(journal), FAKE)
    with (journal.run_folder(job.name, job.uid) / "progress.jsonl").open("a") as file:
        file.write('{"stage": "fin')
    progress = jobs.progress(job)
    assert progress is not None
    assert (progress.stage, progress.step, progress.total, progress.value) == ("prune", 2, 2, 0.5)


async def test_waiting_for_a_process_ends_when_it_does() -> None:
    """wait_gone answers True once it is gone and False when time is up."""
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", "input()", stdin=asyncio.subprocess.PIPE)
    mark = start_mark(child.pid)
    assert not await wait_gone(child.pid, mark, 0.01)
    child.stdin.write(b"\n")
    assert await wait_gone(child.pid, mark, 20)
    assert await child.wait() == 0


def test_last_lines_read_the_end_of_a_log(tmp_path: Path) -> None:
    """Only the end of a long log is read; blank lines, colours and rewritten lines do not count."""
    log = tmp_path / "log"
    log.write_bytes(b"x" * 50_000 + b"\n\n10%\r20%\r30%\n\x1b[1mdone\x1b[0m\n\xff\n")
    assert last_lines(log, count=3) == ["30%", "done", "\ufffd"]
    assert last_lines(tmp_path / "none") == []


def test_tracebacks_leave_the_line_that_names_the_exception(tmp_path: Path) -> None:
    """A chained traceback of a real process goes, with its announcement; what was logged around it stays."""
    script = (
        "import logging\nlogging.basicConfig(format='%(levelname)s %(message)s')\nlogging.warning('before')\n"
        "def inner():\n    raise KeyError('label')\n"
        "try:\n    try:\n        inner()\n"
        "    except KeyError as error:\n        raise ValueError('no labels') from error\n"
        "except ValueError:\n    logging.exception('traceback:')\nlogging.warning('after')\n"
    )
    with (tmp_path / "log").open("w") as log:
        subprocess.run((sys.executable, "-c", script), stderr=log, check=True)
    lines = last_lines(tmp_path / "log", count=100)
    assert "Traceback (most recent call last):" in lines
    kept = ["WARNING before", "KeyError: 'label'", "ValueError: no labels", "WARNING after"]
    assert without_tracebacks(lines) == kept
    cut = lines.index("Traceback (most recent call last):") + 1  # as where the log's end begins inside a traceback
    assert without_tracebacks(lines[cut:]) == kept[1:]
    assert without_tracebacks([]) == []
