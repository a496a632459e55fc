"""What the operator needs of an API server: a few calls on raw objects, and errors that say what to do next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

from .resources import RawObject, Resource

FIELD_MANAGER = "modelpress-operator"
Retry = Literal["observe", "later", "never"]


class ClusterError(Exception):
    """A request that the API server did not fulfil.

    Attributes:
        status: the HTTP status; 0 where there was no answer.
        retry: what may help: to observe again, to wait, or nothing but a change by somebody.
        retry_after: seconds that the server asks to wait.
    """

    retry: Retry = "later"

    def __init__(self, message: str, *, status: int = 0, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


class ConflictError(ClusterError):
    """409: the object is no longer the one that was observed."""

    retry: Retry = "observe"


class AlreadyExistsError(ClusterError):
    """409: the name is taken."""

    retry: Retry = "observe"


class NotFoundError(ClusterError):
    """404: no such object, or no such kind."""

    retry: Retry = "observe"


class GoneError(ClusterError):
    """410: the resource version is too old; list again."""

    retry: Retry = "observe"


class InvalidError(ClusterError):
    """400 or 422: the API server will never take this object."""

    retry: Retry = "never"


class ForbiddenError(ClusterError):
    """401 or 403: no permission, an exceeded quota, or a namespace that is being deleted."""


class TooManyRequestsError(ClusterError):
    """429, still after the client has waited and tried again."""


class ServerError(ClusterError):
    """5xx, a timeout or a broken connection: whether the request was carried out is unknown."""


class ClusterClient(Protocol):
    """Asynchronous, objects as plain dicts. Every method may raise any ClusterError."""

    async def get(self, resource: Resource, namespace: str, name: str) -> RawObject:
        """One object. Raises NotFoundError."""

    async def list(
        self,
        resource: Resource,
        namespace: str | None,
        *,
        labels: Mapping[str, str] | None = None,
        fields: Mapping[str, str] | None = None,
    ) -> list[RawObject]:
        """All objects of a namespace, or of all (None), that carry these labels and have these values at these paths.

        The server knows only some paths, other ones for each kind.
        """

    async def create(self, resource: Resource, namespace: str, obj: RawObject) -> RawObject:
        """Create an object; the answer is how it is stored. Raises AlreadyExistsError, InvalidError."""

    async def patch(
        self, resource: Resource, namespace: str, name: str, patch: RawObject, resource_version: str
    ) -> RawObject:
        """Merge-patch (RFC 7386) an object of exactly this version. Raises ConflictError, NotFoundError."""

    async def patch_status(
        self, resource: Resource, namespace: str, name: str, patch: RawObject, resource_version: str
    ) -> RawObject:
        """Merge-patch `status` of an object of exactly this version; an empty patch only checks the version."""

    async def delete(
        self, resource: Resource, namespace: str, name: str, uid: str, grace: int | None = None
    ) -> RawObject | None:
        """Delete the object of this uid once its dependants are gone (foreground).

        Returns:
            The object as it waits for that, None if it is gone.

        Raises:
            ConflictError: the object of that name has another uid.
            NotFoundError: there is none.
        """

    async def close(self) -> None:
        """Close all connections."""


def merge_patch(old: Any, new: Any) -> Any:
    """The RFC 7386 patch that turns `old` into `new`; empty if they are equal. Neither may hold a null in a mapping."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    patch: dict[str, Any] = {key: None for key in old if key not in new}
    for key, value in new.items():
        if key not in old:
            patch[key] = value
        elif old[key] != value:
            patch[key] = merge_patch(old[key], value)
    return patch


def apply_merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7386, the inverse of merge_patch."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = apply_merge_patch(result.get(key), value)
    return result


def error_of(status: int, body: Mapping[str, Any], retry_after: float | None = None) -> ClusterError:
    """The typed error for an answer that is no success; `body` is its metav1.Status."""
    message = str(body.get("message") or f"the API server answered {status}")
    kind: type[ClusterError]
    if status == 409:
        kind = AlreadyExistsError if body.get("reason") == "AlreadyExists" else ConflictError
    else:
        kind = {
            400: InvalidError,
            401: ForbiddenError,
            403: ForbiddenError,
            404: NotFoundError,
            410: GoneError,
            422: InvalidError,
            429: TooManyRequestsError,
        }.get(status, ServerError)
    return kind(message, status=status, retry_after=retry_after)
