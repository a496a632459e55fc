"""What can go wrong with a file and its runtime."""

from __future__ import annotations

from modelpress_runner.errors import ArtifactError, RunnerError


class MissingRuntimeError(RunnerError):
    """A package is not installed; the message says how to install it."""

    def __init__(self, package: str, extra: str, path: str | None = None) -> None:
        super().__init__(
            f"the package {package!r} is not installed; install it with: pip install 'modelpress[{extra}]'", path
        )
        self.package, self.extra = package, extra


class RuntimeFileError(ArtifactError):
    """A file is not what its runtime reads, or not one of ours."""


class CallError(RunnerError, TypeError):
    """A model was called with what it does not take."""
