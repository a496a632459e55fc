"""Pushes a run's progress to the operator while it goes on: a courtesy, which never fails or slows the run.

Each message holds the whole short history, so that any of them may be lost. What cannot be delivered is dropped; the
next message says more. On a cluster the pod has the address in MODELPRESS_PROGRESS_URL, and a token that is bound to
the pod and to the operator as its only audience.
"""

from __future__ import annotations

import http.client
import json
import logging
import math
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from modelpress.scores import ScoreHistory
from modelpress_runner.process.progress import Event, EventCallback

log = logging.getLogger("modelpress")

URL = "MODELPRESS_PROGRESS_URL"
TOKEN = "MODELPRESS_PROGRESS_TOKEN"
TOKEN_FILE = Path("/var/run/secrets/modelpress.dev/progress/token")
RANKS = ("JOB_COMPLETION_INDEX", "RANK")
MAX_BODY = 64 * 1024
MAX_STAGE = 200
INTERVAL = 5.0  # seconds between two messages
TIMEOUT = 3.0  # seconds for one connection, and for one answer
MAX_BACKOFF = 120.0
HOPS = 2  # from a follower to the leader, and once more if the leader has just changed
_REDIRECTS = (307, 308)


class ProgressPush:
    """Takes events, hands them on, and sends what is newest from a thread of its own. A context manager.

    Args:
        url: http or https address of the operator's progress server.
        token: file with the bearer token; it is read for each message, for the kubelet renews it.
        then: who gets the events, too.
        interval: least seconds between two messages.
        timeout: seconds for a connection, and for an answer; `close` waits hardly longer than that.
    """

    def __init__(
        self, url: str, token: Path, then: EventCallback, *, interval: float = INTERVAL, timeout: float = TIMEOUT
    ) -> None:
        self._url, self._token, self._then = url, token, then
        self._interval, self._timeout = interval, timeout
        self._history = ScoreHistory()
        self._latest: Event | None = None
        self._sent: Event | None = None
        self._closing = False
        self._failures = 0
        self._changed = threading.Condition()
        self._leader: str | None = None
        # The cluster's own address needs no proxy, and a proxy must not see the token.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect())
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
        self._thread.start()

    def __call__(self, event: Event) -> None:
        """Take an event; returns at once."""
        self._then(event)
        with self._changed:
            self._latest = event
            step = event.step if event.at is None else event.at
            self._history.add(step, event.value, event.metrics, own=event.at is not None)
            self._changed.notify()

    def __enter__(self) -> ProgressPush:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Send what is newest, if it has not been sent yet; gives up after a short while."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(self._timeout + 1)

    # The thread ------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        next_time = -math.inf
        while True:
            with self._changed:
                while not self._closing:
                    wait = next_time - time.monotonic()
                    if self._latest is not self._sent and wait <= 0:
                        break
                    self._changed.wait(wait if self._latest is not self._sent else None)
                event, closing = self._latest, self._closing
                body = None if event is None or event is self._sent else encode(event, self._history)
            if body is not None and self._send(body):
                self._sent = event
            if closing:
                return
            wait = self._interval * 2.0 ** min(self._failures, 10)
            next_time = time.monotonic() + max(self._interval, min(wait, MAX_BACKOFF))

    def _send(self, body: bytes) -> bool:
        """Whether the operator took it. Nothing that goes wrong here is worth more than a line in the log."""
        try:
            self._deliver(body)
        except Exception as error:
            self._leader = None
            self._failures += 1
            if self._failures == 1:
                log.info("progress is not reported at the moment, which does no harm (%s)", _reason(error))
            return False
        if self._failures:
            log.info("progress is reported again")
        self._failures = 0
        return True

    def _deliver(self, body: bytes) -> None:
        token = self._token.read_text(encoding="ascii").strip()
        url = self._leader or self._url
        for _ in range(HOPS + 1):
            request = urllib.request.Request(url, body, method="POST")
            request.add_header("Content-Type", "application/json")
            request.add_unredirected_header("Authorization", f"Bearer {token}")
            try:
                with self._opener.open(request, timeout=self._timeout) as response:
                    response.read(1024)
                self._leader = url if url != self._url else None
                return
            except urllib.error.HTTPError as error:
                with error:
                    if error.code not in _REDIRECTS:
                        raise
                    url = _target(url, error.headers.get("Location"))
        raise OSError("too many redirects")


def encode(event: Event, history: ScoreHistory) -> bytes:
    """The message as JSON, at most 64 KiB: {"stage", "step", "total", "points": [{"step", "value", "metrics"}]}.

    Metrics beside the score are left out where they would make it longer.
    """
    message: dict[str, Any] = {
        "stage": event.stage[:MAX_STAGE],
        "step": max(0, int(event.step)),
        "total": max(0, int(event.total)),
        "points": history.points(),
    }
    body = json.dumps(message, separators=(",", ":")).encode()
    if len(body) > MAX_BODY:
        message["points"] = [{"step": point["step"], "value": point["value"]} for point in message["points"]]
        body = json.dumps(message, separators=(",", ":")).encode()
    assert len(body) <= MAX_BODY
    return body


def reporting(then: EventCallback, environment: Mapping[str, str] | None = None) -> ProgressPush | None:
    """A push, where the environment names the operator's address and a token is there; else None."""
    environment = os.environ if environment is None else environment
    url = environment.get(URL, "")
    token = Path(environment.get(TOKEN) or TOKEN_FILE)
    ranks = (environment.get(name) or "0" for name in RANKS)
    if not url or any(rank != "0" for rank in ranks):  # one of several processes speaks for all
        return None
    if urlsplit(url).scheme not in ("http", "https") or not token.is_file():
        log.warning("progress is not reported: %s is %r, and the token is %s", URL, url, token)
        return None
    return ProgressPush(url, token, then)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Redirects are followed by hand: the library would drop the body of a POST."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _target(url: str, location: str | None) -> str:
    target = urljoin(url, location or "")
    before, after = urlsplit(url), urlsplit(target)
    if not location or after.scheme not in ("http", "https") or (before.scheme, after.scheme) == ("https", "http"):
        raise OSError(f"a redirect to {location!r}")
    return target


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"{error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError | http.client.HTTPException):
        return f"{type(error).__name__}: {getattr(error, 'reason', error)}"
    return f"{type(error).__name__}: {error}"
