"""Shared by all tests: one thread per process, so that runs repeat and two workers fit on two cores."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

# Started in the background of a script, a test run inherits an ignored SIGINT, and so would every process that a test
# starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Seeded, and without a clock: a busy machine is no defect.
settings.register_profile("modelpress", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("modelpress")

# Tests and modules stay until the end. Frameworks that call gc.collect() at every turn would go through all of them
# each time, half a second long; what is frozen is left out.
_frozen = 0


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """All tests are there, and what their files import."""
    _freeze()


@pytest.hookimpl(trylast=True)
def pytest_runtest_logfinish(nodeid: str) -> None:
    """A test is over; it may have imported one more framework."""
    if len(sys.modules) > _frozen + 100:
        _freeze()


def _freeze() -> None:
    global _frozen
    gc.collect()
    gc.freeze()
    _frozen = len(sys.modules)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Who gets which file."""
    if config.getoption("dist") != "loadfile":
        return None
    from waiting_apart import WaitingApart

    return WaitingApart(config, log)


# A worker that dies is not replaced (`--max-worker-restart 0`): at times xdist then waits for ever. What was not run is
# kept with what failed, so that `pytest --last-failed` runs it all.
_collected: set[str] = set()
_reported: set[str] = set()
_died: list[str] = []


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any, ids: list[str]) -> None:
    """In the process that hands out the tests, as are the others."""
    _collected.update(ids)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """The worker has ended; with an error if it was not told to."""
    if not error:
        return
    try:
        status = str(node.gateway._io.popen.wait(timeout=5))
    except subprocess.TimeoutExpired:  # it has lost its pipe to here, and nothing else
        status = "none: it still runs"
    except Exception as unknown:
        status = repr(unknown)
    _died.append(f"{node.gateway.id} (exit status {status})")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A test was run, or a worker died in it."""
    _reported.add(report.nodeid)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Before the cache is written."""
    left = _collected - _reported
    known = session.config.pluginmanager.get_plugin("lfplugin")
    if _died and left and known is not None:
        known.lastfailed.update(dict.fromkeys(left, True))
        print(f"\nworker {', '.join(_died)} died; {len(left)} tests were not run: pytest --last-failed runs them")
