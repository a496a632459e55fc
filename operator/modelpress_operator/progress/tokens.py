"""Whether a bearer token is one that the API server gave to a pod for talking to us."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import jwt

from .keys import KeySet

LEEWAY_SECONDS = 30  # between the API server's clock and ours
_CLAIMS = "kubernetes.io"


class TokenError(Exception):
    """The token proves nothing; the text is for the log and the caller, and repeats nothing of the token."""


@dataclass(frozen=True)
class PodIdentity:
    """The pod that a token is bound to."""

    namespace: str
    name: str
    uid: str


class TokenVerifier:
    """Verifies projected service-account tokens locally; no TokenReview, so that no cluster-wide right is needed.

    Args:
        keys: the API server's.
        audience: that the token must be for.
    """

    def __init__(self, keys: KeySet, audience: str) -> None:
        self._keys = keys
        self._audience = audience

    async def verify(self, token: str) -> PodIdentity:
        """The pod behind a token: signature, algorithm, audience, issuer, expiry and not-before are checked.

        Raises:
            TokenError: it is none of ours.
            KeysError: the API server's keys are not known.
        """
        try:
            key_id = jwt.get_unverified_header(token).get("kid")
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise TokenError("this is no token") from None
        found = await self._keys.key(key_id) if isinstance(key_id, str) else None
        if found is None:
            raise TokenError("the token is not signed by this cluster")
        key, issuer = found
        try:
            claims = jwt.decode(
                token,
                key=key.key,
                algorithms=[key.algorithm_name],
                audience=self._audience,
                issuer=issuer,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "nbf", "iat", "iss", "aud", "sub"]},
            )
        except (ValueError, RecursionError):
            raise TokenError("this is no token") from None
        except jwt.PyJWTError as error:
            raise TokenError(f"the token is not valid here: {_words(error)}") from None
        return _pod(claims)


def _words(error: jwt.PyJWTError) -> str:
    """InvalidAudienceError as "invalid audience": the library's texts may quote the token."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(error).__name__.removesuffix("Error")).lower()


def _pod(claims: dict[str, Any]) -> PodIdentity:
    ours = claims.get(_CLAIMS)
    pod = ours.get("pod") if isinstance(ours, dict) else None
    if not isinstance(ours, dict) or not isinstance(pod, dict):
        raise TokenError("the token is not bound to a pod")
    values = ours.get("namespace"), pod.get("name"), pod.get("uid")
    if not all(isinstance(value, str) and value for value in values):
        raise TokenError("the token is not bound to a pod")
    return PodIdentity(*map(str, values))
