"""What can go wrong between the command line and an API server; each message is a sentence that says what to do."""

from __future__ import annotations

from modelpress.local.errors import LocalError


class ClusterError(LocalError):
    """The cluster did not do what it was asked for: exit code 1."""


class UnreachableError(ClusterError):
    """No answer, or none that makes sense; it may come later."""


class RequestError(LocalError):
    """What was asked for cannot be: a name, a context, an object that the API server refuses. Exit code 2."""

    exit_code = 2


class MissingError(RequestError):
    """There is no such object."""


class ExistsError(RequestError):
    """There is one of that name already."""
