"""kopf as watcher, against an HTTP server that plays the API server's part: lists, watches, bookmarks, expiry."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from modelpress_operator.cache import Cache
from modelpress_operator.handlers import Watcher
from modelpress_operator.health import Health
from modelpress_operator.metrics import Metrics
from modelpress_operator.process import Feed
from modelpress_operator.resources import COMPRESSION_JOBS, JOBS, PODS, WATCHED, RawObject, Resource


def thing(resource: Resource, name: str, version: int) -> RawObject:
    """An object as a watch event has it."""
    meta = {"name": name, "namespace": "n", "uid": f"uid-{name}", "resourceVersion": str(version)}
    return {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": meta}


class Server:
    """Discovery, listings in pages of one object, and watches that a test writes into."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, RawObject]] = {resource.plural: {} for resource in WATCHED}
        self.raw: dict[str, str] = {}  # by name: an object's JSON as it is sent
        self.version = 100
        self.streams: dict[str, asyncio.Queue[RawObject | bytes | None]] = {}
        self.queries: list[tuple[str, dict[str, str]]] = []
        self.methods: set[str] = set()
        self.app = web.Application(middlewares=[self._note])
        self.app.router.add_get("/api", self._core_versions)
        self.app.router.add_get("/api/v1", self._core)
        self.app.router.add_get("/apis", self._groups)
        self.app.router.add_get("/apis/{group}/{version}", self._group)
        for path in ("/api/v1/namespaces/{ns}/{plural}", "/apis/{group}/{version}/namespaces/{ns}/{plural}"):
            self.app.router.add_get(path, self._collection)

    @web.middleware
    async def _note(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.methods.add(request.method)
        answer: web.StreamResponse = await handler(request)
        return answer

    async def _core_versions(self, _: web.Request) -> web.Response:
        return web.json_response({"kind": "APIVersions", "versions": ["v1"]})

    async def _core(self, _: web.Request) -> web.Response:
        return self._kinds("", "v1")

    def _kinds(self, group: str, version: str) -> web.Response:
        names = [(one.plural, one.kind) for one in WATCHED if (one.group, one.version) == (group, version)]
        names += [("namespaces", "Namespace")] if not group else []
        names += [("customresourcedefinitions", "CustomResourceDefinition")] if group == "apiextensions.k8s.io" else []
        verbs = ["list", "watch", "patch", "get"]
        found = [{"name": n, "singularName": n, "kind": k, "namespaced": True, "verbs": verbs} for n, k in names]
        return web.json_response({"kind": "APIResourceList", "resources": found})

    async def _groups(self, _: web.Request) -> web.Response:
        versions = {one.group: one.version for one in WATCHED if one.group} | {"apiextensions.k8s.io": "v1"}
        groups = [
            {"name": g, "versions": [{"version": v}], "preferredVersion": {"version": v}} for g, v in versions.items()
        ]
        return web.json_response({"kind": "APIGroupList", "groups": groups})

    async def _group(self, request: web.Request) -> web.Response:
        return self._kinds(request.match_info["group"], request.match_info["version"])

    async def _collection(self, request: web.Request) -> web.StreamResponse:
        plural, query = request.match_info["plural"], dict(request.query)
        self.queries.append((plural, query))
        if query.get("watch") == "true":
            return await self._watch(request, plural)
        names = sorted(self.objects[plural])
        start = int(query.get("continue", "0"))
        meta = {"resourceVersion": str(self.version)}
        if start + 1 < len(names):
            meta["continue"] = str(start + 1)
        items = [json.dumps(self.objects[plural][name]) for name in names[start : start + 1]]
        items = [self.raw.get(name, item) for name, item in zip(names[start : start + 1], items, strict=True)]
        text = f'{{"kind": "List", "items": [{",".join(items)}], "metadata": {json.dumps(meta)}}}'
        return web.Response(text=text, content_type="application/json")

    async def _watch(self, request: web.Request, plural: str) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        queue = self.streams[plural] = asyncio.Queue()
        while (event := await queue.get()) is not None:
            await response.write((event if isinstance(event, bytes) else json.dumps(event).encode()) + b"\n")
        return response

    def tell(self, resource: Resource, type_: str, obj: RawObject) -> None:
        """Write an event into the watch of a kind."""
        self.streams[resource.plural].put_nowait({"type": type_, "object": obj})

    def close(self) -> None:
        """End all watches."""
        for queue in self.streams.values():
            queue.put_nowait(None)


class Watching:
    """A watcher on such a server, and what it feeds."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.metrics = Metrics()
        self.cache = Cache()
        self.health = Health(self.metrics, silence=300)
        self.heard: list[Resource] = []
        self.dies = False
        self.watcher: Watcher | None = None
        feed = Feed(self.cache, self.health, ("n",))
        self.feed = feed

    def names(self, resource: Resource) -> set[str]:
        """Names of the objects of a kind in the cache."""
        return {obj["metadata"]["name"] for obj in self.cache.all(resource)}


@pytest.fixture
async def watching(tmp_path: Path) -> AsyncIterator[Watching]:
    """Three Jobs are there when it starts."""
    server = Server()
    for name in ("a", "b", "c"):
        server.objects["jobs"][name] = thing(JOBS, name, 50)
    async with TestServer(server.app) as http:
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": str(http.make_url("")).rstrip("/")}}],
            "users": [{"name": "u", "user": {"token": "secret"}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        path = tmp_path / "kubeconfig"
        path.write_text(json.dumps(config))
        watching = Watching(server)
        watcher = Watcher(
            watching.feed, watching.metrics, namespaces=("n",), kubeconfig=str(path), user_agent="test/watch"
        )
        watching.watcher = watcher
        watcher.start()
        async with asyncio.timeout(20):
            await watching.feed.synced.wait()
        await until(lambda: len(server.streams) == 4)
        yield watching
        server.close()
        await watcher.stop()
        assert watcher.failure is None or watching.dies
        assert "kopf" not in {thread.name for thread in threading.enumerate()}
        assert server.methods == {"GET"}


async def until(check: Any) -> None:
    """Until it is so: two event loops, so there is nothing else to wait for."""
    async with asyncio.timeout(20):
        while not check():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_lists_page_by_page_then_watches(watching: Watching) -> None:
    """All pages are one listing; only what is ours is asked for; events go on from the listing's version."""
    assert watching.names(JOBS) == {"a", "b", "c"}
    assert watching.health.synced
    listings = [query for plural, query in watching.server.queries if plural == "jobs" and "watch" not in query]
    assert [query.get("continue") for query in listings] == [None, "1", "2"]
    selector = "app.kubernetes.io/managed-by=modelpress-operator"
    for plural, query in watching.server.queries:
        assert query.get("labelSelector") == (selector if plural in ("jobs", "pods") else None)
        if "watch" in query:
            assert (query["resourceVersion"], query["allowWatchBookmarks"]) == ("100", "true")
    watching.server.tell(JOBS, "ADDED", thing(JOBS, "d", 101))
    watching.server.tell(JOBS, "DELETED", thing(JOBS, "a", 102))
    await until(lambda: watching.names(JOBS) == {"b", "c", "d"})


async def test_what_went_while_nobody_watched_is_noticed(watching: Watching) -> None:
    """After an expired version (410) the new listing tells what is gone, not only what is there."""
    del watching.server.objects["jobs"]["b"]
    watching.server.objects["jobs"]["e"] = thing(JOBS, "e", 150)
    watching.server.version = 200
    watching.server.tell(JOBS, "ERROR", {"kind": "Status", "code": 410, "reason": "Expired"})
    await until(lambda: watching.names(JOBS) == {"a", "c", "e"})


async def test_a_bookmark_shows_that_a_watch_lives(watching: Watching, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though no handler ever sees it."""
    heard: list[Resource] = []
    monkeypatch.setattr(watching.health, "heard", heard.append)
    monkeypatch.setattr("modelpress_operator.handlers.HEARD_SECONDS", 0.0)
    bookmark = {"kind": "Pod", "apiVersion": "v1", "metadata": {"resourceVersion": "300"}}
    watching.server.tell(PODS, "BOOKMARK", bookmark)
    await until(lambda: heard == [PODS])


def deep(name: str, version: int, depth: int = 1200) -> str:
    """The JSON of a CompressionJob whose model takes lists in lists."""
    raw = thing(COMPRESSION_JOBS, name, version) | {"spec": {"model": {"args": {"a": "@"}}}}
    return json.dumps(raw).replace('"@"', "[" * depth + "]" * depth)


@pytest.mark.parametrize("depth", [100, 400, 1200, 9000])
async def test_a_deep_object_stops_neither_a_watch_nor_a_listing(watching: Watching, depth: int) -> None:
    """It is there with its metadata and why it is not read; what comes after it is heard, and listed with it."""
    server = watching.server
    event = f'{{"type": "ADDED", "object": {deep("deep", 101, depth)}}}'
    server.streams["compressionjobs"].put_nowait(event.encode())
    server.tell(COMPRESSION_JOBS, "ADDED", thing(COMPRESSION_JOBS, "next", 102))
    await until(lambda: watching.names(COMPRESSION_JOBS) == {"deep", "next"})
    there = watching.cache.get(COMPRESSION_JOBS, "n", "deep")
    assert there is not None
    assert there["unread"]["message"].endswith("nested deeper than 64 levels, or containing itself; write it flatter")
    for name in ("deep", "next", "other"):
        server.objects["compressionjobs"][name] = thing(COMPRESSION_JOBS, name, 150)
    server.raw["deep"] = deep("deep", 150, depth)
    server.version = 200
    server.tell(COMPRESSION_JOBS, "ERROR", {"kind": "Status", "code": 410, "reason": "Expired"})
    await until(lambda: watching.names(COMPRESSION_JOBS) == {"deep", "next", "other"})
    assert watching.watcher is not None
    assert not watching.watcher.ended.is_set()


@pytest.mark.parametrize("line", [b'{"type": "ERROR", "object": {"code": 500}}', b"nonsense", b'{"type": "ADDED"}'])
async def test_a_watch_that_dies_ends_the_watcher(watching: Watching, line: bytes) -> None:
    """kopf would go on without it, and nothing of that kind would be heard again."""
    watching.dies = True
    watcher = watching.watcher
    assert watcher is not None
    watching.server.streams["compressionjobs"].put_nowait(line)
    async with asyncio.timeout(10):
        await watcher.ended.wait()
    assert watcher.failure is not None


async def test_kopf_goes_on_from_what_was_heard(watching: Watching) -> None:
    """A watch that is opened again begins at the last version that was seen, though kopf sees no object."""
    watching.server.tell(JOBS, "ADDED", thing(JOBS, "d", 123))
    await until(lambda: "d" in watching.names(JOBS))
    watching.server.streams["jobs"].put_nowait(None)
    await until(
        lambda: any(
            query.get("resourceVersion") == "123" for plural, query in watching.server.queries if plural == "jobs"
        )
    )
