"""Runs jobs and sweeps on this machine: the reconcile core over an in-memory cluster whose Jobs are processes.

Names are loaded when they are first used, so that importing one module of this package is light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOME = {
    "LocalError": "errors",
    "LocalResult": "session",
    "LockedError": "errors",
    "StateError": "errors",
    "UsageError": "errors",
    "run": "session",
}

__all__ = ["LocalError", "LocalResult", "LockedError", "StateError", "UsageError", "run"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'modelpress.local' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


if TYPE_CHECKING:
    from .errors import LocalError as LocalError
    from .errors import LockedError as LockedError
    from .errors import StateError as StateError
    from .errors import UsageError as UsageError
    from .session import LocalResult as LocalResult
    from .session import run as run
