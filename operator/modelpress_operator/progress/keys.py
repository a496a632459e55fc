"""The API server's public keys, by which it signs the tokens of pods (RFC 7517, OpenID Connect discovery)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import jwt

from modelpress_operator.client import ClusterError

log = logging.getLogger(__name__)
JWKS, DISCOVERY = "/openid/v1/jwks", "/.well-known/openid-configuration"
# What Kubernetes signs with. A token never chooses its algorithm: the key does.
ALGORITHMS = ("RS256", "RS384", "RS512", "ES256", "ES384", "ES512")
LEAST_SECONDS = 10.0  # between two looks: tokens with made-up key ids must not load the API server
MAX_AGE_SECONDS = 3600.0  # a key that was withdrawn is not trusted for longer


class KeysError(Exception):
    """The API server's keys are not to be had at the moment."""


@dataclass(frozen=True)
class Keys:
    """Public keys by their id, with the one algorithm of each, and the issuer of the tokens."""

    issuer: str
    by_id: dict[str, jwt.PyJWK]


class KeySet:
    """The keys as they were read last; for one event loop.

    Args:
        fetch: reads a path of the API server as JSON, with the operator's own credentials.
        clock: monotonic seconds.
    """

    def __init__(
        self, fetch: Callable[[str], Awaitable[dict[str, Any]]], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._fetch = fetch
        self._clock = clock
        self._keys: Keys | None = None
        self._read_at = self._tried_at = float("-inf")
        self._lock = asyncio.Lock()

    async def key(self, key_id: str) -> tuple[jwt.PyJWK, str] | None:
        """The key of this id, and the issuer; None if the API server has no such key.

        Raises:
            KeysError: the keys cannot be read, and there are none from before.
        """
        old = self._clock() - self._read_at > MAX_AGE_SECONDS
        if self._keys is None or old or key_id not in self._keys.by_id:
            await self._refresh()
        if self._keys is None or self._clock() - self._read_at > 2 * MAX_AGE_SECONDS:
            raise KeysError("the API server's public keys cannot be read")
        found = self._keys.by_id.get(key_id)
        return None if found is None else (found, self._keys.issuer)

    async def _refresh(self) -> None:
        async with self._lock:
            if self._clock() - self._tried_at < LEAST_SECONDS:
                return
            self._tried_at = self._clock()
            try:
                answers = await self._fetch(DISCOVERY), await self._fetch(JWKS)
                self._keys = _parsed(*answers)
            except (ClusterError, KeysError) as error:
                log.warning("the API server's public keys cannot be read: %s", error)
                return
            self._read_at = self._clock()


def _parsed(discovery: dict[str, Any], jwks: dict[str, Any]) -> Keys:
    issuer = discovery.get("issuer")
    if not isinstance(issuer, str) or not issuer:
        raise KeysError(f"{DISCOVERY} names no issuer")
    keys: dict[str, jwt.PyJWK] = {}
    for item in jwks.get("keys") or ():
        if not isinstance(item, dict) or item.get("use", "sig") != "sig" or not item.get("kid"):
            continue
        try:
            key = jwt.PyJWK(item)
        except jwt.PyJWTError as error:
            log.warning("a public key of the API server is passed over: %s", error)
            continue
        if key.algorithm_name in ALGORITHMS:
            keys[str(item["kid"])] = key
    return Keys(issuer, keys)
