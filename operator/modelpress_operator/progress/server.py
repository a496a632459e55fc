"""POST /progress: takes progress from the pods of running trials.

202 taken, 307 another replica leads, 400 no message, 401 no valid token, 403 not a pod of a running trial, 413 too
large, 503 no leader yet, or keys that cannot be read. The text of an answer says why.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Protocol

from aiohttp import web

from modelpress_operator.resources import COMPRESSION_JOBS, Key

from .keys import KeysError
from .message import MAX_BODY, Message, MessageError, parse
from .pods import JOB_LABEL
from .tokens import TokenError, TokenVerifier

log = logging.getLogger(__name__)
PATH = "/progress"
BODY_SECONDS = 10.0
RETRY_SECONDS = 10


class Pods(Protocol):
    """Finds out which trial a pod works for."""

    def pod_of(self, namespace: str, name: str, uid: str) -> Mapping[str, str] | None:
        """The labels of a live pod of a trial, modelpress.dev/job among them; None if there is no such pod."""


class Leader(Protocol):
    """The leader's address (lease.Leadership)."""

    @property
    def held(self) -> bool: ...

    @property
    def leader_address(self) -> str | None: ...


class ProgressServer:
    """The route, and how often it was answered how.

    Args:
        verifier: of tokens.
        pods: what is known of pods.
        leader: only a leader writes; a follower sends runners on.
        accept: takes a message of a CompressionJob; must return at once.
        count: is told the status of each answer.
    """

    def __init__(
        self,
        verifier: TokenVerifier,
        pods: Pods,
        leader: Leader,
        accept: Callable[[Key, Message], None],
        *,
        count: Callable[[int], None] = lambda status: None,
    ) -> None:
        self._verifier = verifier
        self._pods = pods
        self._leader = leader
        self._accept = accept
        self._count = count

    def routes(self) -> list[web.RouteDef]:
        """For an aiohttp application."""
        return [web.post(PATH, self._handle)]

    async def _handle(self, request: web.Request) -> web.Response:
        answer = await self._answer(request)
        self._count(answer.status)
        return answer

    async def _answer(self, request: web.Request) -> web.Response:
        if not self._leader.held:
            return self._elsewhere()
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            return _refused(401, "a bearer token is needed")
        try:
            pod = await self._verifier.verify(token.strip())
        except TokenError as error:
            return _refused(401, str(error))
        except KeysError as error:
            return _later(str(error))
        if (request.content_length or 0) > MAX_BODY:
            return _refused(413, f"at most {MAX_BODY} bytes are taken")
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await _read(request)
        except TimeoutError:
            return _refused(408, "the body did not come")
        if body is None:
            return _refused(413, f"at most {MAX_BODY} bytes are taken")
        labels = self._pods.pod_of(pod.namespace, pod.name, pod.uid)
        if labels is None:
            return _refused(403, "the pod is not one of a running trial")
        try:
            message = parse(body)
        except MessageError as error:
            return _refused(400, str(error))
        self._accept(Key(COMPRESSION_JOBS, pod.namespace, labels[JOB_LABEL]), message)
        return web.Response(status=202)

    def _elsewhere(self) -> web.Response:
        address = self._leader.leader_address
        if address is None:
            return _later("no replica leads at the moment")
        return web.Response(status=307, headers={"Location": f"{address.rstrip('/')}{PATH}"})


async def _read(request: web.Request) -> bytes | None:
    """The body; None if it is too large, whatever its header says."""
    body = bytearray()
    async for chunk in request.content.iter_chunked(8192):
        body += chunk
        if len(body) > MAX_BODY:
            return None
    return bytes(body)


def _refused(status: int, text: str) -> web.Response:
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    return web.Response(status=status, text=f"{text}\n", headers=headers)


def _later(text: str) -> web.Response:
    return web.Response(status=503, text=f"{text}\n", headers={"Retry-After": str(RETRY_SECONDS)})
