"""When a request to stop raises."""

from __future__ import annotations

import os
import signal

import pytest

from modelpress_runner.process.stopping import StopFlag, Stopped


def test_a_request_raises_at_the_next_safe_point() -> None:
    """Not before."""
    stop = StopFlag()
    stop()
    stop.ask()
    assert stop.asked
    with pytest.raises(Stopped):
        stop()


def test_within_at_once_the_request_itself_raises() -> None:
    """And one that was made before raises at its begin."""
    stop = StopFlag()
    with pytest.raises(Stopped), stop.at_once():
        stop.ask()
    with pytest.raises(Stopped), stop.at_once():
        pytest.fail("it begins")


def test_at_once_nests() -> None:
    """Behind an inner stretch the outer one goes on; behind both of them a request waits for a safe point."""
    stop = StopFlag()
    with stop.at_once():
        with stop.at_once():
            pass
        with pytest.raises(Stopped):
            stop.ask()
    other = StopFlag()
    with other.at_once(), other.at_once():
        pass
    other.ask()


def test_gracefully_ends_a_stretch_early() -> None:
    """A request waits for a safe point then, also behind a stretch within; the next stretch is one again."""
    stop = StopFlag()
    with stop.at_once():
        stop.gracefully()
        with stop.at_once():
            pass
        stop.ask()
        with pytest.raises(Stopped):
            stop()
    again = StopFlag()
    with again.at_once():
        again.gracefully()
    with pytest.raises(Stopped), again.at_once():
        again.ask()


def test_gracefully_within_leaves_the_outer_stretch() -> None:
    """It holds to the end of the innermost one."""
    stop = StopFlag()
    with stop.at_once():
        with stop.at_once():
            stop.gracefully()
        with pytest.raises(Stopped):
            stop.ask()


def test_who_is_told_nests() -> None:
    """The inner one while it is there, the outer one again behind it, and at once if somebody has asked before."""
    stop, heard = StopFlag(), []
    with stop.told(lambda: heard.append("outer")):
        with stop.told(lambda: heard.append("inner")):
            stop.ask()
        stop.ask()
    stop.ask()
    assert heard == ["inner", "outer"]
    with stop.told(lambda: heard.append("late")):
        assert heard[-1] == "late"


def test_a_signal_is_a_request() -> None:
    """SIGTERM, once it is installed."""
    before = signal.getsignal(signal.SIGTERM)
    stop = StopFlag()

    def terminated() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        stop()  # the handler runs between two instructions

    try:
        stop.install()
        with pytest.raises(Stopped), stop.at_once():
            terminated()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert stop.asked
