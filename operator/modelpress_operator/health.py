"""Metrics and probes over HTTP.

/healthz: the process is worth keeping: every watch has been heard from lately. /readyz: it has seen the cluster once,
and does still; followers are ready, too. /metrics: Prometheus' text format.
"""

from __future__ import annotations

import time

from aiohttp import web

from .metrics import CONTENT_TYPE, Metrics
from .resources import WATCHED, Resource


class Health:
    """What the probes answer."""

    def __init__(self, metrics: Metrics, *, silence: float) -> None:
        self._metrics = metrics
        self._silence = silence
        started = time.monotonic()  # a watch that never speaks up is silent, too
        self._heard: dict[Resource, float] = dict.fromkeys(WATCHED, started)
        self.synced = False
        self.failing: str | None = None

    def heard(self, resource: Resource) -> None:
        """A watch is alive."""
        self._heard[resource] = time.monotonic()
        self._metrics.watch_activity.labels(resource.plural).set_to_current_time()

    def silent(self) -> list[str]:
        """The watches that have not been heard from for too long, with their silence in seconds."""
        now = time.monotonic()
        return [
            f"{resource.plural} ({now - at:.0f} s)" for resource, at in self._heard.items() if now - at > self._silence
        ]

    def problem(self) -> str | None:
        """Why the process should be started again."""
        if self.failing is not None:
            return self.failing
        silent = self.silent()
        return f"nothing heard from the watch of {', '.join(silent)}" if silent else None


def probe_routes(health: Health) -> list[web.RouteDef]:
    """The routes of the probes."""

    async def healthz(_: web.Request) -> web.Response:
        problem = health.problem()
        return web.Response(text="ok\n") if problem is None else web.Response(text=f"{problem}\n", status=503)

    async def readyz(_: web.Request) -> web.Response:
        problem = health.problem()
        if health.synced and problem is None:
            return web.Response(text="ok\n")
        return web.Response(text=f"{problem or 'the cluster has not been listed yet'}\n", status=503)

    return [web.get("/healthz", healthz), web.get("/readyz", readyz)]


def metrics_routes(metrics: Metrics) -> list[web.RouteDef]:
    """The route of the metrics."""

    async def exposition(_: web.Request) -> web.Response:
        return web.Response(body=metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    return [web.get("/metrics", exposition)]
