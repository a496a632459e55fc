"""Errors of the runner; their type decides the exit code and so whether the run is tried again."""

from __future__ import annotations


class RunnerError(Exception):
    """A run cannot go on; the message is a sentence for the user: what is wrong, where, and what to do.

    `path` is the field of the spec that it is about (`spec.stages[0].prune.configList[1].opNames`), if there is one.
    """

    def __init__(self, message: str, path: str | None = None) -> None:
        super().__init__(message if path is None else f"{path}: {message}")
        self.path = path


class InvalidSpecError(RunnerError):
    """The specification does not fit the model: exit code 2, never tried again."""


class InvalidModelError(RunnerError):
    """The entrypoint, the model or the evaluator is not what it must be: exit code 2, never tried again."""


class CodeUnavailableError(RunnerError):
    """The user's code cannot be had now (a missing ConfigMap, a server that does not answer): exit code 1."""


class UserCodeError(RunnerError):
    """The user's own code raised: exit code 1. The original exception is the cause."""


class CompressionError(RunnerError):
    """A method failed on this model (a shrink that cannot be proven, training that moves nothing): exit code 1."""


class ArtifactError(RunnerError):
    """An artifact is damaged, tampered with, or not one of ours."""


class StoreError(RunnerError):
    """The store refused or failed after retries: exit code 1."""


def first_line(error: BaseException, limit: int = 300) -> str:
    """The first line of an error's message that says something, at most `limit` characters; its type if it is empty."""
    line = next((text.strip() for text in str(error).splitlines() if text.strip()), type(error).__name__)
    return line if len(line) <= limit else line[: limit - 1] + "…"
