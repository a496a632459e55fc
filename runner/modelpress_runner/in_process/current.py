"""The run of a script that this process is in, if it is in one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from modelpress_runner.in_process.loop_state import LoopState
    from modelpress_runner.in_process.prepare import Compression, LoopModel


class ScriptRun(Protocol):
    """A run that waits for its script to hand over a model."""

    def prepared(self, handed: LoopModel, given: Sequence[str], state: LoopState) -> Compression:
        """The compression of what the script handed over.

        Args:
            handed: the model and what scores it.
            given: names of the arguments that say what only the job may say.
            state: the script's optimizers.
        """


_current: list[ScriptRun] = []


def current() -> ScriptRun | None:
    """The run, or None."""
    return _current[-1] if _current else None


@contextlib.contextmanager
def entered(run: ScriptRun) -> Iterator[None]:
    """Inside, `run` is the current one."""
    _current.append(run)
    try:
        yield
    finally:
        _current.remove(run)
