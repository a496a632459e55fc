"""Pushing progress from a runner: what is sent, to whom, and that nothing of it can hurt the run."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelpress.scores import ScoreHistory
from modelpress_runner.process import push
from modelpress_runner.process.progress import Event, silent
from modelpress_runner.process.push import ProgressPush


@dataclass
class Receiver:
    """A server that keeps what it gets and answers as it is told."""

    url: str
    got: list[dict[str, Any]] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    answers: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    arrived: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def wait(self) -> dict[str, Any]:
        """The newest message, once there is one more."""
        assert self.arrived.acquire(timeout=30)
        return self.got[-1]


def receiver() -> Iterator[Receiver]:
    """A server on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            there.tokens.append(self.headers["Authorization"])
            there.got.append(json.loads(body))
            status, headers = there.answers.pop(0) if there.answers else (202, {})
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()  # from here on the other side may go on
            there.arrived.release()

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    there = Receiver(f"http://127.0.0.1:{server.server_address[1]}/progress")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield there
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def operator() -> Iterator[Receiver]:
    """The operator's replica that the address leads to."""
    yield from receiver()


@pytest.fixture
def leader() -> Iterator[Receiver]:
    """Another replica."""
    yield from receiver()


@pytest.fixture
def token(tmp_path: Path) -> Path:
    (tmp_path / "token").write_text("secret\n")
    return tmp_path / "token"


def event(step: int, value: float | None = None, stage: str = "finetune") -> Event:
    return Event(stage, step, 100, "message", value)


def test_a_message_holds_the_whole_history(operator: Receiver, token: Path) -> None:
    """Stage, step, total and every score so far by step; the token as bearer; the events go on to whoever had them."""
    seen: list[Event] = []
    with ProgressPush(operator.url, token, seen.append, interval=0.001) as report:
        report(event(1, 0.5))
        operator.wait()
        report(event(2))
        report(event(3, 0.75))
    assert operator.got[-1] == {
        "stage": "finetune",
        "step": 3,
        "total": 100,
        "points": [{"step": 1, "value": 0.5}, {"step": 3, "value": 0.75}],
    }
    assert set(operator.tokens) == {"Bearer secret"}
    assert [item.step for item in seen] == [1, 2, 3]


def test_what_comes_at_one_time_is_one_message(operator: Receiver, token: Path) -> None:
    """A thousand events within an interval make two messages at most: the first, and at the end the last."""
    with ProgressPush(operator.url, token, silent, interval=1000) as report:
        for step in range(1000):
            report(event(step, step / 1000))
    assert 1 <= len(operator.got) <= 2
    assert operator.got[-1]["step"] == 999


def test_nothing_new_sends_nothing(operator: Receiver, token: Path) -> None:
    """A run without events says nothing, and an end without news neither."""
    with ProgressPush(operator.url, token, silent, interval=0.001):
        pass
    assert operator.got == []
    with ProgressPush(operator.url, token, silent, interval=0.001) as report:
        report(event(1))
        operator.wait()
    assert len(operator.got) == 1


def test_a_follower_leads_to_the_leader(operator: Receiver, leader: Receiver, token: Path) -> None:
    """The redirected message arrives whole and with the token; the next one goes there directly."""
    operator.answers.append((307, {"Location": leader.url}))
    with ProgressPush(operator.url, token, silent, interval=0.001) as report:
        report(event(1, 0.5))
        assert leader.wait()["points"] == [{"step": 1, "value": 0.5}]
        report(event(2))
        assert leader.wait()["step"] == 2
    assert len(operator.got) == 1
    assert leader.tokens == ["Bearer secret"] * 2


def test_after_a_failure_the_first_address_is_asked_again(
    operator: Receiver, leader: Receiver, token: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A leader that leads no more is not asked for ever; the message is sent again."""
    monkeypatch.setattr(push, "MAX_BACKOFF", 0.001)
    operator.answers.append((307, {"Location": leader.url}))
    leader.answers += [(202, {}), (503, {})]
    with ProgressPush(operator.url, token, silent, interval=0.001) as report:
        report(event(1))
        leader.wait()
        operator.wait()
        report(event(2))
        leader.wait()
        assert operator.wait()["step"] == 2


@pytest.mark.parametrize("location", ["", "ftp://127.0.0.1/x", "file:///etc/passwd", "SELF"])
def test_redirects_to_nowhere_do_no_harm(operator: Receiver, token: Path, location: str) -> None:
    """Loops and other schemes are given up."""
    operator.answers += [(307, {"Location": location.replace("SELF", operator.url)})] * 10
    with ProgressPush(operator.url, token, silent, interval=1000) as report:
        report(event(1))
        operator.wait()
    assert len(operator.got) <= 2 * (push.HOPS + 1)


@pytest.mark.parametrize("trouble", ["refused", "silent", "token", "401"])
def test_nothing_hurts_the_run(operator: Receiver, token: Path, trouble: str) -> None:
    """Nobody listens, nobody answers, the token is gone, the token is refused: events and the end take no harm."""
    url = operator.url
    with socket.socket() as listener:
        if trouble == "refused":
            url = "http://127.0.0.1:1/progress"
        elif trouble == "silent":
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        elif trouble == "token":
            token.unlink()
        else:
            operator.answers += [(401, {})] * 10
        report = ProgressPush(url, token, silent, interval=0.001, timeout=0.1)
        for step in range(5):
            report(event(step, 0.5))
        report.close()
    assert not report._thread.is_alive()


def test_the_token_is_read_for_each_message(operator: Receiver, token: Path) -> None:
    """The kubelet renews it while the pod runs."""
    with ProgressPush(operator.url, token, silent, interval=0.001) as report:
        report(event(1))
        operator.wait()
        token.write_text("newer")
        report(event(2))
        operator.wait()
    assert operator.tokens == ["Bearer secret", "Bearer newer"]


def test_a_push_needs_an_address_and_a_token(token: Path, tmp_path: Path) -> None:
    """Without them, and in every process but the first of several, there is none."""
    given = {push.URL: "http://127.0.0.1:1", push.TOKEN: str(token)}
    assert push.reporting(silent, {}) is None
    assert push.reporting(silent, {**given, push.TOKEN: str(tmp_path / "none")}) is None
    assert push.reporting(silent, {**given, push.URL: "ftp://x"}) is None
    assert push.reporting(silent, {**given, "JOB_COMPLETION_INDEX": "1"}) is None
    assert push.reporting(silent, {**given, "RANK": "3"}) is None
    made = push.reporting(silent, {**given, "RANK": "0"})
    assert made is not None
    made.close()


@given(st.lists(st.tuples(st.integers(-5, 10**6), st.one_of(st.none(), st.floats())), max_size=300))
def test_histories_are_short_and_in_order(events: list[tuple[int, float | None]]) -> None:
    """At most 64 finite points, ascending, the first and the last among them; the message is below 64 KiB."""
    history, last = ScoreHistory(), {}
    for step, value in events:
        history.add(step, value)
        if value is not None and step >= 0 and abs(value) < float("inf"):
            last[step] = value
    points = [(point["step"], point["value"]) for point in history.points()]
    assert len(points) == min(len(last), 64)
    assert points == sorted(points)
    assert set(points) <= set(last.items())
    if last:
        assert points[0][0] == min(last)
        assert points[-1][0] == max(last)
    assert len(push.encode(event(1, stage="ä" * 5000), history)) <= 64 * 1024


def test_long_runs_stay_small() -> None:
    """Of a hundred thousand scores a bounded number is kept, the first and the newest among them."""
    history = ScoreHistory()
    for step in range(100_000):
        history.add(step, 0.5)
    points = [(point["step"], point["value"]) for point in history.points()]
    assert len(history._points) <= 16 * 64
    assert (points[0][0], points[-1][0], len(points)) == (0, 99_999, 64)
