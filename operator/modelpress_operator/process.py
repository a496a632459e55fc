"""The operator as a process: starts the parts, waits for an end, stops them in good order.

Any part that fails ends the process: starting again, it derives everything from the cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import logging
import signal
from collections.abc import Coroutine
from typing import Any

from aiohttp import web

from .aio import AioClient, load_configuration
from .cache import Cache
from .controller import Controller
from .events import EventWriter
from .execute import Executor, Render
from .handlers import Watcher
from .health import Health, metrics_routes, probe_routes
from .http import Server
from .lease import Leadership, LeaseLostError
from .metrics import Metrics
from .progress import CachedPods, KeySet, ProgressServer, StatusWrites, TokenVerifier
from .resources import WATCHED, RawObject, Resource
from .settings import Settings

log = logging.getLogger(__name__)
STOPPED, FAILED = 0, 1
FLUSH_SECONDS = 2.0


class Feed:
    """From the watcher into cache and health."""

    def __init__(self, cache: Cache, health: Health, namespaces: tuple[str, ...]) -> None:
        self._cache = cache
        self._health = health
        self._scopes: tuple[str | None, ...] = namespaces or (None,)
        self.synced = asyncio.Event()

    def changed(self, resource: Resource, obj: RawObject) -> None:
        """See handlers.Sink."""
        self._cache.put(resource, obj, whole=False)
        self._health.heard(resource)

    def deleted(self, resource: Resource, obj: RawObject) -> None:
        """See handlers.Sink."""
        self._cache.remove(resource, obj)
        self._health.heard(resource)

    def listed(self, resource: Resource, namespace: str | None, objects: list[RawObject], version: int) -> None:
        """See handlers.Sink."""
        self._cache.replace(resource, namespace, objects, version)
        if not self.synced.is_set() and all(
            self._cache.listed(one, scope) for one in WATCHED for scope in self._scopes
        ):
            log.info("the cluster is listed")
            self._health.synced = True
            self.synced.set()

    def heard(self, resource: Resource) -> None:
        """See handlers.Sink."""
        self._health.heard(resource)


async def serve(settings: Settings, render: Render) -> int:
    """Run until SIGTERM or SIGINT, or until a part fails; the process's exit code.

    Raises:
        ConnectionSettingsError: there is no way to the API server.
        OSError: the HTTP port is taken.
    """
    metrics, cache = Metrics(), Cache()
    agent = "modelpress-operator"
    client = AioClient(await load_configuration(settings.kubeconfig), metrics, user_agent=agent)
    health = Health(metrics, silence=settings.watch_silence_seconds)
    leadership = Leadership(
        client,
        metrics,
        namespace=settings.lease_namespace,
        name=settings.lease_name,
        identity=settings.identity,
        seconds=settings.lease_seconds,
        address=settings.address,
    )
    events = EventWriter(client, metrics, identity=settings.identity)
    writes = StatusWrites(client, cache, leadership.check)
    executor = Executor(client, cache, leadership, events, metrics, render, lambda: dt.datetime.now(dt.UTC), writes)
    controller = Controller(client, cache, executor, metrics, lost_after=settings.lost_pod_seconds)
    feed = Feed(cache, health, settings.namespaces)
    watcher = Watcher(
        feed, metrics, namespaces=settings.namespaces, kubeconfig=settings.kubeconfig, user_agent=f"{agent}/watch"
    )
    progress = ProgressServer(
        TokenVerifier(KeySet(client.read), settings.progress_audience),
        CachedPods(cache),
        leadership,
        writes.accept,
        count=lambda status: metrics.progress.labels(str(status)).inc(),
    )
    servers = _servers(
        settings,
        metrics=(settings.port, metrics_routes(metrics)),
        probes=(settings.probe_port, probe_routes(health)),
        progress=(settings.progress_port, progress.routes()),
    )
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    for what, server in servers.items():
        log.info("%s: port %d", what, await server.start())

    async def reconcile() -> None:
        await feed.synced.wait()
        await leadership.acquired.wait()
        await controller.run(settings.workers)

    watcher.start()
    parts = _Parts(
        events=events.run(),
        lease=leadership.run(),
        progress=writes.run(),
        watcher=watcher.ended.wait(),
        reconcile=reconcile(),
    )
    try:
        ended = await parts.first(stop)
        code = STOPPED if ended is None else FAILED
        if ended is not None:
            health.failing = f"{ended} has ended"
    finally:
        await parts.cancel("reconcile", "progress")
        await events.flush(FLUSH_SECONDS)
        await parts.cancel("lease", "events", "watcher")
        await leadership.release()
        await watcher.stop()
        for server in servers.values():
            await server.stop()
        await client.close()
    log.info("stopped")
    return code


def _servers(settings: Settings, **wanted: tuple[int, list[web.RouteDef]]) -> dict[str, Server]:
    """One server for each port, by what it serves; port 0 is a free one for each."""
    ports: dict[tuple[int, str], tuple[list[str], list[web.RouteDef]]] = {}
    for name, (port, routes) in wanted.items():
        names, together = ports.setdefault((port, "" if port else name), ([], []))
        names.append(name)
        together += routes
    return {", ".join(names): Server(routes, settings.host, port) for (port, _), (names, routes) in ports.items()}


class _Parts:
    """Tasks that should run until they are cancelled."""

    def __init__(self, **parts: Coroutine[Any, Any, Any]) -> None:
        self._tasks = {name: asyncio.create_task(part, name=name) for name, part in parts.items()}

    async def first(self, stop: asyncio.Event) -> str | None:
        """The name of the first that ends by itself; None once `stop` is set."""
        stopping = asyncio.create_task(stop.wait())
        try:
            done, _ = await asyncio.wait((stopping, *self._tasks.values()), return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
        for name, task in self._tasks.items():
            if task in done and not stop.is_set():
                error = task.exception()
                if isinstance(error, LeaseLostError):
                    log.error("%s", error)
                else:
                    log.error("%s has ended", name, exc_info=error)
                return name
        return None

    async def cancel(self, *names: str) -> None:
        """Cancel these and wait for their end."""
        for name in names:
            self._tasks[name].cancel()
        for name in names:
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await self._tasks[name]
