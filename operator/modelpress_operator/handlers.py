"""Watching the cluster with kopf, in a thread and event loop of its own.

kopf lists, watches, reconnects, follows bookmarks and signs in again; it writes nothing, because only `on.event`
handlers are registered. What it hears goes to the `Sink` in the operator's loop. Two things kopf does not tell
handlers are taken from its HTTP session: that a listing is complete, hence what has gone while nobody watched; and
that a watch without events is alive, as its bookmarks show.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import ssl
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol, cast

import aiohttp
import kopf
from kubernetes.aio.client import Configuration
from yarl import URL

from .aio import CONNECT_SECONDS, PAGE, REQUEST_SECONDS, load_configuration
from .compact import kept
from .metrics import Metrics
from .resources import JOBS, MANAGED_BY, MANAGER, PODS, WATCHED, RawObject, Resource

log = logging.getLogger(__name__)
SERVER_SECONDS, CLIENT_SECONDS, SILENT_SECONDS = 300, 310, 70  # the API server sends a bookmark about once a minute
HEARD_SECONDS = 1.0  # more often nobody needs to hear that a watch lives
SELECTED = {JOBS: f"{MANAGED_BY}={MANAGER}", PODS: f"{MANAGED_BY}={MANAGER}"}


class Sink(Protocol):
    """Takes in what is heard, in the operator's event loop."""

    def changed(self, resource: Resource, obj: RawObject) -> None:
        """An object as it is now."""

    def deleted(self, resource: Resource, obj: RawObject) -> None:
        """An object is gone."""

    def listed(self, resource: Resource, namespace: str | None, objects: list[RawObject], version: int) -> None:
        """All objects of a kind in a namespace (None: everywhere) at this version, as compact.kept has them."""

    def heard(self, resource: Resource) -> None:
        """A watch is alive."""


class Watcher:
    """kopf in a thread. `ended` is set when it has stopped, for whatever reason."""

    def __init__(
        self, sink: Sink, metrics: Metrics, *, namespaces: tuple[str, ...], kubeconfig: str | None, user_agent: str
    ) -> None:
        self._sink = sink
        self._metrics = metrics
        self._namespaces = namespaces
        self._kubeconfig = kubeconfig
        self._user_agent = user_agent
        self._loop = asyncio.get_running_loop()
        self._pages: dict[tuple[Resource, str | None], list[RawObject]] = {}
        self._heard: dict[Resource, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kopf", daemon=True)
        self.ended = asyncio.Event()
        self.failure: BaseException | None = None

    def start(self) -> None:
        """Begin to list and to watch."""
        self._thread.start()

    async def stop(self, seconds: float = 10.0) -> None:
        """Stop watching; waits for that at most so long."""
        self._stop.set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.ended.wait(), seconds)

    def _run(self) -> None:
        try:
            kopf.run(
                registry=self._registry(),
                settings=_kopf_settings(),
                standalone=True,
                clusterwide=not self._namespaces,
                namespaces=self._namespaces,
                stop_flag=self._stop,
            )
        except BaseException as error:
            self.failure = error
            log.exception("watching has failed")
        finally:
            with contextlib.suppress(RuntimeError):  # the operator's loop may be closed already
                self._loop.call_soon_threadsafe(self.ended.set)

    def _tell(self, method: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(method, *arguments)

    # What kopf calls -------------------------------------------------------------------------------------------------

    def _registry(self) -> kopf.OperatorRegistry:
        registry = kopf.OperatorRegistry()
        for resource in WATCHED:
            self._watch(registry, resource)
        kopf.on.login(registry=registry)(self._sign_in)
        return registry

    def _watch(self, registry: kopf.OperatorRegistry, resource: Resource) -> None:
        async def on_event(event: Any, **_: Any) -> None:
            method = self._sink.deleted if event["type"] == "DELETED" else self._sink.changed
            self._tell(method, resource, event["object"])

        kopf.on.event(resource.group, resource.version, resource.plural, id=resource.plural, registry=registry)(
            on_event
        )

    async def _sign_in(self, **_: Any) -> kopf.AiohttpSession:
        configuration = await load_configuration(self._kubeconfig)
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=_tls(configuration)),
            headers={"User-Agent": self._user_agent},
            response_class=_response_class(self),
            middlewares=(_authorizing(configuration),),
            read_bufsize=2**21,
        )
        return kopf.AiohttpSession(server=str(configuration.host), aiohttp_session=session)

    # What its session tells ------------------------------------------------------------------------------------------

    def answered(self, url: URL, status: int) -> None:
        """Count a request."""
        found = _asked(url)
        if found is not None:
            verb = "watch" if url.query.get("watch") == "true" else "list"
            self._metrics.api_requests.labels(verb, found[0].plural, str(status)).inc()

    def page(self, url: URL, answer: RawObject) -> RawObject:
        """One page of a listing; what kopf gets of it: that it is there, and from which version on to watch.

        It would make a task and a memory of each object, to tell us of it once more.
        """
        found = _asked(url)
        if found is None:
            return answer
        meta = answer.get("metadata") or {}
        # Here, in a thread of its own: 10,000 at once would keep the operator's loop from renewing its Lease.
        page = [kept(found[0], obj) for obj in answer.get("items") or ()]
        objects = [*(self._pages.pop(found, []) if "continue" in url.query else ()), *page]
        if meta.get("continue"):
            self._pages[found] = objects
        else:
            self._tell(self._sink.listed, *found, objects, int(meta.get("resourceVersion") or 0))
            self._tell(self._sink.heard, found[0])
        return {**answer, "items": []}

    def data(self, url: URL) -> None:
        """A watch said something, a bookmark at least."""
        found = _asked(url)
        if found is None:
            return
        now = time.monotonic()
        if now - self._heard.get(found[0], -math.inf) >= HEARD_SECONDS:
            self._heard[found[0]] = now
            self._tell(self._sink.heard, found[0])


def _asked(url: URL) -> tuple[Resource, str | None] | None:
    """Which collection a URL names, if it is one that is watched."""
    head, _, plural = url.path.rpartition("/")
    resource = next((one for one in WATCHED if one.plural == plural), None)
    if resource is None:
        return None
    if head.endswith(resource.path(None).rpartition("/")[0]):
        return resource, None
    start, _, namespace = head.rpartition("/")
    fits = start.endswith(resource.path(None).rpartition("/")[0] + "/namespaces")
    return (resource, namespace) if fits else None


def _response_class(watcher: Watcher) -> type[aiohttp.ClientResponse]:
    class ObservedResponse(aiohttp.ClientResponse):
        """Shows the watcher what kopf reads."""

        async def start(self, connection: Any) -> aiohttp.ClientResponse:
            await super().start(connection)
            watcher.answered(self.url, self.status)
            if self.status == 200 and self.url.query.get("watch") == "true":
                self.content = cast(aiohttp.StreamReader, _Tapped(self.content, lambda: watcher.data(self.url)))
            return self

        async def json(self, **options: Any) -> Any:
            answer = await super().json(**options)
            if self.status == 200 and isinstance(answer, dict) and "items" in answer:
                return watcher.page(self.url, answer)
            return answer

    return ObservedResponse


class _Tapped:
    """A stream that tells when data is read from it, and is otherwise the stream that it wraps."""

    def __init__(self, stream: aiohttp.StreamReader, told: Callable[[], None]) -> None:
        self._stream = stream
        self._told = told

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
        async for data in self._stream.iter_chunked(size):
            self._told()
            yield data


def _authorizing(configuration: Configuration) -> aiohttp.ClientMiddlewareType:
    """Signs every request with the token of the moment; the library reads rotated ones again."""

    async def authorize(
        request: aiohttp.ClientRequest, send: Callable[[aiohttp.ClientRequest], Awaitable[aiohttp.ClientResponse]]
    ) -> aiohttp.ClientResponse:
        token = await configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
        if token:
            request.headers["Authorization"] = token
        return await send(request)

    return authorize


def _tls(configuration: Configuration) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert, cadata=configuration.ca_cert_data)
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, keyfile=configuration.key_file)
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _kopf_settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True  # what is watched never changes, and namespaced rights do not reach further
    settings.watching.server_timeout = SERVER_SECONDS
    settings.watching.client_timeout = CLIENT_SECONDS
    settings.watching.connect_timeout = settings.networking.connect_timeout = CONNECT_SECONDS
    settings.watching.inactivity_timeout = SILENT_SECONDS
    settings.watching.chunk_size = PAGE
    settings.networking.request_timeout = REQUEST_SECONDS
    settings.networking.enforce_retry_after = True
    settings.queueing.idle_timeout = 1.0  # what a worker that waits for more events of one object costs is memory
    for resource, selector in SELECTED.items():
        settings.watching.label_selectors[resource.group, resource.version, resource.plural] = selector
    return settings
