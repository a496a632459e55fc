"""The order in which workers get files: those that wait never in more than two of them while there are others."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from waiting_apart import AT_ONCE, WAITING, WaitingApart
from xdist.remote import Producer


class Worker:
    """What the scheduler knows of one; it keeps what it is told to run."""

    shutting_down = False

    def __init__(self, name: str) -> None:
        self.gateway = SimpleNamespace(id=name)
        self.queue: list[int] = []

    def send_runtest_some(self, indices: list[int]) -> None:
        self.queue += indices

    def shutdown(self) -> None:
        self.shutting_down = True


@pytest.mark.parametrize("others", [0, 3, 40])
def test_files_that_wait_are_few_at_a_time(others: int) -> None:
    """Four workers, ten files that wait and some others, of three tests each: every test once, a file by one worker."""
    files = [f"{WAITING}test_{number}.py" for number in range(10)]
    files += [f"tests/unit/test_{number}.py" for number in range(others)]
    tests = [f"{file}::test_{number}" for file in files for number in range(3)]
    options = SimpleNamespace(tx=["4*popen"], numprocesses=4, loadscopereorder=False)
    config: Any = SimpleNamespace(option=options, getvalue=lambda name: getattr(options, name))
    scheduler = WaitingApart(config, Producer("files", enabled=False))
    workers: list[Any] = [Worker(f"gw{number}") for number in range(4)]
    for worker in workers:
        scheduler.add_node(worker)
        scheduler.add_node_collection(worker, tests)
    scheduler.schedule()
    ran: list[tuple[str, Any]] = []
    while any(worker.queue for worker in workers):
        now = [tests[worker.queue[0]] for worker in workers if worker.queue]
        if scheduler.workqueue and any(not name.startswith(WAITING) for name in scheduler.workqueue):
            assert sum(name.startswith(WAITING) for name in now) <= AT_ONCE
        for worker in workers:
            if worker.queue:
                index = worker.queue.pop(0)
                ran.append((tests[index], worker))
                scheduler.mark_test_complete(worker, index)
    assert sorted(name for name, _ in ran) == sorted(tests)
    assert len({(name.partition("::")[0], id(worker)) for name, worker in ran}) == len(files)
