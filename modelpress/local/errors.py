"""Errors of a local run; each message is a sentence for the user, and each says which exit code it means."""

from __future__ import annotations


class LocalError(Exception):
    """A local run cannot start or go on. `exit_code` is what `modelpress run` ends with."""

    exit_code = 1


class UsageError(LocalError):
    """The request cannot be honoured as it was given (a folder that does not exist, a value that may not change)."""

    exit_code = 2


class LockedError(LocalError):
    """Another process is working on the same run."""

    exit_code = 2


class StateError(LocalError):
    """The state directory cannot be read or written."""


class ConflictError(Exception):
    """A write was refused: the object has changed since it was read. Look again and decide again."""


class AlreadyExistsError(Exception):
    """An object of that name is there and it is somebody else's, or it is on its way out."""
