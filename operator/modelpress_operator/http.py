"""HTTP servers open to untrusted clients: whatever these send or fail to send, the operator's loop goes on.

No body is decompressed, headers and connections have limits in size, number and time, and a refusal ends the
connection without waiting for the rest of what was being sent. Where too many connections are open, the one that has
been waiting for the longest without asking anything makes room, so that those who say nothing keep nobody out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

log = logging.getLogger(__name__)
MAX_CONNECTIONS = 256  # of one port
MAX_OF_ADDRESS = 32  # of one port from one address; probes, a scraper and a node's pods need a few
MAX_HEADER_BYTES = 32 * 1024  # of one request
MAX_HEADERS = 64
MAX_BODY_BYTES = 128 * 1024  # handlers may take less
TICK_SECONDS = 5.0
WAITING_TICKS = 2  # that a connection may be open without a request
ASKING_TICKS = 6  # that one request may take, until its answer was read
BACKLOG = 128
STOP_SECONDS = 3.0  # that requests under way may take once the server stops


class Server:
    """One HTTP server on one port."""

    def __init__(self, routes: list[web.RouteDef], host: str, port: int) -> None:
        self._routes = routes
        self._host = host
        self._port = port
        self._gate = Gate()
        self._runner: web.AppRunner | None = None
        self._listening: asyncio.Server | None = None

    async def start(self) -> int:
        """Listen; returns the port.

        Raises:
            OSError: the port is taken.
        """
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_refusing])
        app.add_routes(self._routes)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=STOP_SECONDS)
        await self._runner.setup()
        server, loop = self._runner.server, asyncio.get_running_loop()
        assert server is not None

        def connection() -> Connection:
            return Connection(server, self._gate, loop)

        self._listening = await loop.create_server(connection, self._host or None, self._port, backlog=BACKLOG)
        return int(self._listening.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Stop listening, close all connections, and end handlers that are still busy STOP_SECONDS later."""
        if self._listening is not None:
            self._listening.close()
        self._gate.close()
        if self._runner is not None:
            await self._runner.cleanup()


class Gate:
    """The open connections of one port, oldest first."""

    def __init__(self) -> None:
        self._open: dict[Connection, None] = {}
        self._by_address: dict[str, dict[Connection, None]] = {}

    def enter(self, connection: Connection) -> bool:
        """Take a connection in; False if there is no room, not even by closing one that asks nothing."""
        theirs = self._by_address.get(connection.address, {})
        if len(theirs) >= MAX_OF_ADDRESS and not self._make_room(theirs):
            return False
        if len(self._open) >= MAX_CONNECTIONS and not self._make_room(self._busiest()):
            return False
        self._open[connection] = None
        self._by_address.setdefault(connection.address, {})[connection] = None
        return True

    def leave(self, connection: Connection) -> None:
        """A connection is closed, or will be at once."""
        if connection in self._open:
            del self._open[connection]
            theirs = self._by_address[connection.address]
            del theirs[connection]
            if not theirs:
                del self._by_address[connection.address]

    def close(self) -> None:
        """Close all connections that ask nothing."""
        for connection in [one for one in self._open if one.waiting]:
            connection.drop()

    def _busiest(self) -> dict[Connection, None]:
        """Connections of the address that has most of those that wait."""
        return max(self._by_address.values(), key=lambda theirs: sum(one.waiting for one in theirs))

    def _make_room(self, connections: dict[Connection, None]) -> bool:
        oldest = next((one for one in connections if one.waiting), None)
        if oldest is None:
            return False
        oldest.drop()
        return True


class Connection(web.RequestHandler):
    """aiohttp's protocol of one connection, with a gate before it and a clock beside it."""

    def __init__(self, server: web.Server, gate: Gate, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]
            auto_decompress=False,
            lingering_time=0.0,
            keepalive_timeout=TICK_SECONDS * WAITING_TICKS,
            max_headers=MAX_HEADERS,
        )
        self._gate = gate
        self._entered = False
        self._clock: asyncio.TimerHandle | None = None
        self._header_bytes = 0
        self._last, self._ticks = (0, True), 0  # requests so far and whether it waited, at the last tick; ticks since
        self.address = ""

    @property
    def waiting(self) -> bool:
        """Whether no request of it is being answered."""
        return self._waiter is not None and not self._waiter.done()

    def drop(self) -> None:
        """Close it now, whatever is on its way."""
        self._gate.leave(self)
        if self.transport is not None:
            self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        peer = transport.get_extra_info("peername")
        self.address = str(peer[0]) if peer else ""
        self._entered = self._gate.enter(self)
        if not self._entered:
            assert isinstance(transport, asyncio.Transport)
            transport.abort()
            return
        super().connection_made(transport)
        self._clock = self._loop.call_later(TICK_SECONDS, self._tick)

    def connection_lost(self, exc: BaseException | None) -> None:
        """It is closed."""
        if not self._entered:
            return
        self._gate.leave(self)
        if self._clock is not None:
            self._clock.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Something came."""
        if not self._entered:
            return
        requests, waiting = self._request_count, self.waiting
        super().data_received(data)
        if self._request_count != requests or not waiting:
            self._header_bytes = 0
            return
        self._header_bytes += len(data)
        if self._header_bytes > MAX_HEADER_BYTES:
            self.drop()

    def log_exception(self, *arguments: Any, **more: Any) -> None:
        """What a client got wrong is no error of ours, and would fill the log."""
        if isinstance(more.get("exc_info"), HttpProcessingError):
            log.debug(*arguments, **more)
        else:
            log.error(*arguments, **more)

    def _tick(self) -> None:
        state = self._request_count, self.waiting
        self._ticks = self._ticks + 1 if state == self._last else 1
        self._last = state
        if self._ticks >= (WAITING_TICKS if self.waiting else ASKING_TICKS):
            self.drop()
        else:
            self._clock = self._loop.call_later(TICK_SECONDS, self._tick)


@web.middleware
async def _refusing(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Refuses bodies that would have to be unfolded; ends the connection with every refusal."""
    answer: Any
    if "Content-Encoding" in request.headers:
        answer = web.Response(status=415, text="no Content-Encoding is taken; send the body as it is\n")
    else:
        try:
            answer = await handler(request)
        except web.HTTPException as error:
            answer = web.Response(status=error.status, text=f"{error.reason}\n", headers=_allowed(error))
    if answer.status >= 400:
        answer.force_close()
    return answer  # type: ignore[no-any-return]


def _allowed(error: web.HTTPException) -> dict[str, str]:
    return {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
