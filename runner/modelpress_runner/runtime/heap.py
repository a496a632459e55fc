"""Memory that is free in this process, given back to the system."""

from __future__ import annotations

import ctypes
import functools
from typing import Any


def give_back() -> None:
    """Gives back what the C library keeps of freed blocks. glibc keeps blocks below 32 MiB for itself, and many of a
    proof's or a shrink's are smaller: what comes next would be allocated on top of them. Elsewhere it does nothing."""
    trim = _trim()
    if trim is not None:
        trim(0)


@functools.cache
def _trim() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):
        return None
