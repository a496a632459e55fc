"""Writes down what a watcher hears of a cluster: every version of our objects, of Jobs, pods and Events."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from control_plane import ControlPlane
from fake_kubelet import Connection

PATHS = {
    "CompressionJob": "/apis/modelpress.dev/v1alpha1/compressionjobs",
    "CompressionSweep": "/apis/modelpress.dev/v1alpha1/compressionsweeps",
    "Job": "/apis/batch/v1/jobs",
    "Pod": "/api/v1/pods",
    "Event": "/apis/events.k8s.io/v1/events",
}


@dataclass(frozen=True)
class Seen:
    """One version of an object; `at` is when its news arrived, by the monotonic clock."""

    at: float
    type: str  # ADDED, MODIFIED, DELETED
    kind: str
    object: dict[str, Any]

    @property
    def namespace(self) -> str:
        return str(self.object["metadata"]["namespace"])

    @property
    def name(self) -> str:
        return str(self.object["metadata"]["name"])

    @property
    def version(self) -> int:
        """Versions of all kinds grow together: they are etcd's."""
        return int(self.object["metadata"]["resourceVersion"])

    @property
    def status(self) -> dict[str, Any]:
        return self.object.get("status") or {}


class Recorder:
    """A context manager; watches from its beginning to its end."""

    def __init__(self, cluster: ControlPlane) -> None:
        self._cluster = cluster
        self._seen: list[Seen] = []
        self._news = threading.Condition()
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._watch, args=(kind,), daemon=True) for kind in PATHS]

    def __enter__(self) -> Recorder:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(10)

    def first(self, what: str, fits: Callable[[Seen], bool], *, after: float = 0.0, seconds: float = 90) -> Seen:
        """The first that fits, of what was heard since `after`; waits for it."""
        deadline, place = time.monotonic() + seconds, 0
        with self._news:
            while True:
                for seen in self._seen[place:]:
                    if seen.at >= after and fits(seen):
                        return seen
                place = len(self._seen)
                left = deadline - time.monotonic()
                if left <= 0:
                    raise AssertionError(f"waited {seconds:g} s in vain for {what}")
                self._news.wait(left)

    def _watch(self, kind: str) -> None:
        with contextlib.closing(Connection(self._cluster)) as talk:
            version = ""
            while not self._stopped.is_set():
                try:
                    version = self._follow(talk, kind, version)
                except (OSError, http.client.HTTPException):
                    talk.reopen()
                    self._stopped.wait(0.2)

    def _follow(self, talk: Connection, kind: str, version: str) -> str:
        if not version:
            _, listing = talk("GET", PATHS[kind])
            version = listing["metadata"]["resourceVersion"]
        query = {"watch": "true", "resourceVersion": version, "timeoutSeconds": "3"}
        for event in talk.stream(f"{PATHS[kind]}?{urllib.parse.urlencode(query)}"):
            if event["type"] == "ERROR":
                return ""
            version = event["object"]["metadata"]["resourceVersion"]
            with self._news:
                self._seen.append(Seen(time.monotonic(), event["type"], kind, event["object"]))
                self._news.notify_all()
        return version
