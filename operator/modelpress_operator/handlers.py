"""Watching the cluster with kopf, in a thread and event loop of its own.

kopf lists, watches, reconnects, follows bookmarks and signs in again; it writes nothing, because only `on.event`
handlers are registered. What comes is taken from its HTTP session, object by object, so that none can stop the others,
and goes to the `Sink` in the operator's loop; so are two things that kopf tells nobody: that a listing is complete,
hence what has gone while nobody watched, and that a watch without events is alive. kopf itself gets empty listings
and bookmarks, which is what it needs to go on from the right version.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import ssl
import threading
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol, cast

import aiohttp
import kopf
from kubernetes.aio.client import Configuration
from yarl import URL

from modelpress.deepjson import decode

from .aio import CONNECT_SECONDS, PAGE, REQUEST_SECONDS, load_configuration
from .compact import transform
from .decode import Listing
from .metrics import Metrics
from .resources import JOBS, MANAGED_BY, MANAGER, PODS, WATCHED, RawObject, Resource

log = logging.getLogger(__name__)
SERVER_SECONDS, CLIENT_SECONDS, SILENT_SECONDS = 300, 310, 70  # the API server sends a bookmark about once a minute
HEARD_SECONDS = 1.0  # more often nobody needs to hear that a watch lives
SELECTED = {JOBS: f"{MANAGED_BY}={MANAGER}", PODS: f"{MANAGED_BY}={MANAGER}"}


class Sink(Protocol):
    """Receives watch events, in the operator's event loop."""

    def changed(self, resource: Resource, obj: RawObject) -> None:
        """An object as it is now, as compact.transform has it."""

    def deleted(self, resource: Resource, obj: RawObject) -> None:
        """An object is gone, which was as compact.transform has it."""

    def listed(self, resource: Resource, namespace: str | None, objects: list[RawObject], version: int) -> None:
        """All objects of a kind in a namespace (None: everywhere) at this version, as compact.transform has them."""

    def heard(self, resource: Resource) -> None:
        """A watch is alive."""


class WatchError(Exception):
    """A watch has ended that should not have."""


class Watcher:
    """kopf in a thread. `ended` is set when it, or one of its watches, has stopped, for whatever reason."""

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
        self._minded: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()
        self._there: asyncio.AbstractEventLoop | None = None  # kopf's
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
        if self._there is not None and self.failure is not None:
            with contextlib.suppress(RuntimeError):  # its loop may be closed already
                self._there.call_soon_threadsafe(self._give_up)
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, seconds)

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
        async def on_event(**_: Any) -> None:
            """Makes kopf watch; no event ever reaches it."""

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

    def mind(self) -> None:
        """The task that runs now watches something: its end is the watcher's.

        kopf logs that one of its watches has failed, and goes on without it.
        """
        task = asyncio.current_task()
        if task is not None and task not in self._minded:
            self._minded.add(task)
            self._there = task.get_loop()
            task.add_done_callback(self._task_ended)

    def _give_up(self) -> None:
        """Where one watch has died kopf waits for the others, but does not end them."""
        for task in list(self._minded):
            task.cancel()

    def _task_ended(self, task: asyncio.Task[Any]) -> None:
        if self._stop.is_set():
            return
        error = None if task.cancelled() else task.exception()
        self.failure = error or WatchError("a watch was given up")
        log.error("a watch has ended: %s", error or "given up")
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self.ended.set)

    async def page(self, url: URL, content: aiohttp.StreamReader) -> RawObject:
        """Read one page of a listing; what kopf gets of it: that it is there, and from which version on to watch.

        It would make a task and a memory of each object, to tell us of it once more.

        Raises:
            DecodeError: it is no listing.
        """
        found = _asked(url)
        assert found is not None
        # Here, in a thread of its own: 10,000 at once would keep the operator's loop from renewing its Lease.
        listing, page = Listing(), list[RawObject]()
        async for data in content.iter_any():
            page += [transform(found[0], decode(item)) for item in listing.feed(data)]
        answer = listing.rest()
        meta = answer.get("metadata") or {}
        objects = [*(self._pages.pop(found, []) if "continue" in url.query else ()), *page]
        if meta.get("continue"):
            self._pages[found] = objects
        else:
            self._tell(self._sink.listed, *found, objects, int(meta.get("resourceVersion") or 0))
            self._tell(self._sink.heard, found[0])
        return {**answer, "items": []}

    def event(self, url: URL, line: bytes) -> bytes:
        """One line of a watch; what kopf gets of it: how far it is, or the error that it must act on.

        Raises:
            DecodeError: it is none.
        """
        found = _asked(url)
        event = decode(line)
        if found is None or event["type"] not in ("ADDED", "MODIFIED", "DELETED"):
            return line
        obj = transform(found[0], event["object"])
        self._tell(self._sink.deleted if event["type"] == "DELETED" else self._sink.changed, found[0], obj)
        reached = {"resourceVersion": (obj.get("metadata") or {}).get("resourceVersion")}
        bookmark = {"apiVersion": found[0].api_version, "kind": found[0].kind, "metadata": reached}
        return json.dumps({"type": "BOOKMARK", "object": bookmark}).encode() + b"\n"

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
            if _asked(self.url) is not None:
                watcher.mind()
                if self.status == 200 and self.url.query.get("watch") == "true":
                    self.content = cast(aiohttp.StreamReader, _Tapped(self.content, watcher, self.url))
            return self

        async def json(self, **options: Any) -> Any:
            if self.status == 200 and _asked(self.url) is not None:
                return await watcher.page(self.url, self.content)
            return await super().json(**options)

    return ObservedResponse


class _Tapped:
    """The stream of a watch, its lines as Watcher.event gives them."""

    def __init__(self, stream: aiohttp.StreamReader, watcher: Watcher, url: URL) -> None:
        self._stream = stream
        self._watcher = watcher
        self._url = url

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
        begun: list[bytes] = []
        async for data in self._stream.iter_chunked(size):
            self._watcher.data(self._url)
            head, *lines = data.split(b"\n")
            if not lines:
                begun.append(head)
                continue
            whole = [b"".join([*begun, head]), *lines[:-1]]
            begun = [lines[-1]]
            for line in whole:
                if line.strip():
                    yield self._watcher.event(self._url, line + b"\n")


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
    # Who watches decides how a failure ends. kopf would kill this process ten minutes behind one.
    settings.process.ultimate_exiting_timeout = None
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
