"""A port among strangers: bombs, silence, slow and huge headers, floods; all on loopback, and bounded."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "integration" / "cluster"))

import floods

from modelpress_operator import http
from modelpress_operator.http import Server


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "TICK_SECONDS", 0.2)
    monkeypatch.setattr(http, "STOP_SECONDS", 0.2)


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """A server that reads bodies at /progress, answers at /readyz, and never comes to an answer at /never."""

    async def progress(request: web.Request) -> web.Response:
        return web.Response(text=str(len(await request.read())))

    async def readyz(_: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def never(_: web.Request) -> web.Response:
        await asyncio.sleep(60)
        raise AssertionError

    routes = [web.post("/progress", progress), web.get("/readyz", readyz), web.get("/never", never)]
    server = Server(routes, "127.0.0.1", 0)
    number = await server.start()
    yield number
    async with asyncio.timeout(5):  # whoever is still busy
        await server.stop()


async def away(function: Any, *arguments: Any) -> Any:
    """A blocking client in a thread."""
    return await asyncio.to_thread(function, *arguments)


@contextlib.asynccontextmanager
async def held(port: int, count: int, text: bytes = b"", addresses: int = 1) -> AsyncIterator[list[socket.socket]]:
    """floods.held, opened in a thread while the server's loop runs."""
    holding = floods.held(port, count, text, addresses)
    yield await away(holding.__enter__)
    await away(holding.__exit__, None, None, None)


PROBE = b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize("encoding", ["deflate", "gzip", "br", "identity", "zstd"])
async def test_no_body_is_unfolded(port: int, encoding: str) -> None:
    """A bomb of 256 MiB is refused by its header, in no time of the loop's."""
    floods.folded()
    before = time.process_time()
    assert await away(floods.bomb, port, encoding) == b"HTTP/1.1 415 Unsupported Media Type"
    assert await away(floods.ask, port, PROBE) == b"HTTP/1.1 200 OK"
    assert time.process_time() - before < 0.5, "unfolding takes a second of CPU"


async def test_a_refusal_ends_the_connection(port: int) -> None:
    """Nothing is waited for that was still to come: not of a refused body, not of an unknown path."""
    for head in (b"POST /progress HTTP/1.1\r\nContent-Encoding: gzip\r\n", b"POST /nowhere HTTP/1.1\r\n"):
        one = await away(floods.connect, port)
        one.sendall(head + b"Host: x\r\nContent-Length: 1000000\r\n\r\n" + b"a" * 1000)
        with one:
            answer = await away(_until_closed, one)
        assert answer.startswith((b"HTTP/1.1 415", b"HTTP/1.1 404"))
        assert b"Connection: close" in answer


def _until_closed(one: Any) -> bytes:
    one.settimeout(5)
    answer = b""
    try:
        while more := one.recv(65536):
            answer += more
    except ConnectionResetError:
        pass
    return answer


async def test_those_who_say_nothing_are_closed_and_keep_nobody_out(port: int) -> None:
    """300 silent connections and 200 slow headers: a probe is answered while they are there; soon they are gone."""
    async with held(port, 300, addresses=20) as silent, held(port, 200, b"GET / HTTP/1.1\r\nX-", 20) as slow:
        await asyncio.sleep(0.1)
        assert floods.alive(silent) + floods.alive(slow) <= http.MAX_CONNECTIONS
        for _ in range(20):
            assert await away(floods.ask, port, PROBE) == b"HTTP/1.1 200 OK"
        await away(floods.drip, slow, 0.8, 0.1)
        await asyncio.sleep(0.4)
        assert floods.alive(silent) == floods.alive(slow) == 0


async def test_one_address_has_its_share(port: int) -> None:
    """However many it opens, and a newcomer of its own is still let in."""
    async with held(port, 100) as silent:
        await asyncio.sleep(0.1)
        assert floods.alive(silent) == http.MAX_OF_ADDRESS
        asked = await away(floods.connect, port, "127.0.0.2")
        asked.sendall(PROBE)
        assert (await away(asked.recv, 15)) == b"HTTP/1.1 200 OK"
        asked.close()


async def test_requests_that_never_end_are_ended(port: int) -> None:
    """They count as busy, so that newcomers of that address are refused for a while, and no longer."""
    async with held(port, http.MAX_OF_ADDRESS, b"GET /never HTTP/1.1\r\nHost: x\r\n\r\n") as busy:
        await asyncio.sleep(0.1)
        assert floods.alive(busy) == http.MAX_OF_ADDRESS
        other = await away(floods.connect, port, "127.0.0.2")
        assert await away(_until_closed, other) == b""
        other.close()
        assert await away(floods.ask, port, PROBE) == b"HTTP/1.1 200 OK", "other addresses are served"
        await asyncio.sleep(0.2 * (http.ASKING_TICKS + 1))
        assert floods.alive(busy) == 0


@pytest.mark.parametrize(
    "head",
    [
        b"GET /readyz HTTP/1.1\r\nX: " + b"a" * 200_000,
        b"GET /readyz HTTP/1.1\r\n" + b"".join(b"X-%d: a\r\n" % number for number in range(500)),
        b"GET /" + b"a" * 50_000 + b" HTTP/1.1\r\n",
    ],
    ids=["long", "many", "line"],
)
async def test_headers_have_an_end(port: int, head: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """Refused, or closed without an answer; the log says nothing."""
    answer = await away(floods.ask, port, head + b"\r\nHost: x\r\n\r\n")
    assert answer in (b"", b"HTTP/1.0 400 Bad Request")
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_a_body_has_an_end(port: int) -> None:
    """Beyond the limit it is 413."""
    body = b"a" * (http.MAX_BODY_BYTES + 1)
    head = b"POST /progress HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    assert await away(floods.ask, port, head + body) == b"HTTP/1.1 413 Request Entity Too Large"


async def test_a_connection_serves_several_requests(port: int) -> None:
    """A scraper keeps it for the next one."""
    one = await away(floods.connect, port)
    with one:
        for _ in range(3):
            one.sendall(PROBE)
            assert (await away(one.recv, 1000)).startswith(b"HTTP/1.1 200 OK")
            await asyncio.sleep(0.15)
